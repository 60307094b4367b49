"""From a checkpoint folder to a proved artifact."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from leanear.data.clips import read_waveforms
from leanear.data.dataset import Data, as_folder, column_for
from leanear.data.splits import check_seed, read_splits
from leanear.deploy.export_choices import check_export
from leanear.export.eight_bit_costs import dearest, tensor_costs, tensors_to_leave
from leanear.export.options import ExportOptions
from leanear.export.parity import Parity, prove_parity
from leanear.families.asked import Asked
from leanear.families.checkpoint import (
    NOTHING_ASKED,
    checkpoint_folder,
    checkpoint_sha256,
    data_folder,
    load_checkpoint,
)
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of, labels_of, task_of, writes_speech
from leanear.families.whisper.model import alignment_of
from leanear.outputs import check_replaceable, held
from leanear.plan import read_plan
from leanear.progress import Narrator, Report, quiet
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import ParityFailed
from leanear.runtimes.files import replaced_folder
from leanear.runtimes.process.notes import note

GOLDEN_CLIPS = 6
QUANTISER_CLIPS = 64


def export_checkpoint(
    model: str,
    *,
    out: Path,
    form: str,
    data: Data | None,
    seed: int,
    narrator: Narrator,
    precision: str = "fp32",
    asked: Asked = NOTHING_ASKED,
    window: str | None = None,
    word_timestamps: bool = False,
) -> Parity:
    """Export MODEL to the artifact folder `out` and prove it; the figures of the proof.

    The golden clips are taken from DATA, or are made up where there is none; the ranges of integers need DATA, or a
    demo's own clips. asked: of a Whisper, what the artifact does by default; window: which windows its encoder takes,
    None: as `check_export` says; word_timestamps: its decoder is to give what word times are taken from.

    Raises:
        LeanearError: the model or the data is not usable, another leanear is writing to `out`, or the graph is not
            equivalent; then `out` is left as it was.
    """
    check_replaceable(out, "manifest.json")
    check_seed(seed)
    window = check_export(model, data, form=form, precision=precision, window=window, word_timestamps=word_timestamps)
    wanted, data = (QUANTISER_CLIPS, data_folder(model, data)) if precision == "int8" else (GOLDEN_CLIPS, data)
    source, examples = checkpoint_folder(model), None
    if data is not None:
        splits = read_splits(as_folder(data), wanted, seed, column_for(task_of(source)), labels=labels_of(source))
        examples = splits.calibration[:wanted]
    place = out.resolve()
    with held(place.parent / f".{place.name}.state", (f"../{place.name}",)):
        with narrator.step("reading the checkpoint"):
            checkpoint = load_checkpoint(source, asked)
            rate_hz = checkpoint.feature_extractor.sampling_rate
            sounds = made_up_sounds(rate_hz, seed) if examples is None else read_waveforms(examples, rate_hz)
        alignment = alignment_of(cast(Any, checkpoint)) if word_timestamps else None
        if alignment is not None:
            note(f"{model}: {alignment.sentence}")
        with narrator.step(f"exporting to {form} ONNX and proving it") as report:
            made_from = {"checkpoint": checkpoint_sha256(source), **asked.as_json()}
            options = ExportOptions(form, {"source": model}, made_from, precision, window=window, alignment=alignment)
            return write_proved_artifact(checkpoint, sounds, out, options, report=report)


def write_proved_artifact(
    checkpoint: Checkpoint,
    clips: Sequence[np.ndarray],
    out: Path,
    options: ExportOptions,
    dense_graph_bytes: int | None = None,
    report: Report = quiet,
) -> Parity:
    """Export, prove, and only then put the artifact at `out`; the figures of the proof, which the manifest holds too.

    clips, options: as of `write_unproved_artifact`. Where a Whisper's 8 bits fail their proof, the tensors that cost
    most are left in float32 and it is proved again; what was left, or what costs most where it is refused, is said.
    """
    with replaced_folder(out) as folder:
        report("building the graph", 0.2)
        write_unproved_artifact(checkpoint, clips, folder, options, report)
        report("running the golden clips through it", 0.7)
        try:
            return prove_parity(folder, dense_graph_bytes=dense_graph_bytes)
        except ParityFailed as error:  # it names the temporary folder, which is about to go
            said = str(error).replace(str(folder), str(out))
        if options.precision != "int8" or not writes_speech(checkpoint):
            raise ParityFailed(said)
        report("measuring what 8 bits cost each tensor", 0.8)
        costs = tensor_costs(read_artifact(folder), checkpoint.model, checkpoint.feature_extractor, clips)
        left = tensors_to_leave(costs)
        if not left:
            raise ParityFailed(f"{said}; {dearest(costs)}")
        report(f"building the graph without {len(left)} tensors in 8 bits", 0.9)
        write_unproved_artifact(checkpoint, clips, folder, replace(options, left_in_float32=left))
        try:
            return prove_parity(folder, dense_graph_bytes=dense_graph_bytes)
        except ParityFailed as error:
            again = str(error).replace(str(folder), str(out))
            raise ParityFailed(f"{again}, even with {', '.join(left)} in float32; {dearest(costs)}") from None


class _Told(tuple[np.ndarray, ...]):
    """Clips that say how far they are each time that one goes through them."""

    report: Report = quiet

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, clip in enumerate(super().__iter__()):
            self.report(f"ranges from clip {number + 1} of {len(self)}", 0.2 + 0.5 * number / len(self))
            yield clip


def write_unproved_artifact(
    checkpoint: Checkpoint, clips: Sequence[np.ndarray], out: Path, options: ExportOptions, report: Report = quiet
) -> None:
    """The artifact at `out`, whole or not at all, its parity null.

    clips: float32 (samples,) each; of all of them the quantiser, and who looks for what float16 does not hold, take
    their ranges, and golden clips are made of the first. What the manifest says of pruning is added to the options.
    """
    ranges = _Told(clips if options.precision != "fp32" else ())
    ranges.report = report
    options = replace(options, source={**options.source, **_sparsity(checkpoint.folder)}, quantiser_waveforms=ranges)
    family_of(checkpoint).export(checkpoint, golden_waveforms(clips, checkpoint), out, options)


def _sparsity(folder: Path) -> dict[str, Any]:
    """What the manifest says of pruning: sparsity and plan hash of a slim checkpoint, nothing of a dense one."""
    if not (folder / "plan.json").is_file():
        return {"sparsity": 0.0}
    plan = read_plan(folder / "plan.json")
    return {"sparsity": round(plan.sparsity, 6), "recipe": plan.recipe}


def golden_waveforms(clips: Sequence[np.ndarray], checkpoint: Checkpoint) -> list[np.ndarray]:
    """The first clips as they are, one cut short, and one longer than the model's window."""
    extractor = checkpoint.feature_extractor
    chosen = list(clips[:GOLDEN_CLIPS])
    hop_samples = extractor.sampling_rate // 100
    window_samples = family_of(checkpoint).window_samples(extractor)
    longer = np.tile(chosen[0], -(-(window_samples + 5 * hop_samples) // len(chosen[0])))
    shorter = chosen[-1][: max(4 * hop_samples, len(chosen[-1]) // 3)]
    return [*chosen, shorter, longer]


def made_up_sounds(sample_rate_hz: int, seed: int) -> list[np.ndarray]:
    """Six seconds-long sounds with nothing recorded in them: sweeps and noises, float32 (samples,) within [-1, 1]."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(sample_rate_hz) / sample_rate_hz
    sweeps = [
        np.sin(2 * np.pi * (low + (high - low) * time_s / 2) * time_s)
        for low, high in ((80, 900), (300, 3000), (6000, 500))
    ]
    noises = [np.cumsum(generator.normal(size=sample_rate_hz)) * 0.01, generator.normal(size=sample_rate_hz) * 0.2]
    bursts = generator.normal(size=sample_rate_hz) * (np.sin(2 * np.pi * 3 * time_s) > 0)
    sounds = [*(0.4 * sweep for sweep in sweeps), *noises, 0.2 * bursts]
    return [np.clip(sound, -1, 1).astype(np.float32) for sound in sounds]
