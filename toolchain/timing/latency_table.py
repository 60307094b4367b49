"""What the attention blocks of a model cost on this device and runtime, timed through the exporter, as a table.

A block's cost is a sum of parts that a least-squares fit takes from timings of blocks of many widths: one for the
block, one for every further group of heads, one for every head, and ones in proportion to the heads' widths. So the
cost of a plan adds up over its heads, as a search needs it. What the parts leave unexplained is in the table too.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from leanear.export.ast.graph import patch_size, token_count
from leanear.export.blocks import KINDS, exported_groups
from leanear.export.onnx.heads import VECTOR_COLUMNS, HeadGroup, read_widths
from leanear.families.family import Checkpoint
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import Amount, Positive
from leanear.timing.parts_fit import fit_nonnegative
from leanear.timing.table_file import read_table_document, table_document

TABLE_SCHEMA = "leanear-latency-table-1"

Widths = Sequence[tuple[int, int]]
"""(K, V) of every kept head of one attention block."""


@dataclass(frozen=True)
class Geometry:
    """All of a dense model's dimensions on which its latency depends; the widths that a plan keeps are not among them.

    clip_samples: a waveform that fills the model's window; patch_values: mel bins times frames of one patch.
    """

    tokens: Positive
    model_width: Positive
    heads: Positive
    head_width: Positive
    layers: Positive
    feed_forward_width: Positive
    frames: Positive
    mel_bins: Positive
    patch_values: Positive
    labels: Positive
    clip_samples: Positive


@dataclass(frozen=True)
class Parts:
    """What an attention block's milliseconds are made of.

    block_ms: layer norm, residual and starting; group_ms: every group after the first; cut_ms: every column that is cut
    into groups and joined again; head_ms: every head; query_key_ms, value_output_ms: every column of K or V; vector_ms:
    every column of V filled up to whole vectors.
    """

    block_ms: Amount
    group_ms: Amount
    cut_ms: Amount
    head_ms: Amount
    query_key_ms: Amount
    value_output_ms: Amount
    vector_ms: Amount


@dataclass(frozen=True)
class Probe:
    """Blocks of some widths as they were timed: the median of one block, its quartiles, and what the parts say."""

    kind: str
    widths: tuple[tuple[Positive, Positive], ...]
    median_ms: Amount
    lower_quartile_ms: Amount
    upper_quartile_ms: Amount
    fitted_ms: Amount


@dataclass(frozen=True)
class ModelTiming:
    """The whole model that was timed in turn with the blocks: the widths of its layers' heads, median and quartiles."""

    sites: tuple[tuple[tuple[Positive, Positive], ...], ...]
    median_ms: Amount
    lower_quartile_ms: Amount
    upper_quartile_ms: Amount


class HasHeads(Protocol):
    """Dimensions of a model whose attention blocks are alike."""

    @property
    def heads(self) -> int: ...

    @property
    def head_width(self) -> int: ...


class Table(ABC):
    """What a latency table of either family tells of attention blocks of some kind."""

    geometry: HasHeads
    graph_form: str
    rest_ms: float
    others_share: float

    @property
    @abstractmethod
    def site_kinds(self) -> tuple[str, ...]:
        """The kind of every block, in the order of the model's attention sites."""

    @abstractmethod
    def groups(self, kind: str, widths: Widths) -> tuple[HeadGroup, ...]:
        """The groups in which the exporter computes heads of these widths."""

    @abstractmethod
    def block_ms(self, kind: str) -> float:
        """What a block costs apart from its heads."""

    @abstractmethod
    def head_ms(self, kind: str, query_key_width: int, value_output_width: int) -> float:
        """What one head of these widths adds to a block whose heads are all in one group."""

    @abstractmethod
    def site_ms(self, kind: str, widths: Widths) -> float:
        """One block with heads of these widths, in the groups and filled up as the exporter does."""

    @property
    def dense_site(self) -> tuple[tuple[int, int], ...]:
        """(K, V) of every head of a dense block."""
        return ((self.head_width,) * 2,) * self.geometry.heads

    @property
    def head_width(self) -> int:
        """K and V of a dense head."""
        return self.geometry.head_width

    def model_ms(self, sites: Sequence[Widths]) -> float:
        """A whole model whose blocks, in the order of its attention sites, have heads of these widths."""
        if len(sites) != len(self.site_kinds):
            raise BadInput(f"latency table: widths of {len(sites)} blocks for a model of {len(self.site_kinds)}")
        return self.rest_ms + sum(map(self.site_ms, self.site_kinds, sites))


@dataclass(frozen=True)
class LatencyTable(Table):
    """Milliseconds of attention blocks on one device, runtime, precision and number of threads.

    rest_ms: all of the model that is not an attention block: front end, patches, MLPs and head; parts: by kind,
    "ordinary" for all layers but the "last", which is computed for the tokens that the classifier reads; others_share:
    of all cores, what other programs used while it was timed.
    """

    geometry: Geometry
    graph_form: str
    rest_ms: Amount
    model: ModelTiming
    parts: dict[str, Parts]
    probes: tuple[Probe, ...]
    others_share: Amount
    key: dict[str, Any]

    @property
    def site_kinds(self) -> tuple[str, ...]:
        """The kind of every layer's attention block."""
        return tuple(site_kind(layer, self.geometry.layers) for layer in range(self.geometry.layers))

    def groups(self, kind: str, widths: Widths) -> tuple[HeadGroup, ...]:
        """The groups in which the exporter computes heads of these widths."""
        return exported_groups(kind, widths, self.geometry.tokens, self.geometry.model_width, self.graph_form)

    def head_ms(self, kind: str, query_key_width: int, value_output_width: int) -> float:
        """What one head of these widths adds to a block whose heads are all in one group."""
        group = self.groups(kind, [(query_key_width, value_output_width)])[0]
        return _group_ms(self.parts[kind], 1, group.query_key_width, group.value_output_width)

    def block_ms(self, kind: str) -> float:
        """What a block costs apart from its heads."""
        return self.parts[kind].block_ms

    def site_ms(self, kind: str, widths: Widths) -> float:
        """One block with heads of these widths, in the groups and filled up as the exporter does."""
        features = _features(kind, widths, self.geometry, self.graph_form)
        parts = asdict(self.parts[kind])
        return sum(parts[name] * value for name, value in features.items())


def site_kind(layer: int, layers: int) -> str:
    """The kind of a layer's attention block."""
    return "last" if layer + 1 == layers else "ordinary"


def _group_ms(parts: Parts, heads: int, query_key_width: int, value_output_width: int) -> float:
    return heads * (
        parts.head_ms
        + parts.query_key_ms * query_key_width
        + parts.value_output_ms * value_output_width
        + parts.vector_ms * whole_vectors(value_output_width)
    )


def whole_vectors(width: int) -> int:
    """A width filled up to whole vectors."""
    return -(-width // VECTOR_COLUMNS) * VECTOR_COLUMNS


def _features(kind: str, widths: Widths, geometry: Geometry, form: str) -> dict[str, int]:
    """How often every one of `Parts` is in a block with heads of these widths."""
    groups = exported_groups(kind, widths, geometry.tokens, geometry.model_width, form)
    query_key = sum(len(group.heads) * group.query_key_width for group in groups)
    value_output = sum(len(group.heads) * group.value_output_width for group in groups)
    return {
        "block_ms": 1,
        "group_ms": len(groups) - 1,
        "cut_ms": 2 * (query_key + value_output) if len(groups) > 1 else 0,
        "head_ms": len(widths),
        "query_key_ms": query_key,
        "value_output_ms": value_output,
        "vector_ms": 0
        if kind == "last"
        else sum(len(group.heads) * whole_vectors(group.value_output_width) for group in groups),
    }


def fit_parts(kind: str, timed: Sequence[tuple[Widths, float]], geometry: Geometry, form: str) -> Parts:
    """The parts, none of them negative, whose sums are nearest to timed blocks: least squares of relative errors."""
    rows = [_features(kind, widths, geometry, form) for widths, _ in timed]
    return Parts(**fit_nonnegative(rows, [milliseconds for _, milliseconds in timed]))


def tie_widths(table: Table, kind: str, widths: Widths) -> list[tuple[int, int]]:
    """Widths at least as large in every head, whose block costs no more: what the exporter fills with zeros is kept.

    Of the groups that the exporter makes and of one group of all heads the faster is taken, as the table has it; then
    value widths grow to the whole vector where that is free. No width exceeds the dense head's.
    """
    limit, filled = table.head_width, list(widths)
    for group in table.groups(kind, widths):
        for head in group.heads:
            filled[head] = (min(group.query_key_width, limit), min(group.value_output_width, limit))
    most = (max(width for width, _ in filled), max(width for _, width in filled))
    candidates = [filled, [most] * len(filled)]
    candidates += [[(key, min(whole_vectors(value), limit)) for key, value in each] for each in candidates]
    bound = table.site_ms(kind, widths) * (1 + 1e-9)
    cheap = [each for each in candidates if table.site_ms(kind, each) <= bound] or [list(widths)]
    return max(cheap, key=lambda each: (-round(table.site_ms(kind, each), 6), sum(map(sum, each))))


def read_geometry(checkpoint: Checkpoint) -> Geometry:
    """The dimensions of a loaded checkpoint, dense or slim; a slim one still says how wide its dense heads were."""
    config, extractor = checkpoint.model.config, checkpoint.feature_extractor
    height, length = patch_size(config)
    return Geometry(
        tokens=token_count(config),
        model_width=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        head_width=int(config.hidden_size) // int(config.num_attention_heads),
        layers=int(config.num_hidden_layers),
        feed_forward_width=int(config.intermediate_size),
        frames=int(config.max_length),
        mel_bins=int(config.num_mel_bins),
        patch_values=height * length,
        labels=int(config.num_labels),
        clip_samples=int(config.max_length) * (extractor.sampling_rate // 100),
    )


def table_to_json(table: LatencyTable) -> dict[str, Any]:
    """The table as its file holds it."""
    return table_document(TABLE_SCHEMA, table)


def read_table(path: Path, key: dict[str, Any] | None = None) -> LatencyTable:
    """The table in `path`, which must have been timed for `key` where one is given.

    Raises:
        BadInput: the file is missing, malformed, or for something else.
    """
    table = read_table_document(LatencyTable, TABLE_SCHEMA, path, key)
    if set(table.parts) != set(KINDS) or any(probe.kind not in KINDS for probe in table.probes):
        raise BadInput(f"{path}: parts and probes have to be of the kinds {', '.join(KINDS)}")
    return table


def model_sites(checkpoint: Checkpoint) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(K, V) of every head of every layer of a loaded checkpoint."""
    layers = checkpoint.model.audio_spectrogram_transformer.layers
    return tuple(tuple(zip(*read_widths(layer.attention), strict=True)) for layer in layers)
