"""The eight variants of the method on MODEL and DATA, as a Markdown file."""

from __future__ import annotations

from pathlib import Path

import torch

from runtimes.clips import Clips
from runtimes.files import write_text
from toolchain.checkpoint import checkpoint_folder, checkpoint_sha256, load_checkpoint
from toolchain.dataset import Example, read_examples_as_clips, read_splits
from toolchain.evaluation import data_folder
from toolchain.families import ast
from toolchain.narration import Narrator
from toolchain.pruning import calibration_inputs, clips_sha256
from toolchain.schedule import LabelledInputs, PruneRecipe
from toolchain.variants import render_variants, variant_recipes, variant_table


def tabulate_variants(
    model: str,
    *,
    data: str | None,
    sparsities: tuple[float, ...],
    iterative_sparsities: tuple[float, ...],
    out: Path,
    calibration_clips: int,
    batch_size: int,
    seed: int,
    narrator: Narrator,
) -> str:
    """The table, also written to `out`; rows that were finished before, from the same inputs, are not computed again.

    Raises:
        LeanearError: the model or the data is not usable.
    """
    source = checkpoint_folder(model)
    splits = read_splits(data_folder(model, data), calibration_clips, seed)
    with narrator.step("reading the checkpoint and the clips") as report:
        checkpoint = load_checkpoint(source)

        def read(examples: tuple[Example, ...]) -> tuple[Clips, LabelledInputs]:
            clips = read_examples_as_clips(examples, checkpoint.labels, checkpoint.feature_extractor.sampling_rate)
            inputs = calibration_inputs(checkpoint, clips.waveforms, report)
            return clips, LabelledInputs(inputs, torch.from_numpy(clips.label_ids))

        calibration_audio, calibration = read(splits.calibration)
        evaluation_audio, evaluation = read(splits.evaluation)
    made_from = {
        "checkpoint": checkpoint_sha256(source),
        "calibration": clips_sha256(calibration_audio),
        "evaluation": clips_sha256(evaluation_audio),
    }
    defaults = PruneRecipe(sparsity=0.5, calibration_clips=calibration_clips, batch_size=batch_size, seed=seed)
    recipes = variant_recipes(defaults, sparsities, iterative_sparsities)
    with narrator.step(f"{len(recipes)} variants") as report:
        rows = variant_table(
            ast,
            checkpoint,
            calibration,
            evaluation,
            recipes,
            made_from=made_from,
            rows_path=out.with_suffix(".rows.jsonl"),
            report=report,
        )
    markdown = render_variants(rows)
    write_text(out, markdown)
    return markdown
