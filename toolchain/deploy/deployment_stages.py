"""The stages of a deployment that write files: clips, slim checkpoint, artifacts, results; each is done once."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.results import Results
from leanear.data.clips import read_examples_for
from leanear.data.dataset import examples_identity
from leanear.data.splits import Splits
from leanear.deploy.precision_gate import quantiser_clips
from leanear.evaluate.speech_evaluation import count_results_word_errors
from leanear.families.asked import Asked
from leanear.families.checkpoint import NOTHING_ASKED, checkpoint_sha256, load_checkpoint
from leanear.families.registry import family_of, read_spellings
from leanear.outputs import recorded_inputs, run_stage
from leanear.progress import Narrator, counted, in_parts
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import graph_precision
from leanear.runtimes.clips import STREAMS, Clips, clips_in_16_bits, read_clips, write_clips
from leanear.runtimes.files import sha256_file
from leanear.runtimes.process.notes import named, note, plural
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import FULL
from leanear.targets.target import Target

if TYPE_CHECKING:
    from leanear.prune.job import PruneJob

VERSION = importlib.metadata.version("leanear")


def clips_stage(folder: Path, source: Path, splits: Splits, task: str, narrator: Narrator) -> bool:
    """clips/calibration.npz and clips/evaluation.npz: mono, at the model's rate, with its label ids or with texts.

    Evaluation clips are in 16-bit values, here as on every device, so that all score the same samples.
    """
    files = [folder / "clips" / "calibration.npz", folder / "clips" / "evaluation.npz"]
    preprocessor = source / "preprocessor_config.json"
    made_from = {
        "leanear": VERSION,
        "config": sha256_file(source / "config.json"),
        "preprocessor": sha256_file(preprocessor) if preprocessor.is_file() else None,
        "calibration": examples_identity(splits.calibration),
        "evaluation": examples_identity(splits.evaluation),
        "origin": splits.origin,
        "evaluation bits": 16,
        "packing": list(STREAMS),
    }

    def work() -> None:
        with narrator.step(
            f"reading {len(splits.calibration)} calibration and {plural(len(splits.evaluation), 'evaluation clip')}"
        ) as report:
            labels, rate_hz, window = _labels_rate_and_window(source)
            part = in_parts(report, {"calibration": len(splits.calibration), "evaluation": len(splits.evaluation)})
            calibration = read_examples_for(
                task, splits.calibration, labels, rate_hz, counted(part("calibration")), window
            )
            write_clips(files[0], calibration)
            read = read_examples_for(task, splits.evaluation, labels, rate_hz, counted(part("evaluation")), None)
            _note_shared(calibration, read)
            evaluation, finer = clips_in_16_bits(read)
            write_clips(files[1], evaluation)
        if finer:
            narrator.say(f"  finer than 16 bits, and rounded: {finer} of {plural(len(evaluation), 'evaluation clip')}")

    return run_stage(folder, "clips", made_from, lambda: files, work)


def _note_shared(calibration: Clips, evaluation: Clips) -> None:
    """Say which evaluation clips are calibration clips, too, sample by sample: they judge too kindly."""
    heard = {hash(waveform.tobytes()) for waveform in calibration.waveforms if waveform.any()}
    pairs = zip(evaluation.names, evaluation.waveforms, strict=True)
    shared = [name for name, waveform in pairs if hash(waveform.tobytes()) in heard]
    if shared:
        note(f"calibration clips among the evaluation clips, {len(shared)} of {len(evaluation)}: {named(shared)}")


def prune_stage(folder: Path, source: Path, job: PruneJob, narrator: Narrator) -> bool:
    """checkpoint/: the slim model, which transformers opens."""
    out, calibration = folder / "checkpoint", folder / "clips" / "calibration.npz"
    made_from = {
        "checkpoint": checkpoint_sha256(source),
        "calibration": sha256_file(calibration),
        **job.asked.as_json(),
    }

    def work() -> None:
        from leanear.prune.pruning import write_slim_checkpoint

        with narrator.step(f"pruning: {job.text}") as report:
            checkpoint, clips = load_checkpoint(source, job.asked), read_clips(calibration)
            write_slim_checkpoint(checkpoint, clips, job, made_from, out, folder / "calibration", report)

    record = {"leanear": VERSION, **made_from, "job": job.as_json()}
    return run_stage(
        folder, "checkpoint", record, lambda: sorted(path for path in out.iterdir() if path.is_file()), work
    )


def was_pruned(folder: Path, source: Path, job: PruneJob) -> bool:
    """Whether a deployment folder's slim model came of the same checkpoint and job, whatever the clips."""
    made_from = recorded_inputs(folder, "checkpoint")
    return (made_from.get("checkpoint"), made_from.get("job")) == (checkpoint_sha256(source), job.as_json())


def export_stage(
    folder: Path,
    out: Path,
    name: str,
    source: Path,
    model: str,
    form: str,
    precision: str,
    narrator: Narrator,
    dense: Path | None = None,
    asked: Asked = NOTHING_ASKED,
    window: str = FULL,
    word_timestamps: bool = False,
) -> bool:
    """The proved ONNX artifact of the checkpoint in `source` at `out`, in the graph precision of `precision`.

    dense: an artifact; if its graphs are of the same precision, those of this one have to be smaller; asked: of a
    Whisper, what the artifact does by default; window: which windows its encoder takes; word_timestamps: it is made for
    them.
    """
    calibration, graphs = folder / "clips" / "calibration.npz", graph_precision(precision)
    made_from = {"checkpoint": checkpoint_sha256(source), "golden clips": sha256_file(calibration), **asked.as_json()}

    def work() -> None:
        from leanear.deploy.exporting import write_proved_artifact
        from leanear.export.options import ExportOptions
        from leanear.families.whisper.model import alignment_of

        with narrator.step(f"exporting {name} to ONNX and proving it") as report:
            clips = read_clips(calibration).waveforms
            clips = clips[: quantiser_clips(len(clips))]
            beside = None if dense is None else read_artifact(dense)
            dense_bytes = beside.graph_bytes if beside is not None and beside.precisions == {graphs} else None
            checkpoint = load_checkpoint(source, asked)
            alignment = alignment_of(cast(Any, checkpoint)) if word_timestamps else None
            options = ExportOptions(form, {"source": model}, made_from, graphs, window=window, alignment=alignment)
            write_proved_artifact(checkpoint, clips, out, options, dense_bytes, report)
        if alignment is not None:
            note(f"{model}, {name}: {alignment.sentence}")

    words = {"word_timestamps": True} if word_timestamps else {}
    record = {"leanear": VERSION, **made_from, "form": form, "precision": graphs, "window": window, **words}
    stage = "-".join(out.relative_to(folder).parts)
    return run_stage(folder, stage, record, lambda: sorted(path for path in out.iterdir() if path.is_file()), work)


def bench_stage(
    folder: Path,
    source: Path,
    device: Target,
    plain: str,
    budget_s: float,
    sustained_s: float,
    command: Sequence[str],
    narrator: Narrator,
) -> tuple[Results, bool]:
    """The results of dense, in `plain`, and slim on this machine, and whether they had to be measured now."""
    out = folder / "results" / f"{device.runtime}-{device.precision}.json"
    before = sha256_file(out) if out.is_file() else None
    said = precision_text(device.precision, device.precision, plain)
    title = f"measuring on {device.runtime}, {said}, {plural(device.threads, 'thread')}"
    with narrator.step(title, if_reported=True) as report:
        benchmark(
            folder / "dense",
            folder / "slim",
            folder / "clips" / "evaluation.npz",
            device.runtime,
            SessionOptions(threads=device.threads, precision=device.precision),
            out,
            dense_precision=plain,
            budget_s=budget_s,
            sustained_s=sustained_s,
            command=command,
            progress=report,
        )
    results = count_results_word_errors(out, read_spellings(source))
    return results, sha256_file(out) != before


def _labels_rate_and_window(source: Path) -> tuple[tuple[str, ...], int, int]:
    checkpoint = load_checkpoint(source)
    extractor = checkpoint.feature_extractor
    return checkpoint.labels, extractor.sampling_rate, family_of(checkpoint).window_samples(extractor)


def precision_text(asked: str, ships: str, plain: str) -> str:
    """What is measured in what: the dense model in `plain`, the slim one in what ships, which may not be as asked."""
    said = f"dense in {plain}, slim in {ships}" if plain != ships else ships
    return said if asked == ships else f"{said} ({asked} was asked for)"
