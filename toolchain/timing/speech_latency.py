"""What the attention of a Whisper costs on this device and runtime, for a stated work, as a table.

Slim models of many widths are exported and timed in turn with the dense one, stage by stage: the encoder's stage has
the encoder's blocks and the making of cross-attention's keys and values, the decoder's steps have self- and
cross-attention. A least-squares fit of each stage over all models says what a head and its columns cost in a block of
every kind; what no width changes is the rest. Blocks are timed where they work: among the other weights, in the
session, window and precision that ship.

Dimension letters: H heads, K per-head query/key width, V per-head value/output width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from leanear.export.blocks import exported_groups
from leanear.export.onnx.attention import HeadGroup
from leanear.runtimes.records import Amount, Positive
from leanear.timing.latency_table import HEAD_PARTS, Table, Widths, head_parts
from leanear.timing.table_file import fit_nonnegative

KINDS = ("encoder", "decoder", "cross")
ENCODER_STAGE, STEPS_STAGE = "encoder", "steps"
REST = "rest_ms"


@dataclass(frozen=True)
class SpeechGeometry:
    """All of a dense model's dimensions on which the latency of its work depends, and that work.

    positions: of the full window, by which the exporter groups heads; window_samples: that the encoder is given.
    """

    positions: Positive
    model_width: Positive
    heads: Positive
    head_width: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    encoder_feed_forward_width: Positive
    decoder_feed_forward_width: Positive
    mel_bins: Positive
    vocabulary: Positive
    decoder_positions: Positive
    clip_samples: Positive
    window_samples: Positive
    any_window: bool
    prompt_tokens: Positive
    tokens: Positive


@dataclass(frozen=True)
class SpeechProbe:
    """A model that was timed: the widths of all blocks of each kind; medians of its stages and what the parts say."""

    widths: dict[str, tuple[tuple[Positive, Positive], ...]]
    measured_ms: dict[str, Amount]
    fitted_ms: dict[str, Amount]


@dataclass(frozen=True)
class SpeechTable(Table):
    """Milliseconds of one inference's attention blocks on one device, runtime, precision and number of threads.

    rest_ms: all that no head's width changes; parts: by kind of block, what they cost in one inference; probes: the
    models that were timed, the dense one first; others_share: of all cores, what other programs used meanwhile.
    """

    SCHEMA: ClassVar[str] = "leanear-speech-latency-table-1"
    KINDS: ClassVar[tuple[str, ...]] = KINDS
    PARTS: ClassVar[tuple[str, ...]] = HEAD_PARTS

    geometry: SpeechGeometry
    graph_form: str
    rest_ms: Amount
    parts: dict[str, dict[str, Amount]]
    probes: tuple[SpeechProbe, ...]
    others_share: Amount
    key: dict[str, Any]

    @property
    def site_kinds(self) -> tuple[str, ...]:
        """The kind of every block, in the order of the model's attention sites."""
        return ("encoder",) * self.geometry.encoder_layers + ("decoder", "cross") * self.geometry.decoder_layers

    def groups(self, kind: str, widths: Widths) -> tuple[HeadGroup, ...]:
        """The groups in which the exporter computes heads of these widths."""
        return _groups(kind, widths, self.geometry, self.graph_form)


def _groups(kind: str, widths: Widths, geometry: SpeechGeometry, form: str) -> tuple[HeadGroup, ...]:
    block = "ordinary" if kind == "encoder" else "cached"
    return exported_groups(block, widths, geometry.positions, geometry.model_width, form)


def fit_speech_parts(
    timed: Sequence[tuple[Mapping[str, Widths], Mapping[str, float]]], geometry: SpeechGeometry, form: str
) -> tuple[float, dict[str, dict[str, float]], list[dict[str, float]]]:
    """The rest, the parts of every kind, and the milliseconds that these say of every stage of every model.

    timed: for every model the widths of all its blocks of each kind, and its stages' milliseconds.
    """
    layers = {"encoder": geometry.encoder_layers, "decoder": geometry.decoder_layers, "cross": geometry.decoder_layers}
    features = [
        {kind: head_parts(kind, _groups(kind, widths[kind], geometry, form)) for kind in KINDS} for widths, _ in timed
    ]
    in_stage: dict[str, dict[str, tuple[str, ...]]] = {
        ENCODER_STAGE: {"encoder": HEAD_PARTS, "cross": ("query_key_ms", "value_output_ms")},
        STEPS_STAGE: {"decoder": HEAD_PARTS, "cross": HEAD_PARTS},
    }
    parts: dict[str, dict[str, float]] = {kind: dict.fromkeys(HEAD_PARTS, 0.0) for kind in KINDS}
    rest = 0.0
    said: list[dict[str, float]] = [{} for _ in timed]
    for stage, kinds in in_stage.items():
        rows = [
            {REST: 1.0}
            | {f"{kind} {name}": layers[kind] * of[kind][name] for kind, names in kinds.items() for name in names}
            for of in features
        ]
        found = fit_nonnegative(rows, [milliseconds[stage] for _, milliseconds in timed])
        for number, row in enumerate(rows):
            said[number][stage] = sum(found[name] * value for name, value in row.items())
        rest += found[REST]
        for kind, names in kinds.items():
            for name in names:
                parts[kind][name] += found[f"{kind} {name}"]
    return rest, parts, said
