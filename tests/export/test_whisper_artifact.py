"""A Whisper's artifact folder and its proof, which has to be able to fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanear.export.artifact import export_artifact
from leanear.export.options import ExportOptions
from leanear.export.parity import main, prove_parity, prove_parity_here
from leanear.runtimes.artifact import Artifact, read_artifact, read_golden
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.files import sha256_file
from leanear.runtimes.records import as_json
from leanear.runtimes.speech.encoder_windows import transcribe_prompt
from tests.export.whisper_cases import noise, small_artifact, small_speech, small_whisper, torch_logits
from tests.whisper_models import make_extractor, make_whisper


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return small_artifact(tmp_path / "artifact", "ragged", "onnxruntime")


def _change_weight(artifact: Artifact, role: str, name: str, change) -> None:
    """Change one weight and let the manifest agree, as a faulty exporter would."""
    path = artifact.graphs[role]
    # with the data inside, which a graph may have as well
    model = onnx.load(str(path))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, str(path))
    _change_manifest(artifact.folder, lambda manifest: manifest["graphs"][role].update(sha256=sha256_file(path)))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_damaged_data_is_named(artifact: Artifact, role: str) -> None:
    path = artifact.folder / f"{role}.bin"
    data = np.fromfile(path, np.uint8)
    data[-5] ^= 1
    data.tofile(path)
    with pytest.raises(BadInput, match=rf"{role}.bin: sha256 differs from manifest.json's graphs.{role}.data.sha256"):
        read_artifact(artifact.folder)


def _change_manifest(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_artifact_reads_back_and_says_what_the_model_is(artifact: Artifact) -> None:
    model, manifest = small_whisper("ragged"), artifact.speech
    graphs = ["decoder.bin", "decoder.onnx", "encoder.bin", "encoder.onnx"]
    names = [*graphs, "golden.npz", "manifest.json", "vocabulary.json", "voice.onnx"]
    assert artifact.voice_graph == artifact.folder / "voice.onnx"
    assert sorted(path.name for path in artifact.folder.iterdir()) == names
    assert (artifact.family, artifact.task, artifact.labels) == ("whisper", "automatic-speech-recognition", ())
    assert not artifact.labels
    assert artifact.sample_rate_hz == 16000
    assert manifest.input.window_samples == 32000
    assert manifest.output.shape == ("rows", model.config.vocab_size)
    assert manifest.model["parameters"] == model.num_parameters()
    assert manifest.model["checkpoint_bytes"] == 4 * model.num_parameters()
    assert manifest.model["macs_tokens"] == 7, "of a window of 2 s"
    assert manifest.decoding == small_speech(model).decoding
    vocabulary = json.loads((artifact.folder / "vocabulary.json").read_text())
    assert vocabulary["tokens"][vocabulary["special_from"]] == "<|endoftext|>"
    assert len(vocabulary["tokens"]) == model.config.vocab_size
    assert artifact.graph_bytes == sum((artifact.folder / name).stat().st_size for name in graphs)
    embedding = np.fromfile(artifact.folder / "decoder.bin", np.float32, model.proj_out.weight.numel())
    np.testing.assert_array_equal(embedding, model.proj_out.weight.detach().numpy().ravel())
    place = {"file": "decoder.bin", "offset": 0, "shape": list(model.proj_out.weight.shape)}
    assert as_json(manifest.embedding) == {**place, "precision": "fp32", "blocks": None}


def test_golden_logits_are_those_of_the_model_step_by_step(artifact: Artifact) -> None:
    model, golden, decoding = small_whisper("ragged"), read_golden(artifact), artifact.speech.decoding
    speech = golden.speech
    assert speech is not None
    assert speech.prompt.tolist() == [
        decoding.start, decoding.languages["en"], decoding.transcribe, decoding.no_timestamps,
    ]  # fmt: skip
    for clip, waveform in enumerate(golden.waveforms):
        fed = np.concatenate([speech.prompt, speech.tokens[clip]])
        logits = torch_logits(model, waveform, fed[None])[0]
        kept = [0, *range(len(speech.prompt) - 1, len(fed) - 1)]
        np.testing.assert_allclose(golden.logits[clip], logits[kept], rtol=0, atol=1e-4)
        np.testing.assert_allclose(speech.log_sums[clip], np.log(np.exp(logits[kept]).sum(axis=1)), rtol=1e-5)
        allowed = logits[kept[1:]].copy()
        allowed[:, list(decoding.suppress)] = -np.inf
        allowed[0, list(decoding.begin_suppress)] = -np.inf
        assert speech.tokens[clip].tolist() == allowed.argmax(axis=1).tolist()
    # A model that says one thing over and over would prove little.
    assert len(np.unique(speech.tokens)) > 4


def test_same_arguments_give_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    again = small_artifact(tmp_path / "again", "ragged", "onnxruntime")
    for path in artifact.folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert again.identity == artifact.identity


@pytest.mark.parametrize("form", ["portable", "openvino"])
def test_every_form_is_proved(form: str, tmp_path: Path) -> None:
    parity = prove_parity_here(small_artifact(tmp_path / "artifact", "fewer heads", form).folder)
    assert parity.relative_difference < 1e-5


def test_proved_figures_are_in_the_manifest(artifact: Artifact) -> None:
    parity = prove_parity(artifact.folder, dense_graph_bytes=10**9)
    assert 0 < parity.relative_difference <= 1e-5
    assert parity.clips == parity.same_top1 == 2
    assert parity.tokens == parity.same_tokens == 2 * 24
    recorded = read_artifact(artifact.folder).manifest.parity
    assert recorded["relative_difference"] == parity.relative_difference
    assert recorded["tokens"] == 48


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("encoder", "front_end.filters"),
        ("encoder", "encoder.conv2.weight"),
        ("encoder", "decoder.layers.1.encoder_attn.key.weight"),
        ("decoder", "decoder.layers.0.self_attn.query_key_value.weight"),
        ("decoder", "decoder.layers.1.encoder_attn.output.bias"),
        ("decoder", "decoder.positions"),
    ],
)
def test_a_wrong_weight_fails(artifact: Artifact, role: str, name: str) -> None:
    _change_weight(artifact, role, name, lambda w: w * np.linspace(0.8, 1.1, w.size, dtype=np.float32).reshape(w.shape))
    with pytest.raises(ParityFailed, match="golden clip 0: logits differ by"):
        prove_parity_here(artifact.folder)
    assert read_artifact(artifact.folder).manifest.parity is None


def test_a_position_that_only_late_steps_read_is_proved_too(artifact: Artifact) -> None:
    def spoil(positions: np.ndarray) -> np.ndarray:
        positions[25] *= -1.0
        return positions

    _change_weight(artifact, "decoder", "decoder.positions", spoil)
    with pytest.raises(ParityFailed, match="at step 2[234]"):
        prove_parity_here(artifact.folder)


def test_nan_and_a_graph_that_is_not_smaller_fail(artifact: Artifact) -> None:
    with pytest.raises(ParityFailed, match="not fewer than the dense"):
        prove_parity_here(artifact.folder, dense_graph_bytes=artifact.graph_bytes)
    _change_weight(artifact, "decoder", "decoder.layer_norm.shift", lambda weight: weight * np.float32("nan"))
    with pytest.raises(ParityFailed, match="not finite|NaN"):
        prove_parity_here(artifact.folder)


def test_another_token_fails_although_logits_agree(artifact: Artifact) -> None:
    golden = np.load(artifact.folder / "golden.npz")
    arrays = {name: golden[name] for name in golden.files}
    arrays["tokens"][1, -1] = (arrays["tokens"][1, -1] + 1) % 200
    np.savez(artifact.folder / "golden.npz", **arrays)
    digest = sha256_file(artifact.folder / "golden.npz")
    _change_manifest(artifact.folder, lambda manifest: manifest["golden"].update(sha256=digest))
    with pytest.raises(ParityFailed, match="golden clip 1: decoded token 23 is not"):
        prove_parity_here(artifact.folder)


def test_program_says_so(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(artifact.folder)]) == 0
    assert "same tokens, on 2 clips" in capsys.readouterr().out
    _change_weight(artifact, "encoder", "encoder.positions", lambda weight: -weight)
    assert main([str(artifact.folder)]) == ParityFailed.exit_status
    assert capsys.readouterr().err.count("\n") == 1


def test_english_only_models_have_a_short_prompt(tmp_path: Path) -> None:
    model = make_whisper(english_only=True)
    speech = small_speech(model)
    assert transcribe_prompt(speech.decoding) == [speech.decoding.start, speech.decoding.no_timestamps]
    export_artifact(
        model,
        make_extractor(),
        [noise(5000)],
        tmp_path / "a",
        ExportOptions(form="portable", source={}, made_from={}),
        speech,
    )
    assert prove_parity_here(tmp_path / "a").tokens == 24


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    model = small_whisper("stock")
    speech = small_speech(model)
    short = replace(speech, vocabulary=speech.vocabulary[:-1])
    for clips, said, message in (
        ([], speech, "at least one"),
        ([np.zeros(0, np.float32)], speech, "golden clip 0"),
        ([np.zeros((2, 999))], speech, "mono"),
        ([noise(999)], short, "386 tokens, but the model's vocabulary has 387"),
    ):
        with pytest.raises(BadInput, match=message):
            export_artifact(
                model,
                make_extractor(),
                clips,
                tmp_path / "a",
                ExportOptions(form="portable", source={}, made_from={}),
                said,
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vocabulary", 7, "vocabulary is 7"),
        ("vocabulary.file", "../x.json", "vocabulary.file is not the plain name"),
        ("graphs.encoder", None, "graphs.encoder is None"),
        ("graphs.decoder.precision", 8, "graphs.decoder.precision is 8"),
        ("graphs.decoder.data", "x", "graphs.decoder.data is 'x'"),
        ("graphs.encoder.data", {}, "missing key 'graphs.encoder.data.file'"),
        ("graphs.decoder.data", None, "embedding is not a place"),
        ("embedding.offset", -4, "embedding.offset is -4"),
        ("embedding.shape", [386, 32], r"embedding.shape is \[386, 32\]"),
        ("output.shape", [1, "x"], "output.shape"),
        ("decoding.start", 10**6, "decoding.start is 1000000, not one of the 387 tokens"),
        ("decoding.suppress", [5, -1], r"decoding.suppress\[1\] is -1"),
        ("decoding.languages", {"en": "x"}, "decoding.languages.en is 'x'"),
        ("decoding.default_language", "fr", "decoding.default_language is 'fr'"),
        ("decoding.positions", 0, "decoding.positions is 0"),
        ("decoding.timestamp_end", 3, "decoding.timestamp_end is 3, not behind"),
        ("decoding.timestamp_end", 10**6, "decoding.timestamp_end is 1000000, not behind"),
        ("decoding.default_task", "sing", "decoding.default_task is 'sing'"),
        ("decoding.multilingual", 1, "decoding.multilingual is 1"),
        ("decoding.colour", 1, "unknown key 'decoding.colour'"),
        ("cache.layers", [], "cache.layers is not a list"),
        ("cache.layers", [{"self_key": [2]}], r"cache.layers\[0\].self_key is \[2\], expected a list of 2"),
        ("cache.cross_bytes", "9", "cache.cross_bytes is '9'"),
        ("input.window_samples", 0, "input.window_samples is 0"),
    ],
)
def test_a_malformed_manifest_is_named(artifact: Artifact, part: str, value, message: str) -> None:
    def change(manifest: dict) -> None:
        *outer, last = part.split(".")
        for key in outer:
            manifest = manifest[key]
        manifest[last] = value

    _change_manifest(artifact.folder, change)
    with pytest.raises(BadInput, match=message) as caught:
        read_artifact(artifact.folder)
    assert str(artifact.folder / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("key", ["vocabulary", "decoding", "cache", "embedding"])
def test_a_missing_part_and_a_damaged_vocabulary_are_named(artifact: Artifact, key: str) -> None:
    with open(artifact.folder / "vocabulary.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(BadInput, match=r"vocabulary\.json: sha256 differs"):
        read_artifact(artifact.folder)
    _change_manifest(artifact.folder, lambda manifest: manifest.pop(key))
    with pytest.raises(BadInput, match=f"missing key '{key}'"):
        read_artifact(artifact.folder)
