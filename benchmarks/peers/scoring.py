"""Times the scoring of calibration clips, both of its passes, against what it is measured by.

    python -m leanear.benchmarks.peers.scoring --clips 512 --rounds 3

- floor: one forward pass and one backward pass to queries and contexts, nothing computed with the gradients;
- ours: `score_widths`, a pass for the bases and one for the losses, a squared gradient for every clip and head; and
  without the pass for the losses, `losses="infinitesimal"`;
- reference, per clip: the way of arXiv 2509.26207's code, one backward pass to the weights per step and their gradients
  squared, in steps of one clip, so that it too has a squared gradient for every clip;
- reference, per step: the same in steps of `--step` clips: one squared gradient of the step's mean loss for all.

They take turns, on clips of the demo model (repeated if there are fewer than asked for) or, with --model and
--data, of another. This runs on the workstation alone.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time

import torch

from leanear.calibration.scores import collect_curvature
from leanear.data.clips import read_examples_for
from leanear.data.examples import LabelledInputs
from leanear.data.splits import read_splits
from leanear.families import ast
from leanear.families.checkpoint import checkpoint_folder, data_folder, load_checkpoint
from leanear.prune.scoring import score_widths
from leanear.prune.widths import LossKind, RotatedRecipe
from leanear.runtimes.tasks import CLASSIFICATION_TASK


def read_inputs(model: str, data: str | None, count: int):
    """The checkpoint, features (count, frames, mels) and label ids (count,)."""
    checkpoint = load_checkpoint(checkpoint_folder(model))
    splits = read_splits(data_folder(model, data), count, 0)
    clips = read_examples_for(
        CLASSIFICATION_TASK, splits.calibration, checkpoint.labels, checkpoint.feature_extractor.sampling_rate
    )
    labelled = ast.labelled_inputs(checkpoint, clips)
    repeated = labelled[torch.arange(count) % len(labelled)]
    return checkpoint.model, repeated.inputs, repeated.targets


def floor(model, sites, inputs, batch: int) -> None:
    """Forward, and backward to the queries and the contexts of every block."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for part in inputs.split(batch):
        captured: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor, captured: list[torch.Tensor] = captured) -> None:
            captured.append(tensor if tensor.requires_grad else tensor.requires_grad_())

        hooks = [site.query.register_forward_hook(lambda _m, _i, out: keep(out)) for site in sites]
        hooks += [site.output.register_forward_pre_hook(lambda _m, given: keep(given[0])) for site in sites]
        objective = ast.logits(model, part).logsumexp(dim=1).sum()
        torch.autograd.grad(objective, captured)
        for hook in hooks:
            hook.remove()


def ours(model, inputs, label_ids, batch: int, losses: LossKind) -> None:
    """All scores of every clip, as `leanear prune` computes them."""
    recipe = RotatedRecipe(losses=losses, chunk=batch)
    score_widths(ast, model, LabelledInputs(inputs, label_ids), recipe.scoring, made_from={})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-ast")
    parser.add_argument("--data")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="clips in memory together, for all but the reference")
    parser.add_argument("--step", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-ours", action="store_true", help="time per clip and memory of a large model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, inputs, label_ids = read_inputs(options.model, options.data, options.clips)
    sites = ast.attention_sites(model)
    few = min(options.clips, 64)  # the slow ones are timed on fewer clips

    def reference(step: int, clips: int) -> None:
        collect_curvature(model, sites, inputs[:clips], label_ids[:clips], ast.batch_loss, batch_size=step)

    ways = {
        "ours": (options.clips, lambda: ours(model, inputs, label_ids, options.batch, "finite")),
        "ours, by derivatives alone": (
            options.clips,
            lambda: ours(model, inputs, label_ids, options.batch, "infinitesimal"),
        ),
        "floor": (options.clips, lambda: floor(model, sites, inputs, options.batch)),
        "reference, per clip": (few, lambda: reference(1, few)),
        f"reference, steps of {options.step}": (few, lambda: reference(options.step, few)),
    }
    if options.only_ours:
        ways = {"ours": ways["ours"]}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (clips, run) in ways.items():
            started = time.perf_counter()
            run()
            rates[name].append(clips / (time.perf_counter() - started))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.1f} clips/s ({min(values):.1f} to {max(values):.1f})")
    if not options.only_ours:
        step = f"reference, steps of {options.step}"
        to_floor = statistics.median(b / a for a, b in zip(rates["ours"], rates["floor"], strict=True))
        per_clip = statistics.median(a / b for a, b in zip(rates["ours"], rates["reference, per clip"], strict=True))
        squares = statistics.median(a / (b / options.step) for a, b in zip(rates["ours"], rates[step], strict=True))
        print(f"time over the floor: {to_floor:.2f}")
        print(
            f"squared gradients per second over the reference: {per_clip:.1f} per clip, {squares:.1f} in its own steps"
        )
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
