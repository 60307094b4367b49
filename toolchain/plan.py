"""The plan: which channels every attention head keeps, as one readable and hashable file."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from leanear.calibration.sites import AttentionKind, AttentionSite, FeedForwardKind, FeedForwardSite
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_json, write_json
from leanear.runtimes.records import Positive, as_json, read

PLAN_SCHEMA = "leanear-plan-2"
FIRST_PLAN_SCHEMA = "leanear-plan-1"  # of attention alone
DERIVED_KEYS = ("attention_parameters", "feed_forward_parameters", "sparsity", "by_kind")  # for the reader
CHANNELS_AS_TRAINED = "channels as trained"
Prune = Literal["attention", "feed-forward", "all"]
SitesChoice = Literal["all", "self-attention", "encoder"]
ROTATED = "rotated by "  # followed by what the basis was made from: the channels are those of the new basis


@dataclass(frozen=True)
class HeadPlan:
    """One kept head: its index in the dense block and the dense channels that it keeps, ascending."""

    head: int
    query_key: tuple[int, ...]
    value_output: tuple[int, ...]


@dataclass(frozen=True)
class SitePlan:
    """One attention block: how many heads it had and those that it keeps, ascending, none of one that is gone.

    kind: as of its site.
    """

    name: str
    dense_heads: int
    heads: tuple[HeadPlan, ...]
    kind: AttentionKind = "encoder"
    MAY_LACK: ClassVar[dict[str, Any]] = {"kind": "encoder"}

    @property
    def query_key_widths(self) -> tuple[int, ...]:
        """K of every kept head."""
        return tuple(len(head.query_key) for head in self.heads)

    @property
    def value_output_widths(self) -> tuple[int, ...]:
        """V of every kept head."""
        return tuple(len(head.value_output) for head in self.heads)


@dataclass(frozen=True)
class FeedForwardPlan:
    """One feed-forward block: how many hidden channels it had, and those that it keeps, ascending; none: it is gone."""

    name: str
    dense_width: int
    channels: tuple[int, ...]
    kind: FeedForwardKind = "encoder"


@dataclass(frozen=True)
class KindShare:
    """Parameters of all attention blocks of one kind that pruning could remove: in the dense model, and those kept."""

    dense: int
    kept: int

    @property
    def sparsity(self) -> float:
        """The share of them that is removed."""
        return 1.0 - self.kept / self.dense


@dataclass(frozen=True)
class Plan:
    """What is kept of a dense model's attention and feed-forward blocks.

    dense_head_width: channels of a dense head; model_width: D; projection_bias: whether query and value have biases;
    key_bias: whether keys then have one too, which Whisper's lack; scaling: the trained model's softmax scale, a
    constant; recipe: how the plan was made, for the reader; made_from: sha256 of what it was made from; basis: what the
    channels are, those that were trained, or those of a new basis, the first ones being the most important.
    feed_forward: the feed-forward blocks, whose channels always are those that were trained; none in a plan of the
    first schema, which keeps them whole. prune: which of them the plan is about, and its sparsity of.
    """

    family: str
    dense_head_width: Positive
    model_width: Positive
    projection_bias: bool
    scaling: float
    sites: tuple[SitePlan, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    made_from: dict[str, str] = field(default_factory=dict)
    basis: str = CHANNELS_AS_TRAINED
    key_bias: bool = True
    feed_forward: tuple[FeedForwardPlan, ...] = ()
    prune: Prune = "attention"
    MAY_LACK: ClassVar[dict[str, Any]] = {"key_bias": True, "feed_forward": (), "prune": "attention"}  # of the first

    @property
    def feed_forward_parameters_dense(self) -> int:
        """Parameters of the dense feed-forward blocks that pruning could remove."""
        return sum(block.dense_width for block in self.feed_forward) * feed_forward_parameters(self)

    @property
    def feed_forward_parameters_kept(self) -> int:
        """Parameters of the feed-forward blocks that stay."""
        return sum(len(block.channels) for block in self.feed_forward) * feed_forward_parameters(self)

    @property
    def parameters_dense(self) -> int:
        """Parameters that pruning could remove: of what `prune` names."""
        attention, feed_forward = self.prune != "feed-forward", self.prune != "attention"
        return attention * self.attention_parameters_dense + feed_forward * self.feed_forward_parameters_dense

    @property
    def parameters_removed(self) -> int:
        """Parameters of the dense model that are gone."""
        return (
            self.attention_parameters_dense
            - self.attention_parameters_kept
            + self.feed_forward_parameters_dense
            - self.feed_forward_parameters_kept
        )

    @property
    def attention_parameters_dense(self) -> int:
        """Parameters of the dense attention blocks that pruning could remove."""
        return sum(share.dense for share in self.shares.values())

    @property
    def attention_parameters_kept(self) -> int:
        """Parameters of the attention blocks that stay."""
        return sum(share.kept for share in self.shares.values())

    @property
    def shares(self) -> dict[AttentionKind, KindShare]:
        """The attention blocks' parameters, dense and kept, by the kind of block, in the order of the blocks."""
        dense = head_parameters(self.dense_head_width, self.dense_head_width, self)
        counted: dict[AttentionKind, tuple[int, int]] = {}
        for site in self.sites:
            kept = sum(head_parameters(len(head.query_key), len(head.value_output), self) for head in site.heads)
            so_far = counted.get(site.kind, (0, 0))
            counted[site.kind] = (so_far[0] + site.dense_heads * dense, so_far[1] + kept)
        return {kind: KindShare(*counts) for kind, counts in counted.items()}

    @property
    def sparsity(self) -> float:
        """Share of the parameters that is removed: of the attention blocks, the feed-forward blocks, or both.

        Counted of attention are the query, key, value and output weights and the query, key and value biases, as in the
        method's source (arXiv 2509.26207), of a feed-forward block both weights and the first bias; the output bias of
        either belongs to no channel.
        """
        return self.parameters_removed / self.parameters_dense


def head_parameters(query_key: int, value_output: int, plan: Plan) -> int:
    """Parameters of one head of these widths that count for the sparsity of `plan`."""
    bias, key_bias = int(plan.projection_bias), int(plan.projection_bias and plan.key_bias)
    return query_key * (2 * plan.model_width + bias + key_bias) + value_output * (2 * plan.model_width + bias)


def feed_forward_parameters(plan: Plan) -> int:
    """Parameters of one hidden channel: a row and a bias of the first linear layer, a column of the second."""
    return 2 * plan.model_width + 1


def untouched(sites: Iterable[SitePlan | AttentionSite], choice: SitesChoice) -> frozenset[str]:
    """The names of the blocks that are not pruned: none, cross-attention's, or all that are not the encoder's."""
    kept = {"all": (), "self-attention": ("cross",), "encoder": ("cross", "decoder")}[choice]
    return frozenset(site.name for site in sites if site.kind in kept)


def first_channels(site: AttentionSite, widths: Iterable[tuple[int, int]]) -> SitePlan:
    """What is kept where every head keeps its first channels, (K, V) of them; a head that keeps none goes."""
    heads = tuple(HeadPlan(head, tuple(range(k)), tuple(range(v))) for head, (k, v) in enumerate(widths) if k and v)
    return SitePlan(site.name, len(site.query_key_widths), heads, site.kind)


def full_plan(family: str, sites: tuple[AttentionSite, ...], feed_forward: tuple[FeedForwardSite, ...] = ()) -> Plan:
    """The plan that keeps everything of a dense model with these sites.

    Raises:
        BadInput: the heads are not all of one width, so the model is not dense.
    """
    widths = {width for site in sites for width in site.query_key_widths + site.value_output_widths}
    if len(widths) != 1:
        raise BadInput(
            f"the model's heads have widths {sorted(widths)}: it is already slim; start from its dense checkpoint"
        )
    (width,) = widths
    return Plan(
        family=family,
        dense_head_width=width,
        model_width=sites[0].query.in_features,
        projection_bias=sites[0].query.bias is not None,
        key_bias=sites[0].key.bias is not None,
        scaling=sites[0].scaling,
        sites=tuple(first_channels(site, [(width, width)] * len(site.query_key_widths)) for site in sites),
        feed_forward=tuple(
            FeedForwardPlan(site.name, site.width, tuple(range(site.width)), site.kind) for site in feed_forward
        ),
    )


def compose(outer: tuple[SitePlan, ...], inner: tuple[SitePlan, ...]) -> tuple[SitePlan, ...]:
    """What remains of the dense model when `inner` counts heads and channels of what `outer` kept."""
    composed = []
    for first, second in zip(outer, inner, strict=True):
        heads = []
        for kept in second.heads:
            origin = first.heads[kept.head]
            heads.append(
                HeadPlan(
                    head=origin.head,
                    query_key=tuple(origin.query_key[channel] for channel in kept.query_key),
                    value_output=tuple(origin.value_output[channel] for channel in kept.value_output),
                )
            )
        composed.append(SitePlan(first.name, first.dense_heads, tuple(heads), first.kind))
    return tuple(composed)


def compose_feed_forward(
    outer: tuple[FeedForwardPlan, ...], inner: tuple[FeedForwardPlan, ...]
) -> tuple[FeedForwardPlan, ...]:
    """What remains of the dense model when `inner` counts hidden channels of what `outer` kept."""
    return tuple(
        FeedForwardPlan(
            first.name, first.dense_width, tuple(first.channels[channel] for channel in second.channels), first.kind
        )
        for first, second in zip(outer, inner, strict=True)
    )


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plan.json holds it."""
    return {
        "schema": PLAN_SCHEMA,
        "family": plan.family,
        "dense_head_width": plan.dense_head_width,
        "model_width": plan.model_width,
        "projection_bias": plan.projection_bias,
        "key_bias": plan.projection_bias and plan.key_bias,
        "scaling": plan.scaling,
        "basis": plan.basis,
        "prune": plan.prune,
        "attention_parameters": {"dense": plan.attention_parameters_dense, "kept": plan.attention_parameters_kept},
        "feed_forward_parameters": {
            "dense": plan.feed_forward_parameters_dense,
            "kept": plan.feed_forward_parameters_kept,
        },
        "sparsity": round(plan.sparsity, 6),
        "by_kind": {
            kind: {"dense": share.dense, "kept": share.kept, "sparsity": round(share.sparsity, 6)}
            for kind, share in plan.shares.items()
        },
        "recipe": plan.recipe,
        "made_from": plan.made_from,
        "sites": [{"name": site.name, "kind": site.kind, **as_json(site)} for site in plan.sites],
        "feed_forward": [{"name": block.name, "kind": block.kind, **as_json(block)} for block in plan.feed_forward],
    }


def plan_sha256(plan: Plan) -> str:
    """Hex sha256 of the plan's JSON."""
    return sha256_json(plan_to_json(plan))


def write_plan(path: Path, plan: Plan) -> None:
    """Write plan.json, whole or not at all."""
    write_json(path, plan_to_json(plan))


def read_plan(path: Path) -> Plan:
    """The plan in `path`.

    Raises:
        BadInput: the file is missing, malformed, or names channels that a dense head does not have.
    """
    document = read_json(path, PLAN_SCHEMA, older=(FIRST_PLAN_SCHEMA,))
    kept = {key: value for key, value in document.items() if key not in ("schema", *DERIVED_KEYS)}
    plan = read(Plan, kept, path)
    if plan.basis != CHANNELS_AS_TRAINED and not plan.basis.startswith(ROTATED):
        raise BadInput(f"{path}: unknown basis {plan.basis!r}")
    _check(plan, path)
    return plan


def _check(plan: Plan, path: Path) -> None:
    for site in plan.sites:
        if site.heads:
            _check_indices(path, f"{site.name} heads", tuple(head.head for head in site.heads), site.dense_heads)
        for head in site.heads:
            for kind, channels in (("query_key", head.query_key), ("value_output", head.value_output)):
                _check_indices(path, f"{site.name} head {head.head} {kind}", channels, plan.dense_head_width)
    for block in plan.feed_forward:
        if block.channels:
            _check_indices(path, f"{block.name} channels", block.channels, block.dense_width)


def _check_indices(path: Path, where: str, indices: tuple[int, ...], bound: int) -> None:
    well_formed = indices and all(0 <= index < bound for index in indices)
    if not well_formed or list(indices) != sorted(set(indices)):
        raise BadInput(f"{path}: {where} must be a non-empty ascending list of indices below {bound}")
