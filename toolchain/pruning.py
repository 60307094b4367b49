"""From a dense checkpoint and calibration clips to a slim checkpoint folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from runtimes.clips import Clips
from runtimes.files import sha256_json
from toolchain.checkpoint import checkpoint_folder, checkpoint_sha256, load_checkpoint
from toolchain.dataset import read_examples_as_clips, read_splits
from toolchain.evaluation import data_folder
from toolchain.families import ast
from toolchain.narration import Narrator, Report, quiet
from toolchain.outputs import check_replaceable
from toolchain.plan import Plan
from toolchain.schedule import LabelledInputs, PruneRecipe, prune

RECOMPUTE_ABOVE_BYTES = 64 * 1024**2


def prune_checkpoint(
    model: str, *, data: str | None, recipe: PruneRecipe, out: Path, narrator: Narrator
) -> dict[str, Any]:
    """Prune MODEL on the calibration clips of DATA and write the slim checkpoint to `out`; the numbers, by stable keys.

    Raises:
        LeanearError: the model or the data is not usable, or `out` holds something that is no slim checkpoint.
    """
    check_replaceable(out, "plan.json")
    source = checkpoint_folder(model)
    splits = read_splits(data_folder(model, data), recipe.calibration_clips, recipe.seed)
    with narrator.step("reading the checkpoint and the calibration clips"):
        checkpoint = load_checkpoint(source)
        clips = read_examples_as_clips(
            splits.calibration, checkpoint.labels, checkpoint.feature_extractor.sampling_rate
        )
    made_from = {"checkpoint": checkpoint_sha256(source), "calibration": clips_sha256(clips)}
    with narrator.step(f"pruning to {100 * recipe.sparsity:g} %") as report:
        state = out.parent / f".{out.name}.state"
        plan = write_slim_checkpoint(checkpoint, clips, recipe, made_from, out, state, report)
        shutil.rmtree(state, ignore_errors=True)
    dense = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    return {
        "schema": "leanear-prune-1",
        "model": model,
        "out": str(out),
        "sparsity": plan.sparsity,
        "attention_parameters_dense": plan.attention_parameters_dense,
        "attention_parameters": plan.attention_parameters_kept,
        "parameters_dense": dense,
        "parameters": dense - plan.attention_parameters_dense + plan.attention_parameters_kept,
        "calibration_clips": len(clips),
        "checkpoint_sha256": checkpoint_sha256(out),
    }


def clips_sha256(clips: Clips) -> str:
    """Hex sha256 over the clips' samples and labels."""
    samples = hashlib.sha256()
    for waveform in clips.waveforms:
        samples.update(np.ascontiguousarray(waveform).tobytes())
    lengths = [len(waveform) for waveform in clips.waveforms]
    return sha256_json([samples.hexdigest(), lengths, clips.label_ids.tolist(), list(clips.labels)])


def write_slim_checkpoint(
    checkpoint: ast.AstCheckpoint,
    clips: Clips,
    recipe: PruneRecipe,
    made_from: dict[str, str],
    out: Path,
    state: Path,
    report: Report,
) -> Plan:
    """Prune the checkpoint on `clips`, write the slim folder `out`, and give back its plan.

    state: a folder for the dense model's curvature and the last finished step, from which an interrupted run, or a
    later one with another sparsity, goes on.
    """
    inputs = calibration_inputs(checkpoint, clips.waveforms, report)
    spare_memory = activation_bytes(checkpoint.model, inputs) > RECOMPUTE_ABOVE_BYTES
    pruned = prune(
        ast,
        checkpoint,
        LabelledInputs(inputs, torch.from_numpy(clips.label_ids)),
        recipe,
        made_from=made_from,
        state=state,
        clips_at_once=1 if spare_memory else None,
        recompute=spare_memory,
        report=report,
    )
    ast.save_slim_checkpoint(
        cast(ast.SlimASTForAudioClassification, pruned.model), checkpoint.feature_extractor, pruned.plan, out
    )
    return pruned.plan


def activation_bytes(model: ast.AstModel, inputs: torch.Tensor) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config = model.config
    tokens = model.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1]
    per_token = 10 * config.hidden_size + 2 * config.intermediate_size
    return int(config.num_hidden_layers * tokens * per_token * inputs.element_size())


def calibration_inputs(
    checkpoint: ast.AstCheckpoint, waveforms: Sequence[np.ndarray], report: Report = quiet
) -> torch.Tensor:
    """Log-mel features (N, frames, mels) of the clips, by transformers' own extractor."""
    features = []
    for number, waveform in enumerate(waveforms):
        features.append(ast.features(checkpoint.feature_extractor, [waveform]))
        report(f"front end of clip {number + 1} of {len(waveforms)}", (number + 1) / len(waveforms))
    return torch.cat(features)
