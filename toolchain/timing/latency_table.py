"""What the attention blocks of a model cost on this device and runtime, timed through the exporter, as a table.

A block's cost is a sum of parts that a least-squares fit takes from timings of blocks of many widths: one for the
block, one for every further group of heads, one for every head, and ones in proportion to the heads' widths. So the
cost of a plan adds up over its heads, as a search needs it. What the parts leave unexplained is in the table too.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from leanear.export.ast.graph import patch_size, token_count
from leanear.export.blocks import KINDS, exported_groups
from leanear.export.onnx.heads import VECTOR_COLUMNS, HeadGroup, read_widths
from leanear.families.family import Checkpoint
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import Amount, Positive
from leanear.timing.table_file import Kept, fit_nonnegative

Widths = Sequence[tuple[int, int]]
"""(K, V) of every kept head of one attention block."""
BLOCK = "block_ms"  # layer norm, residual and starting
HEAD_PARTS = ("group_ms", "cut_ms", "head_ms", "query_key_ms", "value_output_ms", "vector_ms")
"""What the heads of a block cost: every group after the first; every column that is cut into groups and joined again;
every head; every column of K, of V, and of V filled up to whole vectors."""
FEW_QUERIES = ("last", "decoder")  # kinds of which a query or two are computed, where no whole vectors show


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


class Table(Kept, ABC):
    """What a latency table of either family tells of attention blocks of its kinds; parts: milliseconds, by kind."""

    KINDS: ClassVar[tuple[str, ...]]
    PARTS: ClassVar[tuple[str, ...]]

    geometry: HasHeads
    graph_form: str
    rest_ms: float
    parts: dict[str, dict[str, float]]

    @property
    @abstractmethod
    def site_kinds(self) -> tuple[str, ...]:
        """The kind of every block, in the order of the model's attention sites."""

    @abstractmethod
    def groups(self, kind: str, widths: Widths) -> tuple[HeadGroup, ...]:
        """The groups in which the exporter computes heads of these widths."""

    @property
    def fault(self) -> str | None:
        """What is wrong with the table, in a few words."""
        known = set(self.parts) == set(self.KINDS)
        if known and all(set(parts) == set(self.PARTS) for parts in self.parts.values()):
            return None
        return f"parts have to be of the kinds {', '.join(self.KINDS)}, each of {', '.join(self.PARTS)}"

    def block_ms(self, kind: str) -> float:
        """What a block costs apart from its heads; nothing where that is in the rest."""
        return self.parts[kind].get(BLOCK, 0.0)

    def head_ms(self, kind: str, query_key_width: int, value_output_width: int) -> float:
        """What one head of these widths adds to a block whose heads are all in one group."""
        return self._heads_ms(kind, [(query_key_width, value_output_width)])

    def site_ms(self, kind: str, widths: Widths) -> float:
        """One block with heads of these widths, in the groups and filled up as the exporter does."""
        return self.block_ms(kind) + self._heads_ms(kind, widths)

    def _heads_ms(self, kind: str, widths: Widths) -> float:
        parts = self.parts[kind]
        return sum(parts[name] * often for name, often in head_parts(kind, self.groups(kind, widths)).items())

    @property
    def dense_site(self) -> tuple[tuple[int, int], ...]:
        """(K, V) of every head of a dense block."""
        return ((self.geometry.head_width,) * 2,) * self.geometry.heads

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

    SCHEMA: ClassVar[str] = "leanear-latency-table-1"
    KINDS: ClassVar[tuple[str, ...]] = KINDS
    PARTS: ClassVar[tuple[str, ...]] = (BLOCK, *HEAD_PARTS)

    geometry: Geometry
    graph_form: str
    rest_ms: Amount
    model: ModelTiming
    parts: dict[str, dict[str, Amount]]
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


def site_kind(layer: int, layers: int) -> str:
    """The kind of a layer's attention block."""
    return "last" if layer + 1 == layers else "ordinary"


def whole_vectors(width: int) -> int:
    """A width filled up to whole vectors."""
    return -(-width // VECTOR_COLUMNS) * VECTOR_COLUMNS


def head_parts(kind: str, groups: Sequence[HeadGroup]) -> dict[str, float]:
    """How often every one of `HEAD_PARTS` is in a block with these groups of heads."""
    heads = [(group.query_key_width, group.value_output_width) for group in groups for _ in group.heads]
    query_key, value_output = sum(width for width, _ in heads), sum(width for _, width in heads)
    vectors = 0 if kind in FEW_QUERIES else sum(whole_vectors(width) for _, width in heads)
    cut = 2 * (query_key + value_output) if len(groups) > 1 else 0
    often: tuple[float, ...] = (max(0, len(groups) - 1), cut, len(heads), query_key, value_output, vectors)
    return dict(zip(HEAD_PARTS, often, strict=True))


def fit_parts(kind: str, timed: Sequence[tuple[Widths, float]], geometry: Geometry, form: str) -> dict[str, float]:
    """The parts, none of them negative, whose sums are nearest to timed blocks: least squares of relative errors."""
    groups = (exported_groups(kind, widths, geometry.tokens, geometry.model_width, form) for widths, _ in timed)
    rows = [{BLOCK: 1.0} | head_parts(kind, each) for each in groups]
    return fit_nonnegative(rows, [milliseconds for _, milliseconds in timed])


def tie_widths(table: Table, kind: str, widths: Widths) -> list[tuple[int, int]]:
    """Widths at least as large in every head, whose block costs no more: what the exporter fills with zeros is kept.

    Of the groups that the exporter makes and of one group of all heads the faster is taken, as the table has it; then
    value widths grow to the whole vector where that is free. No width exceeds the dense head's.
    """
    limit, filled = table.geometry.head_width, list(widths)
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


def model_sites(checkpoint: Checkpoint) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(K, V) of every head of every layer of a loaded checkpoint."""
    layers = checkpoint.model.audio_spectrogram_transformer.layers
    return tuple(tuple(zip(*read_widths(layer.attention), strict=True)) for layer in layers)
