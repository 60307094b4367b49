"""Which tensor 8 bits hurt, and which may stay in float32 so that a Whisper passes its proof."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from leanear.deploy.exporting import write_proved_artifact
from leanear.export.artifact import export_artifact
from leanear.export.eight_bit_costs import DECODER, dearest, tensor_costs, tensors_to_leave
from leanear.export.options import ExportOptions
from leanear.export.parity import Parity, prove_parity_here
from leanear.families.whisper import WhisperCheckpoint
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import ParityFailed
from tests.export.whisper_cases import noise, small_speech, small_whisper
from tests.whisper_models import make_extractor, make_tokenizer

CLIPS = [noise(20_000), noise(40_000)]
OUTLIER = 3000.0
HURT = ("encoder.layers.1.active",)


@pytest.fixture(autouse=True)
def _all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' models are so small that all their weights would be kept."""
    monkeypatch.setattr("leanear.export.onnx.eight_bit_weights.SMALLEST_WEIGHT", 1)


def _with_outlier() -> torch.nn.Module:
    """A small Whisper one of whose activations between an MLP's layers is huge, and all but unheard behind them."""
    model = small_whisper("stock")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(0.25)
        layer = model.model.encoder.layers[1]
        layer.fc1.weight[3] *= OUTLIER
        layer.fc1.bias[3] *= OUTLIER
        layer.fc2.weight[:, 3] /= 10 * OUTLIER
    return model


def test_the_tensor_with_the_outlier_costs_most(tmp_path: Path) -> None:
    model = _with_outlier()
    folder = export_artifact(
        model,
        make_extractor(),
        CLIPS,
        tmp_path / "a",
        ExportOptions(form="onnxruntime", source={}, made_from={}, precision="int8", quantiser_waveforms=CLIPS),
        small_speech(model),
    )
    costs = tensor_costs(read_artifact(folder), model, make_extractor(), CLIPS)
    assert next(iter(costs)) == HURT
    others = [cost for tensors, cost in costs.items() if tensors != HURT]
    assert costs[HURT] > 5 * max(others) > 0
    between = [tensors for tensors in costs if len(tensors) == 3]
    assert [tensors[0].rsplit(".", 1)[0] for tensors in sorted(between)] == [
        f"encoder.layers.{number}.self_attn" for number in range(2)
    ]
    assert (DECODER,) in costs
    assert dearest(costs).startswith(f"alone in 8 bits cost most: {HURT[0]} ")


def test_what_hurts_is_left_in_float32_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _with_outlier()
    checkpoint = WhisperCheckpoint(tmp_path, model, make_extractor(), make_tokenizer())  # type: ignore[arg-type]
    said: list[str] = []

    def prove(bound: float) -> tuple[Path, Parity]:
        monkeypatch.setattr("leanear.export.whisper.speech_parity.DIVERGENCE_BOUND", bound)
        monkeypatch.setattr("leanear.export.eight_bit_costs.DIVERGENCE_BOUND", bound)
        monkeypatch.setattr(
            "leanear.export.whisper.speech_parity.CHANGED_WORDS_SHARE", 1.0
        )  # random weights say what is all but a tie
        monkeypatch.setattr("leanear.deploy.exporting.prove_parity", prove_parity_here)
        out, form = tmp_path / "int8", "onnxruntime"
        report = lambda text, _share: said.append(text)  # noqa: E731
        return out, write_proved_artifact(checkpoint, CLIPS, out, ExportOptions(form, {}, {}, "int8"), report=report)

    (hurt,), costs = HURT, {}
    monkeypatch.setattr(
        "leanear.deploy.exporting.tensor_costs", lambda *arguments: costs.update(tensor_costs(*arguments)) or costs
    )
    with pytest.raises(ParityFailed, match=rf"nats a token .*; alone in 8 bits cost most: {hurt} .* nats"):
        prove(1e-9)
    assert not (tmp_path / "int8").exists()
    rest = sum(costs.values()) - costs[hurt,]
    out, parity = prove(2.5 * rest)
    assert parity.left_in_float32 == (hurt,)
    assert parity.sentence.endswith(f"; left in float32: {hurt}")
    artifact = read_artifact(out)
    assert artifact.manifest.left_in_float32 == (hurt,)
    nodes = onnx.load(str(artifact.graphs["encoder"]), load_external_data=False).graph.node
    (behind,) = [node for node in nodes if hurt in node.input and node.op_type != "QuantizeLinear"]
    assert behind.op_type == "Gemm"
    assert "measuring what 8 bits cost each tensor" in said


@pytest.mark.parametrize(
    ("costs", "left"),
    [
        ({("a",): 0.05, ("b",): 0.004, ("c",): 0.003, (DECODER,): 0.001}, ("a",)),
        ({("a",): 0.004, ("b",): 0.004, ("c",): 0.003, (DECODER,): 0.001}, ()),
        ({("a",): 0.05, ("b",): 0.05, ("c",): 0.003, (DECODER,): 0.001}, ()),
        ({("a",): float("inf"), ("b",): 0.004, ("c",): 0.003, (DECODER,): 0.001}, ("a",)),
        ({("a",): 0.001, ("b",): 0.001, ("c",): 0.001, (DECODER,): 0.05}, ()),
        ({("q", "k", "v"): 0.1, **{(f"{n}",): 0.001 for n in range(6)}, (DECODER,): 0.001}, ("q", "k", "v")),
    ],
)
def test_the_fewest_are_left_and_never_many(costs: dict[tuple[str, ...], float], left: tuple[str, ...]) -> None:
    assert tensors_to_leave(costs) == left
