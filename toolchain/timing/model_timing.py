"""How models of either family are timed on a target: by a latency table, and the finished one beside the dense one."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch

from leanear.benchmarks.analysis import disturbed
from leanear.benchmarks.measure.processes import absolute
from leanear.benchmarks.summary import summarise_latency
from leanear.families import ast, whisper
from leanear.families.ast import AstCheckpoint
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of
from leanear.families.whisper import WhisperCheckpoint
from leanear.plan import Prune
from leanear.progress import Report, in_parts
from leanear.runtimes.errors import BadInput
from leanear.targets.target import Target
from leanear.timing.block_timing import InTurn, export_ast_to_time, feed_forward_table, latency_table, time_in_turn
from leanear.timing.latency_table import Table
from leanear.timing.speech_timing import (
    export_to_time,
    speech_feed_forward_table,
    speech_table,
    time_dense_and_slim,
    work_of,
)
from leanear.timing.speech_work import SpeechWork
from leanear.timing.table_file import FeedForwardTable, TableSource


@dataclass(frozen=True)
class Timed:
    """What is timed: seconds of audio, and of a Whisper tokens and a window, as asked for and in seconds."""

    precision: str
    audio_s: float
    tokens: int | None = None
    window: str | None = None
    window_s: float | None = None
    OMIT_NONE: ClassVar[tuple[str, ...]] = ("tokens", "window", "window_s")


class ModelTiming(Protocol):
    """What a goal in milliseconds needs to know of a checkpoint on a target.

    audio_s: seconds of audio that one inference hears; attention, feed_forward: the latency tables of these blocks.
    """

    audio_s: float
    attention: TableSource[Any]
    feed_forward: TableSource[FeedForwardTable]

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> InTurn:
        """Median milliseconds of the dense model and of a slim one, exported for the target, in turn."""

    def told(self) -> Timed:
        """What is timed, for the reader of pruning.json."""


@dataclass(frozen=True)
class Tables:
    """The latency tables of what is pruned, None of what is not."""

    attention: Table | None
    feed_forward: FeedForwardTable | None

    @property
    def others_share(self) -> float:
        """Of all cores, what other programs used while they were timed, at most."""
        return max(table.others_share for table in (self.attention, self.feed_forward) if table is not None)


def tables_of(timing: ModelTiming, prune: Prune, keep_busy: bool, report: Report) -> Tables:
    """The tables, each kept or timed now."""
    part = in_parts(report, {"attention": 2 * (prune != "feed-forward"), "feed-forward": prune != "attention"})
    return Tables(
        None if prune == "feed-forward" else timing.attention.get(keep_busy=keep_busy, report=part("attention")),
        None if prune == "attention" else timing.feed_forward.get(keep_busy=keep_busy, report=part("feed-forward")),
    )


def kept_tables(timing: ModelTiming, prune: Prune) -> Tables | None:
    """The tables where all that are wanted are kept."""
    attention = None if prune == "feed-forward" else timing.attention.kept()
    feed_forward = None if prune == "attention" else timing.feed_forward.kept()
    is_whole = (attention is None) == (prune == "feed-forward") and (feed_forward is None) == (prune == "attention")
    return Tables(attention, feed_forward) if is_whole else None


def timing_of(checkpoint: Checkpoint, target: Target, work: SpeechWork | None) -> ModelTiming:
    """How the checkpoint is timed; work: of a Whisper, None: its full window.

    Raises:
        BadInput: the work does not fit the model, or models of the family are not timed.
    """
    family = family_of(checkpoint).FAMILY
    if family == whisper.FAMILY:
        return SpeechTiming(cast(WhisperCheckpoint, checkpoint), target, work or SpeechWork())
    if family != ast.FAMILY:
        raise BadInput(f"milliseconds: models of the family {family} are not timed in this version")
    return AstTiming(cast(AstCheckpoint, checkpoint), target)


class AstTiming:
    """A classifier: one window."""

    def __init__(self, checkpoint: AstCheckpoint, target: Target) -> None:
        self._checkpoint, self._target = checkpoint, target
        rate_hz = checkpoint.feature_extractor.sampling_rate
        self._samples = int(checkpoint.model.config.max_length) * (rate_hz // 100)
        self.audio_s = self._samples / rate_hz
        self.attention: TableSource[Any] = latency_table(checkpoint, target)
        self.feed_forward = feed_forward_table(checkpoint, target)

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> InTurn:
        checkpoint, graphs = self._checkpoint, []
        with tempfile.TemporaryDirectory(prefix="leanear-check-") as folder:
            for name, model in (("dense", checkpoint.model), ("slim", slim)):
                path = Path(folder, f"{name}.onnx")
                export_ast_to_time(model, checkpoint.feature_extractor, path, self._target)
                graphs.append({"file": absolute(path), "labels": len(checkpoint.labels), "samples": self._samples})
            samples_ms, others_share = time_in_turn(graphs, self._target, report, share_s=share_s)
        spread = max(summarise_latency(each).cv for each in samples_ms)
        dense_ms, slim_ms = (float(np.median(each)) for each in samples_ms)
        return InTurn(dense_ms, slim_ms, disturbed(spread, others_share, "meanwhile"))

    def told(self) -> Timed:
        return Timed(self._target.precision, self.audio_s)


class SpeechTiming:
    """A Whisper: one window and its tokens."""

    def __init__(self, checkpoint: WhisperCheckpoint, target: Target, work: SpeechWork) -> None:
        self._checkpoint, self._target = checkpoint, target
        self._choice, self._work = work.window, work_of(checkpoint, work)
        self.audio_s = self._work.clip_s
        self.attention: TableSource[Any] = speech_table(checkpoint, target, self._work)
        self.feed_forward = speech_feed_forward_table(checkpoint, target, self._work)

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> InTurn:
        with tempfile.TemporaryDirectory(prefix="leanear-check-") as folder:
            models = [
                export_to_time(self._checkpoint, model, self._target, self._work, Path(folder) / name)
                for name, model in (("dense", self._checkpoint.model), ("slim", slim))
            ]
            return time_dense_and_slim(models, self._target, self._work, report, share_s)

    def told(self) -> Timed:
        window_s = self._work.window_samples / self._checkpoint.feature_extractor.sampling_rate
        return Timed(self._target.precision, self.audio_s, self._work.tokens, self._choice, window_s)
