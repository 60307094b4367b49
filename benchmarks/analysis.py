"""A results file with its statistics computed once, and the figures that its parts are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Sequence

import numpy as np

from leanear.benchmarks.formatting import WORD_ERROR_RATE
from leanear.benchmarks.results import Results
from leanear.benchmarks.results_document import ResultsDocument
from leanear.benchmarks.speech_analysis import SpeechAnalysis, analyse_speech
from leanear.benchmarks.summary import (
    AccuracyChange,
    Interval,
    LatencySummary,
    SpeedUp,
    accuracy_change,
    speed_up,
    summarise_latency,
    wilson_interval,
)
from leanear.benchmarks.tagging import (
    MEAN_AP,
    TagQuality,
    average_precisions,
    multi_hot,
    tag_change,
    tag_quality,
    unpacked,
)
from leanear.benchmarks.verdict import loss_of

NOISY_CV = 0.15
NOISY_BUSY_SHARE = 0.1


@dataclass(frozen=True)
class TagAnalysis:
    """What was measured of each role; change: of the mean average precision from dense to slim, a share.

    logits: float32 (clips, labels) of each role; truth: bool (clips, labels).
    """

    quality: dict[str, TagQuality]
    change: Interval | None
    logits: dict[str, np.ndarray]
    truth: np.ndarray

    def average_precisions(self, role: str) -> np.ndarray:
        """Of every label, (labels,), NaN of those that no clip has."""
        return average_precisions(self.logits[role], self.truth)


def analyse_tags(results: Results) -> TagAnalysis:
    """The statistics of a results file of the task audio-tagging."""
    measured = results.content.accuracy.roles
    truth, logits = truth_of(results), {role: logits_of(results, role) for role in results.roles if role in measured}
    paired = len(logits) == 2
    return TagAnalysis(
        quality={role: tag_quality(scores, truth) for role, scores in logits.items()},
        change=tag_change(logits["dense"], logits["slim"], truth).interval if paired else None,
        logits=logits,
        truth=truth,
    )


def truth_of(results: Results) -> np.ndarray:
    """Which labels every evaluation clip has, bool (clips, labels)."""
    accuracy = results.content.accuracy
    return multi_hot(accuracy.label_ids, len(accuracy.labels))


def logits_of(results: Results, role: str) -> np.ndarray:
    """What a role answered, float32 (clips, labels)."""
    accuracy = results.content.accuracy
    text = accuracy.roles[role].logits_float32
    return unpacked(text, len(accuracy.label_ids), len(accuracy.labels))


@dataclass(frozen=True)
class Analysis:
    """The statistics of a results file, each computed once; None where it was not measured.

    accuracy, change: of labels; speech, tags: what there is instead of them where transcripts were measured, or where
    clips may have several labels.
    """

    results: Results
    latency: dict[str, LatencySummary]
    speed: SpeedUp | None
    accuracy: dict[str, Interval]
    change: AccuracyChange | None
    speech: SpeechAnalysis | None = None
    tags: TagAnalysis | None = None

    @property
    def metric(self) -> str:
        """What is told of the answers."""
        if self.speech is not None:
            return WORD_ERROR_RATE
        return "accuracy" if self.tags is None else MEAN_AP

    @property
    def qualities(self) -> dict[str, Interval]:
        """The metric of each role's answers, a share."""
        if self.speech is not None:
            return dict(self.speech.rates)
        return dict(self.accuracy) if self.tags is None else {role: q.mean_ap for role, q in self.tags.quality.items()}

    @property
    def quality_change(self) -> Interval | None:
        """The metric's change from dense to slim, a share, paired by clip."""
        if self.speech is not None:
            return None if self.speech.change is None else self.speech.change.change
        if self.tags is not None:
            return self.tags.change
        return None if self.change is None else self.change.change

    @property
    def loss(self) -> Interval | None:
        """What of the metric was lost from dense to slim, a share: of the word error rate its rise."""
        change = self.quality_change
        return None if change is None else loss_of(change, self.metric)

    @property
    def clips(self) -> int:
        """How many clips were answered."""
        return len(self.content.accuracy.names)

    @property
    def real_time_factors(self) -> dict[str, float | None]:
        """Seconds of compute per second of audio: of the evaluation clips that were transcribed, else of a window."""
        if self.speech is not None and self.speech.counts:
            return {role: counts.real_time_factor for role, counts in self.speech.counts.items()}
        audio_s = self.content.latency.input.audio_s
        return {role: None if ms is None else ms / 1000 / audio_s for role, ms in medians_ms(self).items()}

    @property
    def noisy(self) -> str:
        """What says that the timings were disturbed, or nothing: spread, a machine that was busy or held back."""
        said = disturbance(self.latency.values(), self.content)
        is_held_back = self.content.latency.sensors.throttling.verdict == "throttled"
        held_back = "the device was held back" if is_held_back else ""
        return " and ".join(filter(None, (said, held_back)))

    @property
    def untrusted(self) -> str:
        """Why no time of these results is to be trusted, or nothing."""
        return f"the device is emulated: {self.emulated}" if self.emulated else self.noisy

    @property
    def emulated(self) -> str:
        """What processor was imitated by what other one, or nothing: no time on an emulated device is a real one's."""
        kind, _, said = str(self.content.device.get("emulation", "")).partition(": ")
        return said if kind == "yes" else ""

    @property
    def content(self) -> ResultsDocument:
        """What the results file holds."""
        return self.results.content

    @property
    def paired(self) -> bool:
        """Whether there is a dense artifact to compare with."""
        return "dense" in self.results.roles

    def name(self, role: str) -> str:
        """How the reader is told which artifact is meant."""
        return role if self.paired else "model"


def analyse(results: Results) -> Analysis:
    """The statistics of a results file."""
    samples = {role: results.samples_ms(role) for role in results.roles}
    latency_ok = results.content.latency.status == "ok"
    latency = {role: summarise_latency(all_samples(samples[role])) for role in results.roles} if latency_ok else {}
    speed = speed_up(samples["dense"], samples["slim"]) if latency_ok and "dense" in results.roles else None
    if results.is_speech:
        return Analysis(results, latency, speed, {}, None, analyse_speech(results))
    if results.is_tagging:
        return Analysis(results, latency, speed, {}, None, tags=analyse_tags(results))
    accuracy = results.content.accuracy
    answers = {role: accuracy.roles[role].predicted_ids for role in results.roles if role in accuracy.roles}
    truth = accuracy.label_ids
    return Analysis(
        results=results,
        latency=latency,
        speed=speed,
        accuracy={role: wilson_interval(correct_answers(ids, truth), len(truth)) for role, ids in answers.items()},
        change=accuracy_change(answers["dense"], answers["slim"], truth) if len(answers) == 2 else None,
    )


def disturbance(latency: Iterable[LatencySummary], content: ResultsDocument) -> str:
    """What says that these timings of a results file were disturbed, or nothing."""
    spread = max((summary.cv for summary in latency if summary.n > 1), default=0.0)
    return disturbed(spread, content.device_before.cpu_busy_share, "before the benchmark began")


def disturbed(spread: float, busy: object, when: str) -> str:
    """What says that timings were disturbed, or nothing.

    spread: of the samples, a coefficient of variation; busy: the share of all cores that other processes used, where
    that was measured, and when.
    """
    said = [f"the samples spread by {spread:.0%} (CV)"] if spread > NOISY_CV else []
    if isinstance(busy, (int, float)) and busy > NOISY_BUSY_SHARE:
        said.append(f"other processes kept the cores {busy:.0%} busy {when}")
    return " and ".join(said)


def model_numbers(analysis: Analysis, key: str) -> dict[str, float | None]:
    """What each role's manifest says of its model under `key`, None where it is not a number."""
    artifacts = analysis.content.artifacts
    found = {role: artifacts[role].model.get(key) for role in analysis.results.roles}
    return {role: value if isinstance(value, (int, float)) else None for role, value in found.items()}


def graph_bytes(analysis: Analysis) -> dict[str, float | None]:
    """Bytes of each role's graph files together."""
    artifacts = analysis.content.artifacts
    return {role: sum(graph.bytes for graph in artifacts[role].graphs.values()) for role in analysis.results.roles}


def medians_ms(analysis: Analysis) -> dict[str, float | None]:
    """Median latency of each role that was timed, None where its samples are too few."""
    return {role: summary.percentiles_ms[50] for role, summary in analysis.latency.items()}


def memory_bytes(analysis: Analysis, key: str) -> dict[str, float | None]:
    """One stage's bytes of each role whose memory was measured."""
    return {role: getattr(stages, key) for role, stages in analysis.content.memory.roles.items()}


def run_bytes(analysis: Analysis, run: int) -> dict[str, float | None]:
    """Resident bytes after one of the runs: 0 is the first, -1 the last."""
    return {role: stages.rss_run_bytes[run] for role, stages in analysis.content.memory.roles.items()}


def growth_bytes(runs: Sequence[int]) -> float | None:
    """How much resident memory grew from the second quarter of the runs to the last; None of fewer than eight."""
    if len(runs) < 8:
        return None
    quarter = len(runs) // 4
    return float(np.median(runs[-quarter:]) - np.median(runs[quarter : 2 * quarter]))


def quotient(above: float | None, below: float | None) -> float | None:
    """`above` / `below`, None where either is unknown or 0."""
    return above / below if above and below else None


def correct_answers(predicted_ids: Sequence[int], label_ids: Sequence[int]) -> int:
    """How many predictions are the label."""
    return sum(predicted == truth for predicted, truth in zip(predicted_ids, label_ids))


def all_samples(repeats: Sequence[Sequence[float]]) -> list[float]:
    """The samples of all processes, one after another."""
    return [sample for samples in repeats for sample in samples]
