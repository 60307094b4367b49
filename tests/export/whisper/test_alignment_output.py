"""Artifacts made for word times: the decoder gives what alignment heads look at, and no other artifact changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from leanear.export.parity import prove_parity_here
from leanear.export.whisper.golden_speech import cross_attention, window_states
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import BadInput, ParityFailed
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.manifest import Alignment
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.speech_model import read_speech_model, require_word_times
from leanear.runtimes.speech.word_times import softmax
from tests.export.whisper_cases import KINDS, noise, small_artifact, small_whisper
from tests.whisper_models import make_extractor

HEADS = ((0, 0), (1, 0))
ALIGNMENT = Alignment(HEADS, "generation_config")
CLIP = noise(20_000)
TOKENS = np.array([257, 258, 262, 267, 5, 80, 33, 100, 256])
RUNTIMES = {"portable": "onnxruntime", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(scope="module", params=[(kind, form) for kind in KINDS for form in RUNTIMES], ids="-".join)
def exported(request, tmp_path_factory):
    kind, form = request.param
    folder = tmp_path_factory.mktemp("alignment") / "artifact"
    return kind, form, small_artifact(folder, kind, form, alignment=ALIGNMENT)


def in_torch(kind: str, waveform: np.ndarray, frames: int = 200) -> np.ndarray:
    model = small_whisper(kind)
    features = make_extractor()(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        weights = cross_attention(model, TOKENS, window_states(model.model.encoder, features[..., :frames]))
    return np.stack([weights[layer][head] for layer, head in HEADS])


def test_the_graph_looks_where_the_checkpoint_does(exported):
    kind, form, artifact = exported
    session = choose_runtime(RUNTIMES[form]).load(artifact, SessionOptions(threads=1))
    session.encode(CLIP)
    options = DecodeOptions(timestamps=False, stop_repeats=False)
    said = decode_window(session, read_speech_model(artifact).tokens, options)
    found = session.alignment_scores(TOKENS)
    assert found.shape == (2, len(TOKENS), 100)
    assert np.allclose(softmax(found), in_torch(kind, CLIP), atol=5e-4)
    assert decode_window(session, read_speech_model(artifact).tokens, options) == said  # nothing is left behind
    session.close()


def test_the_proof_includes_attention(exported, tmp_path):
    _, _, artifact = exported
    figures = prove_parity_here(artifact.folder)
    proved = json.loads((artifact.folder / "manifest.json").read_text())
    assert 0 <= proved["alignment"]["moved"] < 1e-3
    assert "moved" not in json.dumps(proved["parity"])
    assert figures.tokens == figures.same_tokens


def test_attention_that_is_elsewhere_is_not_proved(tmp_path):
    artifact = small_artifact(tmp_path / "artifact", alignment=ALIGNMENT)
    with np.load(artifact.folder / "golden.npz") as arrays:
        kept = dict(arrays)
    kept["alignment"] = np.roll(kept["alignment"], 1, axis=-1)
    np.savez(artifact.folder / "golden.npz", **kept)
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    manifest["golden"]["sha256"] = sha256_file(artifact.folder / "golden.npz")
    write_json(artifact.folder / "manifest.json", manifest)
    with pytest.raises(ParityFailed, match="golden clip 0: 0.* of the alignment heads' attention is not where"):
        prove_parity_here(artifact.folder)


@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_a_short_window_has_fewer_positions(form, tmp_path, monkeypatch):
    monkeypatch.setattr("leanear.runtimes.speech.encoder_windows.AUTO_FROM_S", 1)
    monkeypatch.setattr("leanear.runtimes.speech.encoder_windows.TAIL_S", 0.1)
    artifact = small_artifact(tmp_path / "artifact", form=form, alignment=ALIGNMENT, window="auto")
    session = choose_runtime(RUNTIMES[form]).load(artifact, SessionOptions(threads=1))
    clip = noise(9_000)
    session.encode(clip, 16_000)
    found = session.alignment_scores(TOKENS)
    assert found.shape == (2, len(TOKENS), 50)
    assert np.allclose(softmax(found), in_torch("stock", clip, 100), atol=5e-4)
    session.encode(CLIP)
    assert np.allclose(softmax(session.alignment_scores(TOKENS)), in_torch("stock", CLIP), atol=5e-4)
    session.close()


@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_eight_bits_look_nearly_there(form, tmp_path):
    clips = [noise(20_000), noise(30_000)]
    settings = {"precision": "int8", "quantiser_waveforms": clips}
    artifact = small_artifact(tmp_path / "artifact", form=form, clips=clips, alignment=ALIGNMENT, **settings)
    session = choose_runtime(RUNTIMES[form]).load(artifact, SessionOptions(threads=1, precision="int8"))
    session.encode(clips[0])
    moved = 0.5 * np.abs(softmax(session.alignment_scores(TOKENS)) - in_torch("stock", clips[0])).sum(axis=-1).mean()
    assert 0 < moved < 0.25
    session.close()


def test_other_artifacts_have_neither_output_nor_cost(tmp_path):
    plain, aligned = small_artifact(tmp_path / "plain"), small_artifact(tmp_path / "aligned", alignment=ALIGNMENT)
    outputs = {
        folder.name: [output.name for output in onnx.load(folder / "decoder.onnx").graph.output]
        for folder in (plain.folder, aligned.folder)
    }
    assert set(outputs["aligned"]) - set(outputs["plain"]) == {"alignment"}
    assert plain.speech.alignment is None
    for file in ("encoder.onnx", "encoder.bin", "decoder.bin", "vocabulary.json"):
        assert (plain.folder / file).read_bytes() == (aligned.folder / file).read_bytes()
    with pytest.raises(BadInput, match=r"graphs of here do not give.*export CHECKPOINT --word-timestamps"):
        require_word_times(read_speech_model(plain), "here")
    require_word_times(read_speech_model(aligned), "here")
    assert read_speech_model(aligned).alignment == ALIGNMENT == aligned.speech.alignment


def test_fused_kernels_give_no_attention(tmp_path):
    with pytest.raises(BadInput, match="--word-timestamps: TensorRT's fused kernels"):
        small_artifact(tmp_path / "artifact", form="tensorrt", alignment=ALIGNMENT)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": [[0, 0], [2, 0]]}, r"alignment.heads names \[2, 0\]"),
        ({"heads": [[0, 2]]}, r"alignment.heads names \[0, 2\]"),
        ({"heads": [[0, True]]}, r"alignment.heads\[0\]\[1\] is True"),
        ({"heads": []}, "not an ascending list"),
        ({"heads": [[1, 0], [0, 0]]}, "not an ascending list"),
        ({"chosen_by": "hand"}, "alignment.chosen_by is 'hand'"),
        ({"filter_positions": 4}, "not an odd number"),
        ({"lost": -1}, "alignment.lost is -1"),
        ({"more": 1}, "unknown key 'alignment.more'"),
    ],
)
def test_a_manifest_with_other_heads_is_refused(changes, complaint, tmp_path_factory, proved_once):
    manifest = json.loads((proved_once / "manifest.json").read_text())
    folder = tmp_path_factory.mktemp("changed")
    for file in proved_once.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest["alignment"].update(changes)
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(BadInput, match=complaint):
        read_artifact(folder)


@pytest.fixture(scope="module")
def proved_once(tmp_path_factory) -> Path:
    return small_artifact(tmp_path_factory.mktemp("once") / "artifact", alignment=ALIGNMENT).folder
