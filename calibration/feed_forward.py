"""Feed-forward channels: which of them the others can stand in for, and what every width then loses, in nats.

Of a block y = W h + b with hidden channels h, a kept set S predicts the others linearly, h_D ~ A h_S + c, by ridge
least squares, and what it predicts is free: it is folded into W and b. So channels are chosen by what nothing can make
up for. They are removed a few at a time, always those whose removal changes the output least after all that are kept
have been fitted anew (backward elimination, Hassibi and Stork 1993, with the Gram of h in place of the Hessian), a
change being measured by the second moments of the objective's gradients g by the output. This puts the channels in one
order, of which every width keeps the first ones.

With C = L D L^T, the covariance of the channels in that order, L of unit diagonal, q = L^-1 (h - mean h) are the
channels' innovations: what is new in each after those before it. As L q gives h back, y = W mean h + b + (W L) q, and
a block of k channels with what they predict of the others keeps the first k innovations and loses the rest. So of one
clip the objective changes, to first order from the block's output on, by minus the sum over j >= k of

    d_j = sum over tokens of (g^T W L)_j q_j = ((W L)^T G L^-T)_jj        G = sum over tokens of g (h - mean h)^T

and half the mean of its square over clips is the loss, in the units of `calibration/losses.py`; k = 0 is the whole
block, whose mean stays. Nothing is taken as linear up to the output: the activation's change is exact at every width.

Dimension letters: B batch, T tokens, D model width, C hidden channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from leanear.calibration.passes import FeedForwardPass
from leanear.calibration.sites import FeedForwardSite

RIDGE = 1e-3  # of the channels' mean variance
GRADIENT_SHARE = 0.5  # of the Gram's weight that goes by squared gradients, the rest being the same for every token
REMOVED_TOGETHER = 16
STILL_THERE = 0.8  # of the channels in a matrix: below, it is made smaller
TRIANGLE_PARTS = 4  # into which a triangular matrix is cut, so that most of its zeros are multiplied with nothing
CANDIDATES = 2  # times as many of the cheapest channels are looked at one by one, for those that go together


@dataclass(frozen=True)
class FeedForwardBasis:
    """A block's channels in order, and what a block of the first so many of them is made from.

    order (C,) int64: the channels, the last to go first; mean (C,) float64: of the hidden channels, in that order;
    constant (D,) float64: W mean h; innovations (C, C) float32: L^-1, lower triangular; output (D, C) float32: W L.
    """

    order: torch.Tensor
    mean: torch.Tensor
    constant: torch.Tensor
    innovations: torch.Tensor
    output: torch.Tensor

    def second(self, bias: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (D, width) and bias (D,), float64, of a block of the first so many channels, in their order.

        bias (D,): of the dense block.
        """
        weight = self.output[:, :width].double() @ self.innovations[:width, :width].double()
        return weight, bias.double().cpu() + self.constant - weight @ self.mean[:width]


def feed_forward_sums(
    sites: Sequence[FeedForwardSite], passed: Sequence[FeedForwardPass], used: torch.Tensor | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Sums over the tokens of a batch, float32, on the CPU, one by one, as they are large; those of batches add.

    By name, "gram/NAME" (C + 1, C + 1): of v v^T with v = (h, 1), half of every clip's weight the same for its tokens
    and half by |g|^2; "felt/NAME" (D, D): of g g^T. used (B, L): which tokens of a decoder have a target, None without.
    """
    for site, block in zip(sites, passed, strict=True):
        tokens = used.to(block.hidden.device) if used is not None and site.kind == "decoder" else None
        weights = _weights(block.output_gradients, tokens)[..., None]
        hidden = torch.nn.functional.pad(block.hidden.float(), (0, 1), value=1.0)
        gradient = block.output_gradients.float().flatten(0, 1)
        yield f"gram/{site.name}", ((hidden * weights).flatten(0, 1).mT @ hidden.flatten(0, 1)).cpu()
        yield f"felt/{site.name}", (gradient.mT @ gradient).cpu()


def _weights(gradients: torch.Tensor, used: torch.Tensor | None) -> torch.Tensor:
    """What the tokens (B, T) count, 1 on average over those of a clip that are used; gradients (B, T, D)."""
    there = torch.ones(gradients.shape[:2], device=gradients.device) if used is None else used.float()
    squares = gradients.float().square().sum(dim=-1) * there
    tokens = there.sum(dim=1, keepdim=True)
    by_gradient = squares * tokens / squares.sum(dim=1, keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny)
    return (1 - GRADIENT_SHARE) * there + GRADIENT_SHARE * by_gradient


def feed_forward_basis(site: FeedForwardSite, gram: torch.Tensor, felt: torch.Tensor) -> FeedForwardBasis:
    """The block's basis, from the two sums of many clips; in float64, on the CPU."""
    covariance, mean = channel_covariance(gram)
    weight = site.second.weight.detach().double().cpu()
    found = torch.linalg.eigh(felt.double())
    order = elimination_order(covariance, (found.eigenvectors * found.eigenvalues.clamp_min(0.0).sqrt()).mT @ weight)
    lower = torch.linalg.cholesky(covariance[order][:, order])
    lower = lower / lower.diagonal()
    innovations = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
    output = (weight[:, order] @ lower).float()
    return FeedForwardBasis(order, mean[order], weight @ mean, innovations.float(), output)


def channel_covariance(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The channels' covariance with its ridge (C, C), and their mean (C,), float64; gram (C + 1, C + 1): the sum.

    Few tokens, or channels that are all but constant, leave a float32 sum whose covariance has eigenvalues below zero
    by rounding: the ridge is then as much larger as it takes for a positive definite one.
    """
    moments = gram.double() / max(float(gram[-1, -1]), 1.0)
    mean = moments[-1, :-1].clone()
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    scale = float(covariance.trace()) / len(covariance)
    ridge = RIDGE * scale if scale > 0.0 else 1.0
    covariance.diagonal().add_(ridge)
    while int(torch.linalg.cholesky_ex(covariance).info):
        covariance.diagonal().add_(9 * ridge)
        ridge *= 10
    return covariance, mean


def elimination_order(covariance: torch.Tensor, felt: torch.Tensor) -> torch.Tensor:
    """The channels, (C,) int64, the last to be removed first.

    covariance (C, C): positive definite; felt (P, C): W times a root of the outputs' metric. Removing channel j once
    the others are fitted anew costs |felt_j|^2 / (C^-1)_jj, felt being that of the fit before; both are then updated.
    """
    inverse, felt = torch.linalg.inv(covariance), felt.clone()
    channels, there = torch.arange(len(covariance)), torch.ones(len(covariance), dtype=torch.bool)
    removed: list[int] = []
    while there.any():
        gone = _cheapest(inverse, felt, there, min(REMOVED_TOGETHER, int(there.sum())))
        removed += channels[gone].tolist()
        there[gone] = False
        fitted = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        felt -= felt[:, gone] @ fitted
        inverse.addmm_(inverse[:, gone], fitted, alpha=-1.0)
        if int(there.sum()) < STILL_THERE * len(there):  # what is gone is not carried along for long
            inverse, felt, channels = inverse[there][:, there], felt[:, there], channels[there]
            there = there[there]
    return torch.tensor(removed[::-1])


def _cheapest(inverse: torch.Tensor, felt: torch.Tensor, there: torch.Tensor, count: int) -> torch.Tensor:
    """The numbers of so many channels, of those that are there, that go one after the other, the cheapest first."""
    costs = torch.where(there, felt.square().sum(dim=0) / inverse.diagonal(), torch.inf)
    among = costs.topk(min(CANDIDATES * count, int(there.sum())), largest=False).indices
    inverse, felt = inverse[among][:, among].clone(), felt[:, among].clone()
    picked: list[int] = []
    for _ in range(count):
        costs = felt.square().sum(dim=0) / inverse.diagonal().clamp_min(torch.finfo(inverse.dtype).tiny)
        costs[picked] = torch.inf
        pick = int(costs.argmin())
        picked.append(pick)
        fitted = inverse[pick] / inverse[pick, pick]
        felt -= torch.outer(felt[:, pick], fitted)
        inverse -= torch.outer(inverse[:, pick].clone(), fitted)
    return among[picked]


def feed_forward_squares(
    sites: Sequence[FeedForwardSite], bases: Mapping[str, FeedForwardBasis], passed: Sequence[FeedForwardPass]
) -> dict[str, torch.Tensor]:
    """Squared changes of the objective, summed over the clips of a batch: by block (C + 1,), float64, on the CPU.

    Entry [k] is of the block with its first k channels. Sums of several batches add.
    """
    sums = {}
    for site, block in zip(sites, passed, strict=True):
        changes = torch.stack(
            [_clip_changes(bases[site.name], *clip) for clip in zip(block.hidden, block.output_gradients, strict=True)]
        )
        left = torch.nn.functional.pad(changes.flip(-1).cumsum(dim=-1).flip(-1), (0, 1))
        sums[site.name] = left.square().sum(dim=0).cpu()
    return sums


def _clip_changes(basis: FeedForwardBasis, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """d (C,), float64, of one clip: hidden (T, C) and gradient (T, D)."""
    gradient = gradient.float()
    centred = hidden.float()[:, basis.order.to(hidden.device)] - basis.mean.to(gradient)
    output, innovations = basis.output.to(gradient), basis.innovations.to(gradient)
    if len(centred) < len(output):  # the sum over tokens comes last where they are fewer than outputs
        return ((gradient @ output) * _by_transposed_lower(centred, innovations)).double().sum(dim=0)
    return (output * _by_transposed_lower(gradient.mT @ centred, innovations)).double().sum(dim=0)


def _by_transposed_lower(rows: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """rows (N, C) times the transpose of a lower triangular matrix (C, C)."""
    edges = [len(lower) * number // TRIANGLE_PARTS for number in range(TRIANGLE_PARTS + 1)]
    return torch.cat([rows[:, :end] @ lower[begin:end, :end].mT for begin, end in pairwise(edges)], dim=1)


def feed_forward_losses(squares: torch.Tensor, clips: int, targets_per_clip: float) -> np.ndarray:
    """Estimated loss in nats per target, (C + 1,), of every width, 0 being the whole block, of which the mean stays.

    squares: as from `feed_forward_squares`, summed over `clips` clips, which have so many targets each on average. A
    wider block never costs more: where noise says so, the narrower one's loss stands.
    """
    losses = squares.numpy() / (2 * clips * targets_per_clip)
    return np.minimum.accumulate(losses)
