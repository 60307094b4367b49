"""How models of either family are timed on a target: by a latency table, and the finished one beside the dense one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from leanear.benchmarks.measure.processes import absolute
from leanear.families import ast, whisper
from leanear.families.ast import AstCheckpoint
from leanear.families.family import Checkpoint
from leanear.families.registry import family_of
from leanear.families.whisper import WhisperCheckpoint
from leanear.progress import Report
from leanear.runtimes.errors import BadInput
from leanear.targets.target import Target
from leanear.timing.ast_timing import export_ast_to_time
from leanear.timing.block_timing import kept_table, latency_table, time_in_turn
from leanear.timing.latency_table import Table
from leanear.timing.speech_timing import export_to_time, kept_speech_table, speech_table, time_dense_and_slim, work_of
from leanear.timing.speech_work import SpeechWork


class ModelTiming(Protocol):
    """What a goal in milliseconds needs to know of a checkpoint on a target.

    audio_s: seconds of audio that one inference hears.
    """

    audio_s: float

    def table(self, keep_busy: bool, report: Report) -> Table:
        """The latency table, kept or timed now."""

    def kept_table(self) -> Table | None:
        """The latency table where it is kept."""

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> tuple[float, float]:
        """Median milliseconds of the dense model and of a slim one, exported for the target, in turn."""

    def told(self) -> dict[str, Any]:
        """What is timed, for the reader of pruning.json."""


def timing_of(checkpoint: Checkpoint, target: Target, work: SpeechWork | None) -> ModelTiming:
    """How the checkpoint is timed; work: of a Whisper, None: its full window.

    Raises:
        BadInput: a work is stated of a classifier, or does not fit the model, or models of the family are not timed.
    """
    family = family_of(checkpoint).FAMILY
    if family == whisper.FAMILY:
        return SpeechTiming(cast(WhisperCheckpoint, checkpoint), target, work or SpeechWork())
    if family != ast.FAMILY:
        raise BadInput(f"milliseconds: models of the family {family} are not timed in this version")
    if work is not None and (work.clip_s, work.tokens) != (None, None):
        raise BadInput("--clip-seconds and --tokens are for Whisper; a classifier has one window and no tokens")
    return AstTiming(cast(AstCheckpoint, checkpoint), target)


class AstTiming:
    """A classifier: one window."""

    def __init__(self, checkpoint: AstCheckpoint, target: Target) -> None:
        self._checkpoint, self._target = checkpoint, target
        rate_hz = checkpoint.feature_extractor.sampling_rate
        self._samples = int(checkpoint.model.config.max_length) * (rate_hz // 100)
        self.audio_s = self._samples / rate_hz

    def table(self, keep_busy: bool, report: Report) -> Table:
        return latency_table(self._checkpoint, self._target, keep_busy=keep_busy, report=report)

    def kept_table(self) -> Table | None:
        return kept_table(self._checkpoint, self._target)

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> tuple[float, float]:
        checkpoint, graphs = self._checkpoint, []
        with tempfile.TemporaryDirectory(prefix="leanear-check-") as folder:
            for name, model in (("dense", checkpoint.model), ("slim", slim)):
                path = Path(folder, f"{name}.onnx")
                export_ast_to_time(model, checkpoint.feature_extractor, path, self._target)
                graphs.append({"file": absolute(path), "labels": len(checkpoint.labels), "samples": self._samples})
            dense_ms, slim_ms = time_in_turn(graphs, self._target, report, share_s=share_s)[0]
        return float(np.median(dense_ms)), float(np.median(slim_ms))

    def told(self) -> dict[str, Any]:
        return {"precision": self._target.precision, "audio_s": self.audio_s}


class SpeechTiming:
    """A Whisper: one window and its tokens."""

    def __init__(self, checkpoint: WhisperCheckpoint, target: Target, work: SpeechWork) -> None:
        self._checkpoint, self._target = checkpoint, target
        self._choice, self._work = work.window, work_of(checkpoint, work)
        self.audio_s = self._work.clip_s

    def table(self, keep_busy: bool, report: Report) -> Table:
        return speech_table(self._checkpoint, self._target, self._work, keep_busy=keep_busy, report=report)

    def kept_table(self) -> Table | None:
        return kept_speech_table(self._checkpoint, self._target, self._work)

    def dense_and_slim(self, slim: torch.nn.Module, report: Report, share_s: float) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(prefix="leanear-check-") as folder:
            models = [
                export_to_time(self._checkpoint, model, self._target, self._work, Path(folder) / name)
                for name, model in (("dense", self._checkpoint.model), ("slim", slim))
            ]
            return time_dense_and_slim(models, self._target, self._work, report, share_s)

    def told(self) -> dict[str, Any]:
        rate_hz = self._checkpoint.feature_extractor.sampling_rate
        return {
            "precision": self._target.precision,
            "audio_s": self.audio_s,
            "tokens": self._work.tokens,
            "window": self._choice,
            "window_s": self._work.window_samples / rate_hz,
        }
