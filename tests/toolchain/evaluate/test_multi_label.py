"""Models whose clips may have several labels, from the folder that a user brings to the report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import AutoModelForAudioClassification

from leanear.benchmarks.analysis import analyse_tags
from leanear.benchmarks.device.classify import classify_files
from leanear.benchmarks.report.precision_section import read_precision
from leanear.benchmarks.results import read_results
from leanear.cli.commands import run
from leanear.data.clips import read_examples_for
from leanear.data.splits import read_splits
from leanear.evaluate.evaluation import open_listener
from leanear.families import ast
from leanear.families.registry import task_of
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.clips import read_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.tagged_folder import TAGS, write_tagged_folder, write_tagger

pytestmark = pytest.mark.usefixtures("measured_here", "markdown_alone_here")

CLIPS = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(max_length=46, num_mel_bins=128)
    return write_tagger(tmp_path_factory.mktemp("model") / "tagger", extractor)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tagged_folder(tmp_path_factory.mktemp("data") / "clips", CLIPS)


@pytest.fixture(scope="module")
def deployed(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("deployed") / "out"
    assert deploy(model, data, out, "--sparsity", "0.7", "--max-drop", "30") == 0
    return out


def deploy(model, data, out, *flags):
    clips = ["--calibration-clips", "20", "--budget", "1"]
    return run(["deploy", str(model), "--data", str(data), "--target", "cpu", "--out", str(out), *clips, *flags])


def truth_and_scores(model, data) -> tuple[np.ndarray, np.ndarray]:
    """Of the evaluation clips, the scores by transformers' own model."""
    splits = read_splits(data, CLIPS, 0, "labels")
    clips = read_examples_for(task_of(model), splits.evaluation, TAGS, 16_000)
    checkpoint = ast.load_checkpoint(model)
    slow = AutoModelForAudioClassification.from_pretrained(model, trust_remote_code=True).eval()
    with torch.inference_mode():
        scores = slow(ast.features(checkpoint.feature_extractor, clips.waveforms)).logits.numpy()
    return clips.tags, scores


def told(capsys, *arguments):
    assert run([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanear: ")]
    return line


# Data


def test_names_with_commas_survive_both_tables(data, tmp_path):
    lines = write_tagged_folder(tmp_path / "lines", CLIPS, lines=True)
    found = []
    for folder in (data, lines):
        splits = read_splits(folder, 20, 0, "labels")
        clips = read_examples_for("audio-tagging", splits.evaluation, TAGS, 16_000)
        found.append((clips.names, clips.tags.tolist()))
    assert found[0] == found[1]
    assert "Whoosh, swoosh, swish" in (data / "metadata.csv").read_text()
    assert clips.tags.sum(axis=1).max() == 2


def table(folder, *lines):
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def labels_in(folder, column=None):
    from leanear.data.dataset import DataFolder

    said = []
    splits = read_splits(DataFolder(folder, label_column=column), 2, 0, "labels", said.append)
    return {e.name: e.labels for e in (*splits.calibration, *splits.evaluation)}, said


def test_cells_of_labels(data, tmp_path):
    for name in ("000.wav", "001.wav", "002.wav", "003.wav"):
        shutil.copy(data / name, tmp_path / name)
    cells = ['000.wav,"Chirp, tweet | Bell|Bell"', "001.wav,Bell", "002.wav,", "003.wav,Speech|Bell"]
    wanted = {"000.wav": ("Chirp, tweet", "Bell"), "001.wav": ("Bell",), "002.wav": (), "003.wav": ("Speech", "Bell")}
    table(tmp_path, "file_name,labels", *cells)
    assert labels_in(tmp_path) == (wanted, [f"{tmp_path}: clips without any label, which lack all of them: 1 of 4"])
    table(tmp_path, "file_name,heard", *cells)
    assert labels_in(tmp_path, "heard")[0] == wanted
    table(tmp_path, "file_name,label", *cells)
    found, said = labels_in(tmp_path)
    assert found == wanted
    assert said[0].endswith("column 'label' is taken for the clips' labels, there is no 'labels'")
    table(tmp_path, "file_name,labels", *cells[:3], "003.wav")
    with pytest.raises(BadInput, match="line 5 lacks a file_name or labels"):
        labels_in(tmp_path)
    table(tmp_path, "file_name,labels", *cells, "000.wav,Speech")
    with pytest.raises(BadInput, match="line 6 gives '000.wav' other labels than before"):
        labels_in(tmp_path)
    table(tmp_path, "file_name,labels", *(f"00{number}.wav," for number in range(4)))
    with pytest.raises(BadInput, match="none of the 4 clips has a label"):
        labels_in(tmp_path)


def test_unknown_labels_and_another_separator(data, tmp_path, model, capsys):
    for name in ("000.wav", "001.wav"):
        shutil.copy(data / name, tmp_path / name)
    table(tmp_path, "file_name,labels", '000.wav,"Speech,Bell"', '001.wav,"Speech,Bell"')
    assert run(["eval", str(model), "--data", str(tmp_path)]) == 2
    said = complaint(capsys)
    assert "label 'Speech,Bell' is unknown to the model" in said
    assert "several labels are separated by '|', not by ','" in said


def test_a_classifier_of_one_label_is_told_why_it_has_no_use_for_several(tiny_folder, data, capsys):
    assert run(["eval", str(tiny_folder), "--data", str(data)]) == 2
    assert "no column 'label' in its first line; it has 'labels', but MODEL is a classifier of one" in complaint(capsys)


def test_class_folders_are_clips_of_one_label(data, tmp_path, model, capsys):
    for place, name in enumerate(("000", "001", "002", "004")):
        folder = tmp_path / TAGS[place % 2]
        folder.mkdir(exist_ok=True)
        shutil.copy(data / f"{name}.wav", folder)
    answer = told(capsys, "eval", model, "--data", tmp_path, "--json")
    assert (answer["labels"], answer["labels_skipped"]) == (2, 3)


def test_calibration_and_evaluation_share_rare_labels(data):
    splits = read_splits(data, CLIPS, 0, "labels")
    assert len(splits.calibration) + len(splits.evaluation) == CLIPS
    for part in (splits.calibration, splits.evaluation):
        assert {label for example in part for label in example.labels} == set(TAGS)


# What is measured


def test_eval_is_as_scikit_learn_has_it(model, data, capsys):
    answer = told(capsys, "eval", model, "--data", data, "--calibration-clips", "20", "--json")
    truth, scores = truth_and_scores(model, data)
    assert answer["task"] == "audio-tagging"
    assert answer["clips"] == len(truth)
    assert answer["mean_ap"] == pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-6)
    assert answer["mean_auc"] == pytest.approx(roc_auc_score(truth, scores, average="macro"), abs=1e-6)
    assert (answer["labels"], answer["labels_skipped"]) == (5, 0)
    low, high = answer["mean_ap_interval_95"]
    assert low < answer["mean_ap"] < high
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(scores), torch.from_numpy(truth).float(), reduction="none"
    )
    assert answer["cross_entropy"] == pytest.approx(float(losses.sum(1).mean()), rel=1e-5)
    assert run(["eval", str(model), "--data", str(data), "--calibration-clips", "20"]) == 0
    assert f"mAP {100 * answer['mean_ap']:.2f} % (95 % interval" in capsys.readouterr().out


def test_the_deployment(deployed, model, data, capsys):
    artifact = read_artifact(deployed / "slim")
    assert artifact.task == read_artifact(deployed / "dense").task == "audio-tagging"
    assert artifact.labels == TAGS
    truth, scores = truth_and_scores(model, data)
    results = read_results(next((deployed / "results").glob("*.json")))
    tags = analyse_tags(results)
    np.testing.assert_array_equal(tags.truth, truth)
    np.testing.assert_allclose(tags.logits["dense"], scores, atol=1e-4 * np.abs(scores).max())
    for role, logits in tags.logits.items():
        assert tags.quality[role].mean_ap.estimate == pytest.approx(
            average_precision_score(truth, logits, average="macro")
        )
    slim = truth_and_scores(deployed / "checkpoint", data)[1]
    change = average_precision_score(truth, slim) - average_precision_score(truth, scores)
    assert tags.change.estimate == pytest.approx(change, abs=0.02), "in torch and on the runtime"
    report = (deployed / "report.md").read_text()
    assert "## mAP" in report
    assert "The means are over 5 labels." in report
    assert "points of mAP, where at most 30.00 may be lost" in report
    assert "**mAP: " in report
    assert "accuracy" not in report.lower()
    assert json.loads((deployed / "checkpoint" / "pruning.json").read_text())["metric"] == "mAP"
    assert read_clips(deployed / "clips" / "evaluation.npz").tags.shape == truth.shape
    answer = told(capsys, "eval", deployed / "slim", "--data", data, "--calibration-clips", "20", "--json")
    assert answer["mean_ap"] == pytest.approx(tags.quality["slim"].mean_ap.estimate)


def test_the_slim_checkpoint_is_of_several_labels_too(deployed):
    checkpoint = ast.load_checkpoint(deployed / "checkpoint")
    assert checkpoint.model.__class__.__name__.startswith("Slim")
    assert checkpoint.task == "audio-tagging"
    assert checkpoint.model.config.problem_type == "multi_label_classification"


def test_a_gate_that_is_missed(deployed, capsys):
    path = next((deployed / "results").glob("*.json"))
    change = analyse_tags(read_results(path)).change
    assert change.estimate < 0, "the tiny model lost something"
    assert run(["report", str(path), "--max-drop", "0", "--out", str(path.parent / "gated")]) == 6
    assert run(["report", str(path), "--max-drop", f"{-100 * change.estimate + 0.01}"]) == 0


def test_results_are_read_strictly(deployed, tmp_path):
    document = json.loads(next((deployed / "results").glob("*.json")).read_text())
    path = tmp_path / "results.json"
    for change, said in (
        (lambda answers: answers["roles"]["slim"].update(logits_float32="AAAA"), "roles.slim.logits_float32"),
        (lambda answers: answers["label_ids"].__setitem__(0, [7]), r"label_ids\[0\]: a label lies outside 0..4"),
        (lambda answers: answers["label_ids"].pop(), r"for 25 clips|cross_entropy_nats: 26 for 25"),
        (lambda answers: answers["roles"]["slim"].update(predicted_ids=[]), "roles.slim.predicted_ids'"),
    ):
        changed = json.loads(json.dumps(document))
        change(changed["accuracy"])
        path.write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=said):
            read_results(path)


def test_compare_pairs_the_clips(deployed, capsys):
    path = str(next((deployed / "results").glob("*.json")))
    assert run(["compare", path, path, "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["key"] == "mean_average_precision"]
    assert row["change"] == {"is": "b-a", "estimate": 0.0, "low": None, "high": None}
    assert row["verdict"] == "noise"
    assert "paired by clip" in row["note"]


# Pruning


def test_max_drop_is_in_points_of_map(model, data, tmp_path, capsys):
    out = tmp_path / "slim"
    flags = ["--data", str(data), "--calibration-clips", "24", "--out", str(out), "--max-drop", "0.2"]
    assert run(["prune", str(model), *flags]) == 0
    assert "whose mAP on " in capsys.readouterr().out
    pruning = json.loads((out / "pruning.json").read_text())
    assert {trial["within"] for trial in pruning["search"]} == {True, False}
    for trial in pruning["search"]:
        assert trial["within"] == (trial["drop_points"] + trial["standard_error_points"] <= 0.2)
        assert trial["drop_points"] == trial["expected_drop_points"]
    finished = pruning["loss"]["finished"]
    assert finished["counted"] == pytest.approx(1)
    assert 0 <= finished["dense_mistakes"] <= 1


@pytest.mark.parametrize(
    ("recovery", "recipe"), [("lora", "[distillation]\nminutes = 0.05"), ("none", 'method = "reference"')]
)
def test_other_ways_to_prune(model, data, tmp_path, recovery, recipe):
    out, flags = tmp_path / "slim", ["--recovery", recovery, *recipe_flags(tmp_path, recipe)]
    assert run(["prune", str(model), "--data", str(data), "--sparsity", "0.4", "--out", str(out), *flags]) == 0
    assert ast.load_checkpoint(out).task == "audio-tagging"


def test_precisions_are_gated_in_points_of_map(model, data, tmp_path, deployed):
    out = shutil.copytree(deployed, tmp_path / "out")
    assert deploy(model, data, out, "--sparsity", "0.5", "--precision", "int8", "--precision-drop", "100") == 0
    document = read_precision(out / "precision.json")
    assert (document.metric, document.ships) == ("mAP", "int8")
    assert " of mAP against fp32" in (out / "report.md").read_text()


def test_methods_are_compared(model, data, tmp_path):
    out = tmp_path / "comparison"
    flags = ["--sparsity", "0.5", "--seeds", "1", "--calibration-clips", "8", "--claim-only"]
    assert run(["compare-methods", str(model), "--data", str(data), "--out", str(out), *flags]) == 0
    document = json.loads((out / "comparison.json").read_text())
    assert document["metric"] == "mAP"
    (dense,) = [row for row in document["one_shot"]["rows"] if row["method"] == "dense"]
    assert dense["counted"] == pytest.approx(1)
    assert "mAP" in (out / "comparison.md").read_text()


# Single recordings


def test_classify_gives_sigmoids_of_files_and_folders(model, deployed, data, capsys, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("000.wav", "001.wav"):
        shutil.copy(data / name, folder)
    listener = open_listener(str(model), "onnxruntime", None, 1)
    assert listener.task == "audio-tagging"
    for answering in (model, deployed / "dense"):
        answers = told(capsys, "classify", folder, data / "002.wav", "--model", answering, "--top", "5", "--json")
        assert [answer["file"] for answer in answers] == [
            str(folder / "000.wav"),
            str(folder / "001.wav"),
            str(data / "002.wav"),
        ]
        shares = {label["label"]: label["probability"] for label in answers[2]["labels"]}
        _, scores = truth_and_scores(model, data)
        clips = [e.name for e in read_splits(data, 20, 0, "labels").evaluation]
        if "002.wav" in clips:
            expected = torch.from_numpy(scores[clips.index("002.wav")]).sigmoid()
            np.testing.assert_allclose([shares[name] for name in TAGS], expected, atol=1e-3)
    on_device = classify_files(deployed / "dense", [folder, data / "002.wav"], "onnxruntime", SessionOptions(1), 5)
    for (path, ranked), other in zip(on_device, answers, strict=True):
        assert str(path) == other["file"]
        theirs = {each["label"]: each["probability"] for each in other["labels"]}
        assert dict(ranked) == pytest.approx(theirs, abs=1e-6)
    assert run(["classify", str(folder), "--model", str(model)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(".wav")] == [
        str(folder / "000.wav"),
        str(folder / "001.wav"),
    ]
    (tmp_path / "empty").mkdir()
    assert run(["classify", str(tmp_path / "empty"), "--model", str(model)]) == 2
    assert "empty: no .wav" in complaint(capsys)


def test_one_logit_is_a_yes_or_no(tiny_ast, tiny_extractor, tmp_path, capsys):
    folder = tmp_path / "yes-or-no"
    tiny_ast.config.id2label = {0: "Bell"}
    tiny_ast.classifier.dense = torch.nn.Linear(32, 1)
    tiny_ast.save_pretrained(folder)
    tiny_extractor.save_pretrained(folder)
    clips = write_tagged_folder(tmp_path / "clips", 24)
    text = (clips / "metadata.csv").read_text().splitlines()
    rows = [f"{line.split(',')[0]},{'Bell' if 'Bell' in line else ''}" for line in text[1:]]
    table(clips, "file_name,labels", *rows)
    out = tmp_path / "out"
    assert deploy(folder, clips, out, "--sparsity", "0.4") == 0
    assert read_artifact(out / "slim").task == "audio-tagging"
    capsys.readouterr()
    answer = told(capsys, "eval", out / "slim", "--data", clips, "--json")
    assert answer["labels"] == 1


def test_devices_rank_with_numpy_alone(deployed):
    """`python -m leanear.benchmarks eval` needs neither torch nor scikit-learn."""
    import subprocess
    import sys

    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'sklearn', 'scipy', 'transformers', 'soundfile')));"
        "from leanear.benchmarks.device.commands import main; sys.exit(main(sys.argv[1:]))"
    )
    clips = ["--clips", str(deployed / "clips" / "evaluation.npz"), "--threads", "1"]
    command = [sys.executable, "-c", program, "eval", str(deployed / "slim"), *clips, "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    results = read_results(next((deployed / "results").glob("*.json")))
    assert answer["mean_ap"] == pytest.approx(analyse_tags(results).quality["slim"].mean_ap.estimate)
