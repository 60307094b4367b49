"""A family is one file and one line: wav2vec 2.0 is pruned, exported, proved, measured and reported by the commands."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from leanear.cli.commands import run
from leanear.families.checkpoint import load_checkpoint
from leanear.families.family import Family
from leanear.families.registry import FAMILIES, Registered, family_of
from tests.conftest import TINY_LABELS, tone
from tests.toolchain import wav2vec2_family

pytestmark = pytest.mark.usefixtures("measured_here")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "wav2vec2", Registered("tests.toolchain.wav2vec2_family", "wav2vec 2.0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(12, 12, 12),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        id2label=dict(enumerate(TINY_LABELS)),
        label2id={label: index for index, label in enumerate(TINY_LABELS)},
    )
    model = Wav2Vec2ForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += (0.02 if parameter.ndim == 1 else 0.15) * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("model") / "tiny-wav2vec2"
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for label, frequency_hz in (("yes", 500), ("up", 1500), ("left", 3000)):
        (folder / label).mkdir()
        for number in range(8):
            sound = tone(frequency_hz + 20 * number, 0.3 + 0.04 * number)
            soundfile.write(folder / label / f"{number}.wav", sound, 16000)
    return folder


def test_the_ordinary_commands(model, data, tmp_path, capsys, monkeypatch, markdown_alone):
    monkeypatch.chdir(tmp_path)
    pruned = ["prune", str(model), "--data", str(data), "--sparsity", "0.5", "--out", "slim", "--json"]
    assert run(pruned) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["sparsity"] == pytest.approx(0.5, abs=0.03)
    assert said["parameters"] < said["parameters_dense"]

    slim = load_checkpoint(tmp_path / "slim")
    assert family_of(slim) is wav2vec2_family
    assert slim.model.__class__.__name__.startswith("Slim")
    dense_hears = Wav2Vec2ForSequenceClassification.from_pretrained(model).eval()
    assert sum(p.numel() for p in slim.model.parameters()) == said["parameters"]
    assert sum(p.numel() for p in dense_hears.parameters()) == said["parameters_dense"]

    assert run(["export", str(model), "--data", str(data), "--out", "artifacts/dense"]) == 0, capsys.readouterr().err
    for form in ("portable", "onnxruntime", "openvino"):
        exported = ["export", "slim", "--data", str(data), "--form", form, "--out", f"artifacts/{form}"]
        assert run(exported) == 0, capsys.readouterr().err
        manifest = json.loads((tmp_path / "artifacts" / form / "manifest.json").read_text())
        assert manifest["family"] == "wav2vec2"
        assert manifest["parity"]["relative_difference"] <= 1e-4

    accuracies = []
    for what in ("slim", "artifacts/portable"):
        capsys.readouterr()
        assert run(["eval", what, "--data", str(data), "--json"]) == 0, capsys.readouterr().err
        accuracies.append(json.loads(capsys.readouterr().out))
    assert accuracies[0]["correct"] == accuracies[1]["correct"]
    assert accuracies[0]["cross_entropy"] == pytest.approx(accuracies[1]["cross_entropy"], rel=1e-4)

    benched = ["bench", "artifacts/portable", "--against", "artifacts/dense", "--data", str(data)]
    assert run([*benched, "--budget", "1", "--out", "results.json"]) == 0, capsys.readouterr().err
    assert run(["report", "results.json", "--out", "page"]) == 0, capsys.readouterr().err
    page = next((tmp_path / "page").glob("*.md")).read_text()
    assert "MACs" in page


def test_the_whole_of_a_deployment(model, data, tmp_path, capsys):
    out = tmp_path / "deployment"
    flags = ["--data", str(data), "--sparsity", "0.5", "--target", "cpu", "--budget", "1", "--out", str(out)]
    assert run(["deploy", str(model), *flags]) == 0, capsys.readouterr().err
    assert json.loads((out / "checkpoint" / "plan.json").read_text())["family"] == "wav2vec2"
    assert (out / "report.md").is_file()
    assert list((out / "results").glob("*.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latency-ms", "1"], "milliseconds: models of the family wav2vec2 are not timed"),
        (["--task", "translate"], "--task"),
    ],
)
def test_what_it_lacks_is_refused_in_a_line(model, data, tmp_path, capsys, flags, message):
    goal = [] if flags[0] == "--latency-ms" else ["--sparsity", "0.5"]
    arguments = ["prune", str(model), "--data", str(data), *goal, *flags, "--out", str(tmp_path / "slim")]
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "slim").exists()


def test_all_that_the_contract_names_is_there():
    names = {name for name in vars(Family) if not name.startswith("_")} | set(Family.__annotations__)
    for name, family in FAMILIES.items():
        module = importlib.import_module(family.module)
        assert not [each for each in names if not hasattr(module, each)], name


def test_macs_against_torch(model):
    """Products of linear layers, convolutions and attention; torch's convolution of places has one more, cut off."""
    from torch.utils.flop_counter import FlopCounterMode

    checkpoint = load_checkpoint(model)
    tiny = checkpoint.model
    tiny.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny(torch.zeros(1, wav2vec2_family.WINDOW_SAMPLES))
    assert counter.get_total_flops() / 2 == wav2vec2_family.macs(checkpoint, tiny).total + 32 * 8 * 32 // 2
