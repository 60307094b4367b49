"""A real AST of single labels turned into one of several, pruned, and ranked as scikit-learn does it.

    python -m leanear.benchmarks.peers.multi_label MODEL --data DATA --state DIR --sparsity 0.3,0.5 [-- FLAGS]

DATA has train/ and test/ with clips of one label each. Mixtures are sums of two clips of different labels, each as loud
as the other, from one part alone. MODEL learns on those of train/ for a few epochs of binary cross-entropy, all of its
weights, and is then evaluated, dense and as `leanear prune` makes it (FLAGS go there), on those of test/. Mixtures,
models and answers stay in DIR, and a later run takes them from there. Printed is a row per model: mAP, mean area under
the ROC curve and d' by `leanear eval`, and the same two by scikit-learn from the same model's sigmoids in transformers.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import AutoModelForAudioClassification

from leanear.benchmarks.formatting import NO_RATE_INTERVAL
from leanear.benchmarks.tagging import MEAN_AP, tag_change
from leanear.benchmarks.verdict import loss_of, loss_text
from leanear.calibration.targets import negative_log_likelihoods
from leanear.cli.commands import run
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Example
from leanear.data.metadata import SEPARATOR
from leanear.data.splits import read_splits
from leanear.evaluate.evaluation import evaluate
from leanear.families import ast
from leanear.families.checkpoint import checkpoint_folder, load_checkpoint
from leanear.progress import Narrator
from leanear.runtimes.clips import Clips
from leanear.runtimes.files import replaced_folder
from leanear.runtimes.tasks import CLASSIFICATION_TASK, MULTI_LABEL, TAGGING_TASK

LOUDNESS = 0.05  # root mean square of each part of a mixture
LARGEST_SAMPLE = 0.99
BATCH_CLIPS, PEAK_RATE, WARM_UP, WEIGHT_DECAY = 8, 3e-5, 0.1, 0.01
MASKED_BINS, MASKED_FRAMES = 24, 48


def write_mixtures(folder: Path, examples: tuple[Example, ...], labels: tuple[str, ...], count: int, seed: int) -> None:
    """Mixtures of two clips of different labels as 16 kHz WAV files, with metadata.csv."""
    clips = read_examples_for(CLASSIFICATION_TASK, examples, labels, 16_000)
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "labels"])
        for number in range(count):
            first = int(generator.integers(len(clips)))
            second = int(generator.choice(np.flatnonzero(clips.label_ids != clips.label_ids[first])))
            soundfile.write(folder / f"{number:04}.wav", mixture(clips, first, second), 16_000)
            names = sorted(labels[clips.label_ids[clip]] for clip in (first, second))
            table.writerow([f"{number:04}.wav", SEPARATOR.join(names)])


def mixture(clips: Clips, first: int, second: int) -> np.ndarray:
    """The sum of two clips of equal loudness, as long as the longer one."""
    parts = [clips.waveforms[clip] for clip in (first, second)]
    total = np.zeros(max(map(len, parts)))
    for part in parts:
        total[: len(part)] += part * (LOUDNESS / max(float(np.sqrt(np.mean(part.astype(np.float64) ** 2))), 1e-6))
    return (total * min(1.0, LARGEST_SAMPLE / float(np.abs(total).max()))).astype(np.float32)


def train(source: Path, mixtures: Path, out: Path, epochs: int, seed: int) -> None:
    """Write MODEL to `out` with a sigmoid per label, after so many epochs on the mixtures of train/."""
    checkpoint: Any = load_checkpoint(source)
    model = checkpoint.model
    examples = read_splits(mixtures, sys.maxsize, seed, "labels").calibration
    clips = read_examples_for(TAGGING_TASK, examples, checkpoint.labels, checkpoint.feature_extractor.sampling_rate)
    inputs = ast.labelled_inputs(checkpoint, clips)
    model.config.problem_type = MULTI_LABEL
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    updates = epochs * math.ceil(len(inputs) / BATCH_CLIPS)
    warm_up = max(1, round(WARM_UP * updates))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * done / updates)))
    )
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs), generator=draws).split(BATCH_CLIPS):
            blanked = masked(inputs.inputs[rows], draws)
            loss = negative_log_likelihoods(model(blanked).logits, inputs.targets[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: {total / len(inputs):.4f} nats", file=sys.stderr, flush=True)
    with replaced_folder(out) as folder:
        model.eval().save_pretrained(folder)
        checkpoint.feature_extractor.save_pretrained(folder)


def masked(features: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Features (B, frames, mels) with a random span and a random band of every clip at their mean (SpecAugment)."""
    features = features.clone()
    for clip in features:
        for axis, widest in ((clip, MASKED_FRAMES), (clip.T, MASKED_BINS)):
            width = int(torch.randint(widest + 1, (), generator=draws))
            start = int(torch.randint(len(axis) - width + 1, (), generator=draws))
            axis[start : start + width] = 0.0
    return features


def answers(model: Path, mixtures: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and sigmoids (clips, labels) of the mixtures of test/, by transformers alone."""
    checkpoint: Any = load_checkpoint(model)
    examples = read_splits(mixtures, 1, 0, "labels").evaluation
    clips = read_examples_for(TAGGING_TASK, examples, checkpoint.labels, checkpoint.feature_extractor.sampling_rate)
    # a slim checkpoint brings the code of its own model, which this project wrote
    theirs = AutoModelForAudioClassification.from_pretrained(model, trust_remote_code=True).eval()
    inputs = ast.labelled_inputs(checkpoint, clips).inputs
    with torch.inference_mode():
        shares = torch.cat([theirs(part).logits.double().sigmoid() for part in inputs.split(BATCH_CLIPS)])
    assert clips.tags is not None
    return clips.tags, shares.numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--mixtures", type=int, default=320, help="of train/; test/ gets half as many")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", default="0.3,0.5")
    parser.add_argument("flags", nargs="*", help="after --, for leanear prune")
    options = parser.parse_args()
    source, mixtures, dense = checkpoint_folder(options.model), options.state / "mixtures", options.state / "dense"
    if not mixtures.is_dir():
        labels = load_checkpoint(source).labels
        splits = read_splits(options.data, sys.maxsize, options.seed)
        with replaced_folder(mixtures) as folder:
            write_mixtures(folder / "train", splits.calibration, labels, options.mixtures, options.seed)
            write_mixtures(folder / "test", splits.evaluation, labels, options.mixtures // 2, options.seed + 1)
    if not dense.is_dir():
        train(source, mixtures, dense, options.epochs, options.seed)
    print(
        "| model | mAP, % (95 %) | scikit-learn's | area, % | scikit-learn's | d' | mAP against dense, points (95 %) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    truth, first = np.zeros(0), np.zeros(0)
    for sparsity in ("", *options.sparsity.split(",")):
        model = options.state / f"slim-{sparsity}" if sparsity else dense
        if not (model / "config.json").is_file():
            command = ["prune", str(dense), "--data", str(mixtures), "--sparsity", sparsity, "--out", str(model)]
            if run([*command, *options.flags]):
                return 1
        found = evaluate(
            str(model), data=str(mixtures), split="evaluation", runtime="onnxruntime", precision=None,
            threads=torch.get_num_threads(), calibration_clips=1, seed=0, narrator=Narrator(),
        )  # fmt: skip
        truth, shares = answers(model, mixtures)
        first = first if sparsity else shares
        moved = tag_change(first, shares, truth).interval
        low, high = found["mean_ap_interval_95"]
        span = NO_RATE_INTERVAL if low is None else f"{100 * low:.2f} to {100 * high:.2f}"
        cells = (
            f"{sparsity} removed" if sparsity else "dense",
            f"{100 * found['mean_ap']:.2f} ({span})",
            f"{100 * average_precision_score(truth, shares, average='macro'):.2f}",
            f"{100 * found['mean_auc']:.2f}",
            f"{100 * roc_auc_score(truth, shares, average='macro'):.2f}",
            f"{found['d_prime']:.3f}",
            loss_text(loss_of(moved, MEAN_AP)) if sparsity else "",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
