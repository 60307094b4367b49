"""The AudioSet protocol of the paper, end to end: 10.24 s, 1,024 frames, 527 labels, its mean and deviation."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import soundfile
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.benchmarks.analysis import analyse_tags
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.clips import read_clips
from tests.conftest import tone

pytestmark = pytest.mark.usefixtures("measured_here", "markdown_alone_here")

SECONDS, FRAMES, MEAN, DEVIATION = 10.24, 1024, -4.2677393, 4.5689974
# Names as the ontology has them, and made-up ones for the others.
NAMES = (
    "Speech", "Child speech, kid speaking", "Chirp, tweet", "Cutlery, silverware", "Whoosh, swoosh, swish",
    "Vehicle horn, car horn, honking", "Domestic animals, pets", "Rail transport", "Fire engine, fire truck (siren)",
    "Yell", "Hubbub, speech noise, speech babble",
)  # fmt: skip
LABELS = (*NAMES, *(f"Sound {number}, kind {number % 7}" for number in range(527 - len(NAMES))))
CLIPS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An AST of AudioSet's geometry, but narrow and of two layers: patches of 16 at strides of 10 make 1,212 tokens."""
    folder = tmp_path_factory.mktemp("model") / "ast-audioset"
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        id2label=dict(enumerate(LABELS)), label2id={name: number for number, name in enumerate(LABELS)},
        problem_type="multi_label_classification", initializer_range=0.2,
    )  # fmt: skip
    assert (config.max_length, config.frequency_stride, config.time_stride) == (FRAMES, 10, 10)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=128, mean=MEAN, std=DEVIATION).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips of 10.24 s that sound of one to four labels, among the first 20 alone: most labels have no clip."""
    folder, generator = tmp_path_factory.mktemp("data") / "clips", np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "labels"])
        for clip in range(CLIPS):
            numbers = {clip % 4, *(int(number) for number in generator.integers(20, size=clip % 4))}
            sound = generator.normal(0, 0.02, int(SECONDS * 16_000))
            sound += sum(0.5 * tone(200 + 300 * number, SECONDS)[: len(sound)] for number in numbers)
            soundfile.write(folder / f"{clip}.wav", np.clip(sound, -1, 1), 16_000)
            table.writerow([f"{clip}.wav", "|".join(LABELS[number] for number in sorted(numbers))])
    return folder


def test_deployment(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--sparsity", "0.5", "--max-drop", "100", "--calibration-clips", "10", "--budget", "1"]
    assert run(["deploy", str(model), "--data", str(data), "--target", "cpu", "--out", str(out), *flags]) == 0
    for artifact in (read_artifact(out / "dense"), read_artifact(out / "slim")):
        assert artifact.manifest.input.window_samples == 400 + 160 * (FRAMES - 1)
        assert artifact.labels == LABELS
    clips = read_clips(out / "clips" / "evaluation.npz")
    assert clips.tags.shape == (len(clips), 527)
    tags = analyse_tags(read_results(next((out / "results").glob("*.json"))))
    has = clips.tags.any(axis=0)
    for role, logits in tags.logits.items():
        quality, truth, scores = tags.quality[role], clips.tags[:, has], logits[:, has]
        assert quality.mean_ap.estimate == pytest.approx(average_precision_score(truth, scores, average="macro"))
        assert quality.mean_auc.estimate == pytest.approx(roc_auc_score(truth, scores, average="macro"))
        assert (quality.labels, quality.skipped) == (has.sum(), 527 - has.sum())
    report = (out / "report.md").read_text()
    assert f"The means are over {has.sum()} labels; {527 - has.sum()} others are left out" in report
    capsys.readouterr()
    assert run(["classify", str(data / "0.wav"), "--model", str(out / "slim"), "--top", "527", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {each["label"] for each in answer} == set(LABELS)


def test_max_drop(model, data, tmp_path):
    out = tmp_path / "slim"
    flags = ["--data", str(data), "--max-drop", "60", "--calibration-clips", "9", "--out", str(out)]
    assert run(["prune", str(model), *flags]) == 0
    pruning = json.loads((out / "pruning.json").read_text())
    assert pruning["metric"] == "mAP"
    assert any(trial["within"] for trial in pruning["search"])
