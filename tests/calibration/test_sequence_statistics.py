"""Statistics of clips with a target at every position, against autograd clip by clip, loops, and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from leanear.calibration.basis import choose_basis
from leanear.calibration.scores import collect_curvature
from leanear.calibration.statistics import PER_CLIP, SUMS, merge_statistics, statistics_tensors
from tests.calibration.collected import collect_statistics
from tests.calibration.small_attention import QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS
from tests.calibration.small_decoder import CLASSES, HEARD, LENGTHS, Decoder, Inputs, clips, logits
from tests.calibration.test_statistics import diagonal_blocks, heads_of, with_matrices

KINDS = ("encoder", "decoder", "cross")


def alone(inputs: Inputs, targets: torch.Tensor, clip: int) -> tuple[Inputs, torch.Tensor]:
    """One clip without anything that fills it up."""
    length = LENGTHS[clip]
    return Inputs(inputs.states[clip : clip + 1], inputs.tokens[clip : clip + 1, :length]), targets[
        clip : clip + 1, :length
    ]


def loss(model, inputs, targets) -> torch.Tensor:
    """The sum over the positions that are asked."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")


@pytest.mark.parametrize("on_keys", [False, True])
def test_derivatives_are_those_of_each_clips_summed_loss_by_explicit_matrices(on_keys):
    model, (inputs, targets) = Decoder(), clips()
    found = collect_statistics(model, model.sites(), inputs, targets, logits, labels="observed")
    for site in model.sites():
        between, after, hooks = with_matrices(site, on_keys=on_keys)
        for clip in range(3):
            by_scores, by_outputs = torch.autograd.grad(loss(model, *alone(inputs, targets, clip)), [between, after])
            for kind, widths, expected in (
                ("query_key", QUERY_KEY_WIDTHS, by_scores),
                ("value_output", VALUE_OUTPUT_WIDTHS, by_outputs),
            ):
                for head, block in enumerate(diagonal_blocks(expected, widths)):
                    actual = getattr(found[site.name], kind)[clip, head]
                    assert block.abs().max() > 1e-3
                    assert torch.allclose(actual[: len(block), : len(block)], block, rtol=1e-5, atol=1e-10), site.name
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_masks_equal_finite_differences(kind):
    """The loss of every clip with one channel's mask at 1 + e and at 1 - e, every channel of both sorts."""
    model, (inputs, targets) = Decoder(), clips(filled_with=3.0)
    (site,) = [site for site in model.sites() if site.kind == kind]
    found = collect_statistics(model, model.sites(), inputs, targets, logits, labels="observed")[site.name]
    step = 1e-5

    def losses(mask: torch.Tensor, hook_of) -> torch.Tensor:
        hook = hook_of(mask)
        with torch.no_grad():
            values = torch.stack([loss(model, *alone(inputs, targets, clip)) for clip in range(3)])
        hook.remove()
        return values

    for field, widths, hook_of in (
        ("query_key", QUERY_KEY_WIDTHS, lambda m: site.query.register_forward_hook(lambda _m, _i, out: out * m)),
        (
            "value_output",
            VALUE_OUTPUT_WIDTHS,
            lambda m: site.output.register_forward_pre_hook(lambda _m, args: (args[0] * m,)),
        ),
    ):
        places = [(head, channel) for head, width in enumerate(widths) for channel in range(width)]
        for index, (head, channel) in enumerate(places):
            masks = torch.ones(2, len(places), dtype=torch.float64)
            masks[0, index] += step
            masks[1, index] -= step
            expected = (losses(masks[0], hook_of) - losses(masks[1], hook_of)) / (2 * step)
            actual = getattr(found, field)[:, head, channel, channel].double()
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-7), (field, head, channel)


@pytest.mark.parametrize("labels", ["observed", "sampled", "projected"])
def test_what_fills_up_a_clip_is_in_nothing(labels):
    """Other padding, or none at all, clip by clip: the same sums, and the same random draws."""
    model = Decoder()

    def collect(inputs, targets, generator):
        return collect_statistics(
            model, model.sites(), inputs, targets, logits, labels=labels, attended_keys=True, generator=generator
        )

    padded = [
        statistics_tensors(collect(*clips(filled_with), torch.Generator().manual_seed(3))) for filled_with in (0.0, 9.0)
    ]
    generator = torch.Generator().manual_seed(3)
    bare = merge_statistics(*(collect(*alone(*clips(), clip), generator) for clip in range(3)))
    for name, tensor in statistics_tensors(bare).items():
        for other in padded:
            assert torch.allclose(other[name], tensor, rtol=1e-5, atol=1e-9), name
    derivatives = bare["decoder"].query_key
    assert not torch.allclose(derivatives[0], derivatives[1], rtol=0.1), "clips differ, or the order proves nothing"
    assert {name.split("/")[1] for name in padded[0]} == {*SUMS, *PER_CLIP}


def test_gram_matrices_equal_loops_over_the_tokens_that_are_used():
    """All three kinds, heads of unequal widths; queries of the prompt count, padding does not."""
    model, (inputs, targets) = Decoder(), clips(filled_with=7.0)
    found = collect_statistics(
        model, model.sites(), inputs, targets, logits, labels="observed", attended_keys=True
    )  # fmt: skip
    captured: dict[str, list[torch.Tensor]] = {}
    hooks = [
        linear.register_forward_hook(
            lambda _m, _i, out, name=f"{site.kind} {name}": captured.setdefault(name, []).append(out)
        )
        for site in model.sites()
        for name, linear in (("query", site.query), ("key", site.key), ("value", site.value))
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    for kind in KINDS:
        widths = (QUERY_KEY_WIDTHS, QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS)
        states = [captured[f"{kind} {name}"][0].numpy() for name in ("query", "key", "value")]
        asking = [HEARD] * 3 if kind == "encoder" else LENGTHS
        answering = LENGTHS if kind == "decoder" else [HEARD] * 3
        assert found[kind].tokens.tolist() == [sum(asking), sum(answering)]
        for head, (q, k, v) in enumerate(zip(*(heads_of(s, w) for s, w in zip(states, widths)), strict=True)):
            queries, keys, contexts, attended = [], [], [], np.zeros((k.shape[-1],) * 2)
            for clip in range(3):
                used = k[clip, : answering[clip]]
                keys += list(used - used.mean(axis=0))
                for i in range(asking[clip]):
                    seen = range(i + 1) if kind == "decoder" else range(answering[clip])
                    weights = np.exp([0.7 * q[clip, i] @ k[clip, j] for j in seen])
                    weights /= weights.sum()
                    mean = sum(w * k[clip, j] for w, j in zip(weights, seen, strict=True))
                    for w, j in zip(weights, seen, strict=True):
                        attended += w * np.outer(k[clip, j] - mean, k[clip, j] - mean)
                    queries.append(q[clip, i])
                    contexts.append(sum(w * v[clip, j] for w, j in zip(weights, seen, strict=True)))
            queries, keys, contexts = np.array(queries), np.array(keys), np.array(contexts)
            for name, expected in (
                ("query_gram", queries.T @ queries),
                ("key_gram", keys.T @ keys),
                ("attended_key_gram", attended),
                ("context_gram", contexts.T @ contexts),
                ("context_covariance", np.cov(contexts.T, bias=True)),
            ):
                matrix, width = getattr(found[kind], name)[head].numpy(), len(expected)
                assert matrix[:width, :width] == pytest.approx(expected, rel=1e-6, abs=1e-9), (kind, name)
            assert found[kind].context_sum[head, : v.shape[-1]].numpy() == pytest.approx(contexts.sum(axis=0), rel=1e-6)


def test_random_signs_give_the_fisher_information_of_the_sequence(monkeypatch):
    """The mean square of a derivative over all signs of two positions is the sum of p g^2 over positions and labels."""
    model, (inputs, targets) = Decoder(), clips()
    inputs, targets = alone(inputs, targets, 0)
    asked = int((targets >= 0).sum())
    assert asked == 2
    with torch.no_grad():
        p = model(inputs)[0].softmax(-1)
    widest = max(QUERY_KEY_WIDTHS)
    expected = {kind: torch.zeros(len(QUERY_KEY_WIDTHS), widest, widest, dtype=torch.float64) for kind in KINDS}
    for position in range(1, 1 + asked):
        for label in range(CLASSES):
            one = torch.full_like(targets, -100)
            one[0, position] = label
            for site in model.sites():
                expected[site.name] += p[position, label] * derivative(model, inputs, one, site).square()
    signs = torch.tensor(list(itertools.product((0, 1), repeat=asked * CLASSES))).view(-1, asked, CLASSES)
    total = {name: torch.zeros_like(value) for name, value in expected.items()}
    for each in signs:
        monkeypatch.setattr(
            "leanear.calibration.statistics.torch.randint", lambda _low, _high, size, generator=None, each=each: each
        )
        found = collect_statistics(model, model.sites(), inputs, targets, logits)
        for name in total:
            total[name] += found[name].query_key[0].double().square()
    for name, value in expected.items():
        assert value.max() > 1e-4
        assert torch.allclose(total[name] / len(signs), value, rtol=1e-4, atol=1e-9), name


def derivative(model, inputs, targets, site) -> torch.Tensor:
    """(H, K, K) of the loss at the targets by matrices between queries and keys, by autograd."""
    between, _, hooks = with_matrices(site, on_keys=False)
    (by_scores,) = torch.autograd.grad(loss(model, inputs, targets), [between])
    for hook in hooks:
        hook.remove()
    widest = max(QUERY_KEY_WIDTHS)
    blocks = diagonal_blocks(by_scores, QUERY_KEY_WIDTHS)
    return torch.stack([nn.functional.pad(b, (0, widest - len(b), 0, widest - len(b))) for b in blocks])


@pytest.mark.parametrize("kind", ["weights", "activations", "attention", "fisher"])
def test_bases_of_every_kind_of_attention_are_exact(kind):
    """T_q^T T_k = I and T_o^T T_v = I where keys have no bias and queries and keys are of other tokens, too."""
    model, (inputs, targets) = Decoder(), clips(filled_with=2.0)
    found = collect_statistics(model, model.sites(), inputs, targets, logits, attended_keys=True)
    for site in model.sites():
        basis = choose_basis(site, found[site.name], kind)
        for head, (k, v) in enumerate(zip(QUERY_KEY_WIDTHS, VALUE_OUTPUT_WIDTHS, strict=True)):
            eye = basis.query[head, :k, :k].mT @ basis.key[head, :k, :k]
            assert torch.allclose(eye, torch.eye(k, dtype=torch.float64), atol=1e-8)
            eye = basis.output[head, :v, :v].mT @ basis.value[head, :v, :v]
            assert torch.allclose(eye, torch.eye(v, dtype=torch.float64), atol=1e-8)


def test_the_curvature_of_a_batch_does_not_depend_on_how_many_clips_are_in_memory():
    """Clips of unlike lengths: the batch's loss is the mean over its positions, however it is cut up."""
    model, (inputs, targets) = Decoder(), clips()

    def batch_loss(model, inputs, targets):
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    together, one_by_one = (
        collect_curvature(model, model.sites(), inputs, targets, batch_loss, batch_size=3, clips_at_once=at_once)
        for at_once in (None, 1)
    )
    by_hand = torch.autograd.grad(batch_loss(model, inputs, targets), [model.cross.query.weight])[0]
    assert torch.allclose(together.sites["cross"].query, by_hand.square().sum(dim=1))
    for kind in KINDS:
        for projection in ("query", "key", "value", "output"):
            first, second = (getattr(c.sites[kind], projection) for c in (together, one_by_one))
            assert first.max() > 0
            assert torch.allclose(first, second, rtol=1e-6)
