"""An artifact's manifest is read strictly: a value of the wrong kind is named."""

from __future__ import annotations

import json

import pytest

from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file
from tests.runtimes.tiny_artifact import weights, write_tiny_artifact


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("graphs", None, 7, "graphs is 7"),
        ("graphs", "classifier", 7, "graphs.classifier is 7"),
        ("graphs", "decoder", {}, "missing key 'graphs.decoder.file'"),
        ("graphs", None, {}, r"graphs are \[\], expected classifier"),
        ("family", None, 7, "family is 7"),
        ("task", None, "translation", "task is 'translation'"),
        ("parity", None, 7, "parity is 7"),
        ("graphs.classifier", "file", "../model.onnx", "graphs.classifier.file is not the plain name"),
        ("graphs.classifier", "opset", "20", "graphs.classifier.opset is '20'"),
        ("graphs.classifier", "speed", 1, "unknown key 'graphs.classifier.speed'"),
        ("golden", "sha256", None, "golden.sha256"),
        ("input", "sample_rate_hz", 0, "input.sample_rate_hz is 0"),
        ("labels", None, "x", "labels is 'x', expected a list"),
        ("output", "shape", [1, 99], "output.shape"),
    ],
)
def test_a_malformed_manifest_is_named(tmp_path, part, key, value, message):
    folder = write_tiny_artifact(tmp_path / "artifact", weights())
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    *outer, last = f"{part}.{key}".split(".") if key else [part]
    inner = manifest
    for step in outer:
        inner = inner[step]
    inner[last] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=message) as caught:
        read_artifact(folder)
    assert str(path) in str(caught.value)


def test_golden_clips_that_are_no_clips_are_named(tmp_path):
    folder = write_tiny_artifact(tmp_path / "artifact", weights())
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    golden = folder / manifest["golden"]["file"]
    golden.write_bytes(b"PK not really")
    manifest["golden"]["sha256"] = sha256_file(golden)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="not a file of golden clips"):
        read_golden(read_artifact(folder))
