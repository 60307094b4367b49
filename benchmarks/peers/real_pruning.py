"""Prunes a real model as `leanear prune` does, seed by seed, and judges it on clips of speakers that nothing heard.

    python -m benchmarks.peers.real_pruning MODEL --data DATA --state DIR --sparsity 0.3,0.5,0.7 --seeds 3 [-- FLAGS]

DATA has train/ to calibrate on and test/ to judge on. FLAGS go to `leanear prune` (--recovery full, --compensate, ...).
Every finished checkpoint stays in DIR, and a later run takes it from there. Printed is a row per seed and sparsity:
KL(dense || slim) in nats per target on the held-out calibration clips and on the judging clips, what was estimated, and
the change of the error rate with its paired 95 % interval over clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.summary import word_error_change
from calibration.targets import kind_of
from runtimes.files import write_json
from toolchain.accelerator import on_accelerator
from toolchain.checkpoint import checkpoint_folder, family_of, load_checkpoint
from toolchain.cli import run
from toolchain.dataset import SPEECH_TASK, column_for, read_examples_for, read_splits
from toolchain.held_out import HeldOut
from toolchain.tasks import task_of


def judging_clips(folder: Path, data: str, checkpoint: Any, limit: int):
    """The evaluation clips as the model takes them, at most so many."""
    task = task_of(folder)
    splits = read_splits(Path(data), limit, 0, column_for(task))
    labels = () if task == SPEECH_TASK else checkpoint.labels
    audio = read_examples_for(task, splits.evaluation, labels, checkpoint.feature_extractor.sampling_rate)
    return family_of(checkpoint).labelled_inputs(checkpoint, audio)


def mistakes(family, checkpoint, model, clips):
    """Errors and counts (N,) of either kind of model."""
    answers = torch.empty(0)
    with torch.no_grad():
        if kind_of(clips.targets) != "sequence":
            answers = torch.cat([family.logits(model, clips.inputs[p]) for p in torch.arange(len(clips)).split(8)])
        return family.mistakes(checkpoint, model, clips, answers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--sparsity", default="0.3,0.5,0.7")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration-clips", type=int, default=256)
    parser.add_argument("flags", nargs="*", help="after --, for leanear prune")
    options = parser.parse_args()
    folder = checkpoint_folder(options.model)
    dense = load_checkpoint(folder)
    family = family_of(dense)
    clips = judging_clips(folder, options.data, dense, options.calibration_clips)
    held_out = HeldOut(dense.model, clips, family.logits)
    with on_accelerator(dense.model):
        before = mistakes(family, dense, dense.model, clips)
    rate = 100 * before.errors.sum() / before.counted.sum()
    print(f"dense: {rate:.2f} % of {before.counted.sum():.0f} wrong, {len(clips)} clips", flush=True)
    print("| removed | seed | estimated | measured, held out | KL, judged | errors, % | change, points (95 %) | s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for sparsity in options.sparsity.split(","):
        for seed in range(options.seeds):
            out = options.state / f"{sparsity}-{seed}"
            started = time.perf_counter()
            if not (out / "plan.json").is_file():
                command = ["prune", options.model, "--data", options.data, "--sparsity", sparsity, "--seed", str(seed)]
                command += ["--calibration-clips", str(options.calibration_clips), "--out", str(out), *options.flags]
                if run(command):
                    return 1
                write_json(options.state / f"{sparsity}-{seed}.json", {"seconds": time.perf_counter() - started})
            seconds = json.loads((options.state / f"{sparsity}-{seed}.json").read_text())["seconds"]
            slim = load_checkpoint(out).model
            with on_accelerator(dense.model, slim):
                kl, after = held_out.kl(slim), mistakes(family, dense, slim, clips)
            loss = json.loads((out / "pruning.json").read_text())["loss"]
            counts = [[int(n) for n in each] for each in (before.errors, after.errors, before.counted)]
            change = word_error_change(*counts).change
            wrong = 100 * after.errors.sum() / after.counted.sum()
            estimated = loss["rounds"][loss["best"]]["estimated"] if loss.get("rounds") else np.nan
            print(
                f"| {sparsity} | {seed} | {estimated:.4f} | {loss['finished']['divergence']:.4f}"
                f" | {kl:.4f} | {wrong:.2f} | {100 * change.estimate:+.2f} ({100 * change.low:+.2f} to"
                f" {100 * change.high:+.2f}) | {seconds:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
