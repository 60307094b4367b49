"""The precision gate: what a precision costs the slim model on clips of its own, and another where it costs too much.

A precision other than float32 ships only if the slim model loses no more in it than is allowed, against the same model
in float32, clip by clip, on the target's runtime. The clips are calibration clips that the quantiser has not seen.
Otherwise the next slower precision that the runtime offers is tried, down to float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.benchmarks.measure.evaluation import evaluate_logits, evaluate_transcripts
from leanear.benchmarks.measure.transcripts import Transcript
from leanear.benchmarks.report.precision_section import (
    FAILED,
    NOT_GATED,
    PASSED,
    PRECISION_SCHEMA,
    Change,
    Compared,
    GateFacts,
    PrecisionDocument,
    Trial,
    read_precision,
    trial_sentence,
)
from leanear.benchmarks.sensors.device import device_facts, device_name
from leanear.benchmarks.summary import Interval, accuracy_change, is_within, word_error_change
from leanear.benchmarks.tagging import MEAN_AP, average_precisions, differing_answers, tag_change
from leanear.benchmarks.verdict import loss_of
from leanear.data.word_errors import choose_normaliser, count_word_errors
from leanear.deploy.benching import PRECISION_FILE
from leanear.deploy.exporting import GOLDEN_CLIPS, QUANTISER_CLIPS
from leanear.evaluate.speech_evaluation import written_language
from leanear.families.checkpoint import NOTHING_ASKED
from leanear.outputs import run_stage, stage_is_done
from leanear.progress import Narrator, Report
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import PRECISIONS, choose_runtime, graph_precision
from leanear.runtimes.clips import Clips, read_clips, write_clips
from leanear.runtimes.errors import BadInput, GateMissed, MeasurementFailed, ParityFailed, RuntimeUnavailable
from leanear.runtimes.files import link_or_copy, replaced_folder, sha256_file, sha256_json
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target

PLAIN = "fp32"
MOST_GATE_CLIPS = 192
QUANTISER_SHARE = 1 / 3  # of the calibration clips, where they are few
TRIALS_FOLDER = "trials"
STAGE = "precision"
NO_ANSWERS = (BadInput, RuntimeUnavailable, MeasurementFailed)  # the runtime refuses the graph, or gives no numbers
ClipAnswers: TypeAlias = "Sequence[int] | Sequence[Transcript] | np.ndarray"
IMITATED = (
    "ONNX Runtime, which rounds weights to float16 but computes in float32 on a CPU, stands for engines that cannot be "
    "run on this machine; the check on the device is the first to see what float16 does between products."
)


@dataclass(frozen=True)
class PrecisionGate:
    """What a precision may cost.

    drop_points: of accuracy or of mAP that the slim model may lose against itself in float32, or of word error rate
    that it may add; fallback: whether the next slower precision is tried where it loses more.
    """

    drop_points: float = 1.0
    fallback: bool = True


@dataclass(frozen=True)
class Candidate:
    """What the gate judges: a deployment's slim model for one target.

    folder: of the deployment; made_from: what its graphs depend on besides their precision; export: puts the proved
    artifact of a graph precision in TRIALS_FOLDER and gives its folder; spellings: for Whisper's normaliser.
    """

    folder: Path
    target: Target
    made_from: dict[str, Any]
    export: Callable[[str], Path]
    spellings: dict[str, str] | None

    @property
    def calibration(self) -> Path:
        """The calibration clips, those that calibrate the quantiser first."""
        return self.folder / "clips" / "calibration.npz"


def plain_precision(runtime: str, ships: str) -> str:
    """What the dense model is measured in beside a slim one that ships in `ships`.

    float32; on TensorRT, which computes in float16 for all who do not forbid it, float16, unless the slim model has to
    be in float32 itself.
    """
    return "fp16" if choose_runtime(runtime).ON_GPU and ships != PLAIN else PLAIN


def precisions_to_try(asked: str, offered: Sequence[str]) -> tuple[str, ...]:
    """The precision that is asked for, and the slower ones that the runtime offers, in the order of their trial."""
    slower = PRECISIONS[: PRECISIONS.index(asked)] if asked in PRECISIONS else (PLAIN,)
    return (asked, *(precision for precision in reversed(slower) if precision in offered))


def quantiser_clips(clips: int) -> int:
    """How many of so many calibration clips, the first ones, may calibrate a quantiser; the gate has the others."""
    return min(clips, QUANTISER_CLIPS, max(GOLDEN_CLIPS, int(QUANTISER_SHARE * clips)))


def gate_clips(clips: Clips) -> Clips:
    """The calibration clips that the gate is judged on."""
    start = quantiser_clips(len(clips))
    return clips[start : start + MOST_GATE_CLIPS]


def metric_of(clips: Clips) -> str:
    """What the gate is judged by, and what is told of answers to such clips."""
    if clips.texts is not None:
        return WORD_ERROR_RATE
    return "accuracy" if clips.tags is None else MEAN_AP


def ships_by_record(candidate: Candidate, gate: PrecisionGate) -> str | None:
    """What the gate said earlier of the same inputs; None where it has to be asked again."""
    if candidate.target.precision == PLAIN:
        return PLAIN
    if not stage_is_done(candidate.folder, STAGE, _made_from(candidate, gate)):
        return None
    return read_precision(candidate.folder / PRECISION_FILE).ships


def precision_stage(candidate: Candidate, gate: PrecisionGate, narrator: Narrator) -> tuple[str, bool]:
    """slim/ in the precision that ships, and precision.json; that precision, and whether the gate had to be asked.

    Raises:
        GateMissed: the precision that was asked for costs too much, and there is to be no other.
        ParityFailed, MeasurementFailed: of the model in float32.
    """
    folder, slim = candidate.folder, candidate.folder / "slim"
    path = folder / PRECISION_FILE

    def work() -> None:
        document = _judge_all(candidate, gate, narrator)
        place_artifact(folder / TRIALS_FOLDER / graph_precision(document.ships), slim)
        write(path, replace(document, slim_manifest_sha256=sha256_file(slim / "manifest.json")))

    def outputs() -> list[Path]:
        return [path, *sorted(file for file in slim.iterdir() if file.is_file())]

    ran = run_stage(folder, STAGE, _made_from(candidate, gate), outputs, work)
    document = read_precision(path)
    if not gate.fallback and document.ships != document.asked:
        raise GateMissed(_missed(document, document.trials[0]))
    return document.ships, ran


def place_artifact(source: Path, out: Path) -> None:
    """The artifact of `source` at `out`, whole or not at all; hard links where the file system has them."""
    with replaced_folder(out) as fresh:
        for path in sorted(file for file in source.iterdir() if file.is_file()):
            link_or_copy(path, fresh / path.name)


def _made_from(candidate: Candidate, gate: PrecisionGate) -> dict[str, Any]:
    """All that the gate's verdict depends on; kernels differ from CPU to CPU, so this machine is part of it."""
    target, facts = candidate.target, device_facts()
    return {
        **candidate.made_from,
        "calibration": sha256_file(candidate.calibration),
        "asked": target.precision,
        "drop_points": gate.drop_points,
        "runtime": target.runtime,
        "threads": target.threads,
        "device": device_name(facts),
        "libraries": facts["libraries"],
    }


def _judge_all(candidate: Candidate, gate: PrecisionGate, narrator: Narrator) -> PrecisionDocument:
    """precision.json but for the artifact that ships: each precision's trial until one passes."""
    target, calibration = candidate.target, read_clips(candidate.calibration)
    clips = gate_clips(calibration)
    runtime, note, not_here = _gate_runtime(target)
    where = (runtime, target.threads, device_name(device_facts()))
    document = PrecisionDocument(
        schema=PRECISION_SCHEMA,
        asked=target.precision,
        ships=PLAIN,
        drop_points=gate.drop_points,
        metric=metric_of(clips),
        gate=GateFacts(*where, len(clips), quantiser_clips(len(calibration)), note),
        trials=(),
        slim_manifest_sha256="",
    )
    court = _Court(candidate, clips, runtime, not_here, narrator)
    for precision in precisions_to_try(target.precision, _offered(target)):
        if precision == PLAIN:
            candidate.export(PLAIN)
            break
        trial = court.judge(precision, gate.drop_points)
        document = replace(document, trials=(*document.trials, trial))
        narrator.say(f"  {trial_sentence(document, trial)}")
        if trial.verdict != FAILED:
            document = replace(document, ships=precision)
            break
        if not gate.fallback:
            raise GateMissed(_missed(document, trial))
    if document.ships != document.asked:
        narrator.say(f"  {document.ships} ships in place of {document.asked}")
    return document


def _missed(document: PrecisionDocument, trial: Trial) -> str:
    return f"precision gate: {trial_sentence(document, trial)}"


def _offered(target: Target) -> tuple[str, ...]:
    """What the target's runtime computes in: here, or, of a target that is elsewhere, at all.

    There a GPU's bf16 cannot be judged, so it takes the place of no other precision.
    """
    runtime = choose_runtime(target.runtime)
    if not target.on_device and runtime.available() is None:
        return runtime.precisions()
    return tuple(name for name in runtime.PRECISIONS if not (runtime.ON_GPU and graph_precision(name) != name))


def _gate_runtime(target: Target) -> tuple[str, str, str]:
    """The runtime that the gate runs on, a note on it, and why there is none here."""
    reason = choose_runtime(target.runtime).available()
    if reason is None:
        return target.runtime, "", ""
    if choose_runtime(target.runtime).ON_GPU:
        return "onnxruntime", IMITATED, choose_runtime("onnxruntime").available() or ""
    return target.runtime, "", reason


class _Court:
    """Judges precisions one after another, and keeps the answers of the model in float32 for all of them."""

    def __init__(self, candidate: Candidate, clips: Clips, runtime: str, not_here: str, narrator: Narrator) -> None:
        self._candidate, self._clips, self._runtime, self._narrator = candidate, clips, runtime, narrator
        self._not_here = not_here
        self._path = candidate.folder / TRIALS_FOLDER / "clips.npz"
        self._reference: ClipAnswers | None = None

    def judge(self, precision: str, drop_points: float) -> Trial:
        """The trial of one precision."""
        try:
            artifact = self._candidate.export(graph_precision(precision))
        except ParityFailed as error:
            return Trial(precision, FAILED, str(error))
        reason = self._why_not(precision)
        if reason:
            return Trial(precision, NOT_GATED, reason)
        write_clips(self._path, self._clips)
        plain = self._candidate.export(PLAIN)
        try:
            if self._reference is None:
                self._reference = self._answers(plain, PLAIN)
        except NO_ANSWERS as error:
            if self._runtime == self._candidate.target.runtime:
                raise
            return Trial(precision, NOT_GATED, str(error))
        try:
            answers = self._answers(artifact, precision)
        except NO_ANSWERS as error:
            return Trial(precision, FAILED, str(error))
        compared = compare_answers(
            self._clips, self._reference, answers, read_artifact(plain), self._candidate.spellings
        )
        passed = is_within(loss_of(compared.change.interval, metric_of(self._clips)), drop_points)
        return Trial(precision, PASSED if passed else FAILED, **vars(compared))

    def _why_not(self, precision: str) -> str:
        """Why a precision cannot be gated on this machine, "" where it can."""
        if self._not_here:
            return self._not_here
        if not len(self._clips):
            return "all calibration clips calibrate the quantiser; the gate needs some of its own"
        if self._clips.tags is not None and not self._clips.tags.any():
            return "none of the gate's clips has a label"
        if self._clips.texts is not None and not any(text.strip() for text in self._clips.texts):
            return "the gate's clips have no words"
        if self._runtime != self._candidate.target.runtime:
            return "" if graph_precision(precision) == precision else f"nothing here imitates {precision}"
        offered = choose_runtime(self._runtime).precisions()
        return "" if precision in offered else f"{self._runtime} does not compute in {precision} on this machine"

    def _answers(self, artifact: Path, precision: str) -> ClipAnswers:
        """Label ids, logits of all labels, or transcripts of the gate's clips."""
        target = self._candidate.target
        imitated = self._runtime != target.runtime and precision == "fp16"
        options = SessionOptions(threads=target.threads, precision=PLAIN if imitated else precision)
        clips = [sha256_file(self._candidate.calibration), *self._clips.names]
        key = [read_artifact(artifact).identity, clips, self._runtime, precision, target.threads]
        name = f"answers-{precision}-{sha256_json([*key, device_facts()['libraries']])[:16]}"
        place = self._candidate.folder / TRIALS_FOLDER / name
        with self._narrator.step(f"precision gate: {precision} on {len(self._clips)} calibration clips") as report:
            store = place.with_suffix(".npz" if self._clips.texts is None else ".json")
            return clip_answers(self._clips, artifact, self._path, self._runtime, options, store, report)


def clip_answers(
    clips: Clips, artifact: Path, path: Path, runtime: str, options: SessionOptions, store: Path, progress: Report
) -> ClipAnswers:
    """What an artifact answers to `clips`, which are in `path`: label ids, logits of all labels, or transcripts."""
    if clips.texts is not None:
        return evaluate_transcripts(artifact, path, runtime, options, store=store, progress=progress)
    _, logits = evaluate_logits(artifact, path, runtime, options, store=store, progress=progress)
    return logits if clips.tags is not None else tuple(map(int, logits.argmax(axis=1)))


def compare_answers(
    clips: Clips, reference: Any, answers: Any, artifact: Artifact, spellings: dict[str, str] | None
) -> Compared:
    """The metric of two sets of answers to `clips`, its change with a paired interval, and how many of them differ.

    reference, answers: as `clip_answers` gives them; artifact: says what language is spoken.
    """
    if clips.tags is not None:
        shares = [float(np.nanmean(average_precisions(scores, clips.tags))) for scores in (reference, answers)]
        change = tag_change(reference, answers, clips.tags).interval
        return _compared(shares[0], shares[1], change, differing_answers(reference, answers))
    if clips.texts is None:
        truth = [int(label) for label in clips.label_ids]
        change = accuracy_change(reference, answers, truth).change
        right = [float((np.asarray(ids) == np.asarray(truth)).mean()) for ids in (reference, answers)]
        return _compared(right[0], right[1], change, sum(a != b for a, b in zip(reference, answers, strict=True)))
    heard = [each.language for each in reference]
    normaliser = choose_normaliser(written_language(artifact.speech.decoding, NOTHING_ASKED, heard), spellings)
    texts = [[each.text for each in transcripts] for transcripts in (reference, answers)]
    counted = [count_word_errors(clips.texts, each, normaliser) for each in texts]
    words = counted[0].reference_words
    rates = [sum(each.errors) / sum(words) for each in counted]
    change = word_error_change(counted[0].errors, counted[1].errors, words).change
    said = [[" ".join(normaliser.apply(text).split()) for text in each] for each in texts]
    return _compared(rates[0], rates[1], change, sum(a != b for a, b in zip(*said, strict=True)))


def _compared(reference: float, measured: float, change: Interval, differing: int) -> Compared:
    ends = (change.low, change.high) if change.has_spread else (None, None)
    return Compared(reference, measured, Change(change.estimate, *ends), differing)
