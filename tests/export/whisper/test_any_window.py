"""Graphs that take windows of any length, against transformers' own encoder with as many positions, on two runtimes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from leanear.deploy.exporting import write_proved_artifact, write_unproved_artifact
from leanear.export.options import ExportOptions
from leanear.export.parity import prove_parity_here
from leanear.export.whisper.golden_speech import window_states
from leanear.export.whisper.graph import export_whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.manifest import EncoderWindows
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.encoder_windows import artifact_windows
from leanear.runtimes.speech.long_audio import transcribe
from leanear.runtimes.speech.speech_model import read_speech_model
from leanear.runtimes.speech.transcript import Tally
from tests.export.whisper_cases import KINDS, noise, small_whisper
from tests.whisper_models import make_extractor, make_whisper, write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")

FULL_S = 2
FORMS = ("portable", "onnxruntime", "openvino")
CLIP = noise(9_000)
WINDOWS = (12_800, 16_000, 20_480, 32_000)


def shorter_whisper(model: Any, positions: int) -> Any:
    """The same model with the first rows of its positions alone, built anew by its own class."""
    config = type(model.config).from_dict({**model.config.to_dict(), "max_source_positions": positions})
    weights = dict(model.state_dict())
    name = "model.encoder.embed_positions.weight"
    weights[name] = weights[name][:positions]
    other = type(model)(config).eval()
    other.load_state_dict(weights)
    return other


def short_features(clip: np.ndarray, samples: int) -> torch.Tensor:
    """The first frames of the features that transformers gives of the clip in the full window."""
    features = make_extractor(FULL_S)(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
    return features[..., : samples // 160]


def filled(clip: np.ndarray, samples: int) -> np.ndarray:
    window = np.zeros((1, samples), np.float32)
    window[0, : len(clip)] = clip
    return window


@pytest.fixture(scope="module", params=FORMS)
def stock_encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    files = folder / "encoder.onnx", folder / "decoder.onnx"
    export_whisper(small_whisper("stock"), make_extractor(), *files, request.param, any_window=True)
    return request.param, files[0]


@pytest.mark.parametrize("samples", WINDOWS)
def test_keys_and_values_are_those_of_an_encoder_with_as_many_positions(stock_encoder, samples: int) -> None:
    form, path = stock_encoder
    model = small_whisper("stock")
    with torch.inference_mode():
        shorter = shorter_whisper(model, samples // 320)
        states = shorter.model.encoder(short_features(CLIP, samples)).last_hidden_state[0]
        expected = {}
        for number, layer in enumerate(model.model.decoder.layers):
            heads = (len(states), 2, 16)
            expected[f"cross_key.{number}"] = layer.encoder_attn.k_proj(states).reshape(heads).permute(1, 2, 0).numpy()
            values = torch.nn.functional.linear(states, layer.encoder_attn.v_proj.weight)  # its bias is in the output's
            expected[f"cross_value.{number}"] = values.reshape(heads).permute(1, 0, 2).numpy()
    waveform = filled(CLIP, samples)
    if form == "openvino":
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = {port.get_any_name(): value for port, value in compiled({"waveform": waveform}).items()}
    else:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, {"waveform": waveform}), strict=True))
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [16_000, 32_000])
def test_torchs_window_states_are_those_of_a_model_built_with_as_many_positions(kind: str, samples: int) -> None:
    model = small_whisper(kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    features = short_features(CLIP, samples)
    with torch.inference_mode():
        found = window_states(model.model.encoder, features)
        expected = shorter_whisper(model, samples // 320).model.encoder(features).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert model.config.max_source_positions == 100
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_form_for_engines_has_the_full_window_alone(tmp_path: Path) -> None:
    files = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    with pytest.raises(BadInput, match="an engine is built for one window"):
        export_whisper(small_whisper("stock"), make_extractor(), *files, "tensorrt", any_window=True)


# A window of 6 s, so that there is a shorter one with a tail of 2 s: 3.5 s holds 1.5 s of audio.
LONG_S = 6
CLIPS = [noise(20_000), noise(24_000), noise(60_000)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = make_whisper(window_s=LONG_S, seed=3, positions=48)
    return load_checkpoint(write_whisper(tmp_path_factory.mktemp("long") / "whisper", model))


@pytest.fixture(
    scope="module", params=[(form, precision) for form in FORMS for precision in ("fp32", "int8")], ids="-".join
)
def exported(request: pytest.FixtureRequest, checkpoint: Any, tmp_path_factory: pytest.TempPathFactory):
    form, precision = request.param
    folder = tmp_path_factory.mktemp("artifacts") / f"{form}-{precision}"
    options = ExportOptions(form, {}, {}, precision, window="3.5")
    if precision == "fp32":
        parity = write_proved_artifact(checkpoint, CLIPS, folder, options)
        assert parity.relative_difference <= 1e-4
    else:  # the noise of 8 bits in random weights proves nothing, but the graphs have to run
        write_unproved_artifact(checkpoint, CLIPS, folder, options)
    return form, precision, read_artifact(folder)


@pytest.fixture(scope="module")
def session(exported):
    form, precision, artifact = exported
    runtime = choose_runtime("openvino" if form == "openvino" else "onnxruntime")
    loaded = runtime.load(artifact, SessionOptions(threads=1, precision=precision))
    yield loaded
    loaded.close()


def test_sessions_hear_in_windows_of_several_lengths_in_turn(exported, session, checkpoint: Any) -> None:
    _, precision, artifact = exported
    windows = artifact_windows(artifact)
    assert windows.lengths == (56_000, 96_000)
    assert artifact.manifest.input.windows.choice == "3.5"
    tokens = np.random.default_rng(0).integers(0, 200, (2, 5))
    extractor = make_extractor(LONG_S)
    for clip, window in ((CLIPS[0], 56_000), (CLIPS[2], None), (CLIPS[1], 56_000), (CLIPS[0], 96_000)):
        samples = window or 96_000
        features = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_features"][..., : samples // 160]
        with torch.inference_mode():
            states = shorter_whisper(checkpoint.model, samples // 320).model.encoder(features).last_hidden_state
            decoded = checkpoint.model.model.decoder(
                input_ids=torch.tensor(tokens), encoder_hidden_states=states.expand(2, -1, -1), use_cache=False
            )
            expected = checkpoint.model.proj_out(decoded.last_hidden_state).numpy()
        session.encode(clip, window)
        session.start(2)
        logits = np.stack([session.step(tokens[:, place : place + 1]).copy() for place in range(5)], axis=1)
        if precision == "fp32":
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        else:
            noise_share = np.sqrt(((logits - expected) ** 2).mean()) / expected.std()
            assert noise_share < 0.5


def test_a_proof_hears_golden_clips_in_short_windows(checkpoint: Any, tmp_path: Path) -> None:
    """A faulty short window, here one with other positions, is found by the proof."""
    folder = tmp_path / "artifact"
    write_proved_artifact(checkpoint, CLIPS, folder, ExportOptions("portable", {}, {}, window="3.5"))
    manifest = read_artifact(folder).manifest
    windows = EncoderWindows("4", (64_000, 96_000), 32_000)
    write(folder / "manifest.json", replace(manifest, input=replace(manifest.input, windows=windows)))
    with pytest.raises(ParityFailed):
        prove_parity_here(folder)


def test_an_artifact_can_be_heard_in_other_windows_than_its_own(exported, session) -> None:
    _, precision, artifact = exported
    if precision != "fp32":
        pytest.skip("of integers it is the same graph")
    assert read_speech_model(artifact, "full").encoder_windows.lengths == (96_000,)
    assert read_speech_model(artifact, "4").encoder_windows.lengths == (64_000, 96_000)
    options = DecodeOptions(temperatures=(0.0,), timestamps=False, max_tokens=5)
    for choice in ("full", "4", None):
        assert list(transcribe(session, read_speech_model(artifact, choice), CLIPS[0], options))


@pytest.mark.parametrize("timestamps", [False, True])
def test_pieces_of_long_audio_say_together_what_each_says_alone(exported, session, timestamps: bool, monkeypatch):
    _, precision, artifact = exported
    if precision != "fp32":
        pytest.skip("8 bits round otherwise where several are multiplied together")
    model, encode_several, together = read_speech_model(artifact), session.encode_several, []

    def counted(windows, *more) -> None:
        together.append(len(windows))
        encode_several(windows, *more)

    monkeypatch.setattr(session, "encode_several", counted)
    audio, found = np.concatenate([noise(20_000 + 1_000 * place) for place in range(12)]), {}
    for batch in (1, 3):
        options = DecodeOptions("en", temperatures=(0.0, 0.5), timestamps=timestamps, max_tokens=12, batch=batch)
        tally = Tally()
        segments = list(transcribe(session, model, audio, options, tally))
        found[batch] = [(each.tokens, each.start_s, each.end_s) for each in segments], tally, max(together)
        together.clear()
    assert found[1][:2] == found[3][:2]
    assert (found[1][2], found[3][2]) == (1, 3)
    assert found[1][0]


HEAR_MANY_WINDOWS = """
import sys
from pathlib import Path
import numpy as np
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.sessions import SessionOptions

session = choose_runtime("openvino").load(read_artifact(Path(sys.argv[1])), SessionOptions(threads=1))
for number in range(96):
    session.encode(np.ones(1_000, np.float32), 96_000 - 640 * number)
    session.start()
    session.step(np.array([[1, 2]]))
    if number in (47, 95):
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system has no /proc")
def test_windows_of_many_lengths_take_little_more_memory_on_openvino(checkpoint: Any, tmp_path: Path) -> None:
    """It keeps what it compiled for a shape: 2 MB a length here, where nothing is let go."""
    folder = tmp_path / "artifact"
    write_unproved_artifact(checkpoint, CLIPS, folder, ExportOptions("openvino", {}, {}, window="3.5"))
    command = [sys.executable, "-c", HEAR_MANY_WINDOWS, str(folder)]
    after_48, after_96 = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(after_96) - int(after_48) < 40_000  # kB; 107,000 where all is kept
