"""How a checkpoint becomes an artifact: what every family's exporter is told."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanear.runtimes.manifest import Alignment
from leanear.runtimes.speech.encoder_windows import FULL


@dataclass(frozen=True)
class ExportOptions:
    """What is to be exported.

    source: what the manifest should say of the model besides its sizes; made_from: sha256 of the inputs by name;
    precision: of the products, "fp32", "fp16" or "int8"; quantiser_waveforms: real clips that the ranges of integers
    are taken from, like the golden ones; window: of a Whisper, which windows its encoder takes
    (`leanear.runtimes.speech.encoder_windows`); left_in_float32: tensors of its encoder that stay so; alignment: the
    heads that its word times are taken from.
    """

    form: str
    source: dict[str, Any]
    made_from: dict[str, Any]
    precision: str = "fp32"
    quantiser_waveforms: Sequence[np.ndarray] = ()
    window: str = FULL
    left_in_float32: Collection[str] = ()
    alignment: Alignment | None = None
