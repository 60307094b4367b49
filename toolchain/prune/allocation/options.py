"""What a head or a block of one width may become, at what cost and damage."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from leanear.runtimes.errors import BadInput

Widths = tuple[tuple[int, int], ...]  # (K, V) of heads
TiedCost = Callable[[int, int, int], float]
RaggedCost = Callable[[Widths], float]


@dataclass(frozen=True)
class HeadOptions:
    """What one head may become; arrays of equal length (n,).

    Both widths 0: the head is removed. costs: at least 0 and additive over heads: parameters, MACs or milliseconds.
    damages: nats; noise may make them slightly negative, and they are taken as they are.
    """

    query_key_widths: np.ndarray
    value_output_widths: np.ndarray
    costs: np.ndarray
    damages: np.ndarray


@dataclass(frozen=True)
class BlockOptions:
    """What a block of one width may become, as `HeadOptions`, on its own: arrays of equal length (n,)."""

    name: str
    widths: np.ndarray
    costs: np.ndarray
    damages: np.ndarray


def check_options(
    sites: Sequence[Sequence[HeadOptions]],
    tied: Sequence[TiedCost] | None,
    ragged: Sequence[RaggedCost] | None,
    blocks: Sequence[BlockOptions] = (),
) -> None:
    """See that the options fit together.

    Raises:
        BadInput: they do not; the text names the block and the head.
    """
    for block in blocks:
        _check_lengths(f"allocation: {block.name}", block.costs, block.damages, (block.widths,))
    if not sites and not blocks:
        raise BadInput("allocation: there is no block to allocate to")
    for name, functions in (("tied", tied), ("ragged", ragged)):
        if functions is not None and len(functions) != len(sites):
            raise BadInput(f"allocation: {len(functions)} {name} cost functions for {len(sites)} blocks")
    for index, heads in enumerate(sites):
        for number, head in enumerate(heads):
            where = f"allocation: block {index}, head {number}"
            _check_lengths(where, head.costs, head.damages, (head.query_key_widths, head.value_output_widths))
        if all(removes(head).all() for head in heads):
            raise BadInput(f"allocation: block {index} has no head that could be kept")


def _check_lengths(where: str, costs: np.ndarray, damages: np.ndarray, widths: Sequence[np.ndarray]) -> None:
    if len({array.shape for array in (*widths, costs, damages)}) > 1 or costs.ndim != 1 or not costs.size:
        raise BadInput(f"{where}: widths, costs and damages are not of one length, at least 1")
    if not (np.isfinite(costs).all() and (costs >= 0).all() and np.isfinite(damages).all()):
        raise BadInput(f"{where}: a cost is negative or a number is not finite")


def removes(head: HeadOptions) -> np.ndarray:
    """Which options remove the head (n,)."""
    return (head.query_key_widths == 0) & (head.value_output_widths == 0)


def pairs_of(head: HeadOptions) -> list[tuple[int, int]]:
    """(K, V) of every option."""
    return [(int(k), int(v)) for k, v in zip(head.query_key_widths, head.value_output_widths, strict=True)]


def chosen_widths(heads: Sequence[HeadOptions], choice: np.ndarray) -> Widths:
    """(K, V) of every head by the place of its chosen option."""
    return tuple(
        (int(head.query_key_widths[place]), int(head.value_output_widths[place]))
        for head, place in zip(heads, choice, strict=True)
    )


def has_widths(head: HeadOptions, pair: tuple[int, int]) -> np.ndarray:
    """Which options have these (K, V) (n,)."""
    return (head.query_key_widths == pair[0]) & (head.value_output_widths == pair[1])


def least_damage(head: HeadOptions, among: np.ndarray) -> int:
    """Place of the option of least damage among some; -1 if there is none."""
    return int(np.argmin(np.where(among, head.damages, math.inf))) if among.any() else -1


def damage_at(head: HeadOptions, place: int) -> float:
    """The damage of the option at `place`, infinite where there is none."""
    return math.inf if place < 0 else float(head.damages[place])


def checked_cost(cost: float) -> float:
    """What a cost function says of a block.

    Raises:
        BadInput: it is negative or not a number.
    """
    if not cost >= 0:
        raise BadInput(f"allocation: a block's cost of {cost} is not a number that is at least 0")
    return float(cost)
