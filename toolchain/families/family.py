"""What leanear asks of a family of models: the one contract between a family's module and everything else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.export.macs import Macs
from leanear.export.options import ExportOptions
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.plan import Plan, SitePlan
from leanear.progress import Report, quiet
from leanear.runtimes.clips import Clips


class Checkpoint(Protocol):
    """A checkpoint in memory, in eval mode.

    model: transformers' own model, or the slim one of its family; feature_extractor: what makes its inputs, with a
    `sampling_rate`; labels: one per logit of a classifier, none of a speech model; metric: what the share of its
    mistakes is told of.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def model(self) -> Any: ...

    @property
    def feature_extractor(self) -> Any: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def metric(self) -> str: ...


@dataclass(frozen=True)
class AttentionBlocks:
    """What the exporter builds of a model's attention: the kind of each block, as in `leanear.export.blocks`.

    tokens: that the blocks' heads are grouped for; model_width: of the layers between them.
    """

    kinds: tuple[str, ...]
    tokens: int
    model_width: int


class Family(Protocol):
    """A module of `leanear.families`, or any other that `registry.FAMILIES` names.

    `checkpoint` is what its own `load_checkpoint` gave, `model` that checkpoint's or one of its `slim_model`. All
    errors are `BadInput`.
    """

    FAMILY: str  # as plans and manifests name it

    def load_checkpoint(self, folder: Path, asked: Asked = NOTHING_ASKED) -> Any:
        """The dense or slim checkpoint in `folder`, fp32; no code in it is run. asked: becomes the model's default."""

    def attention_sites(self, model: Any) -> tuple[AttentionSite, ...]:
        """The model's attention blocks, dense or slim, in the order of plans."""

    def feed_forward_sites(self, model: Any) -> tuple[FeedForwardSite, ...]:
        """The feed-forward blocks that may become smaller, in the order of plans; none where a family has none."""

    def dense_plan(self, model: Any) -> Plan:
        """The plan that keeps all of a dense model; a slim one is refused."""

    def encoder_layers(self, model: Any) -> tuple[torch.nn.Module, ...]:
        """All transformer layers, for activation checkpointing and to compare their outputs."""

    def decoder_layers(self, model: Any) -> tuple[torch.nn.Module, ...]:
        """Those of them whose outputs stand at the positions of a sequence's targets."""

    def window_samples(self, feature_extractor: Any) -> int:
        """How much of a waveform the model hears, at most."""

    def features(self, feature_extractor: Any, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """What the model takes of waveforms, float32 (samples,) each: fp32 (B, ...)."""

    def labelled_inputs(self, checkpoint: Any, clips: Clips, report: Report = quiet) -> LabelledInputs:
        """The clips as the model takes them, with the targets of each."""

    def calibration_inputs(self, checkpoint: Any, clips: Clips, report: Report = quiet) -> LabelledInputs:
        """The same of clips to calibrate on, which a family may join."""

    def logits(self, model: Any, inputs: Any) -> torch.Tensor:
        """Logits (B, labels), or (B, L, vocabulary), of a batch of inputs, on the model's device."""

    def encoded(self, model: Any, inputs: Any, batch_size: int) -> Any:
        """The inputs with what the encoder makes of them: enough where only a decoder's block changes."""

    def batch_loss(self, model: Any, inputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of a batch's targets."""

    def mistakes(self, checkpoint: Any, model: Any, clips: LabelledInputs, answers: torch.Tensor) -> Mistakes:
        """What a user would call wrong, clip by clip. answers: the model's logits of a classifier's clips."""

    def activation_bytes(self, model: Any, inputs: Any) -> int:
        """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""

    def macs(self, checkpoint: Any, model: Any, form: str = "portable") -> Macs:
        """The MACs of one inference of the model, dense or slim, exported in `form` with the checkpoint's front end."""

    def attention_blocks(self, model: Any) -> AttentionBlocks:
        """What the exporter makes of the blocks, by which heads are grouped and padded."""

    def slim_model(
        self,
        model: Any,
        sites: tuple[SitePlan, ...],
        attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
        feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> Any:
        """A new model with what `sites` keeps, or with these weights of the blocks, and all else copied.

        feed_forward_states: weights of the feed-forward blocks that become smaller, by name.
        """

    def save_slim_checkpoint(self, model: Any, source: Any, plan: Plan, out: Path, facts: Any = None) -> None:
        """Write the slim checkpoint folder, whole or not at all; facts: the document pruning.json, if there is one."""

    def export(
        self, checkpoint: Any, golden_waveforms: Sequence[np.ndarray], out: Path, options: ExportOptions
    ) -> object:
        """Write the artifact folder, whole or not at all, its parity null."""
