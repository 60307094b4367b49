"""Packed files: every byte comes back, what two files share travels once, and damage ends with one line."""

from __future__ import annotations

import filecmp
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from leanear.benchmarks.device.bundled import BUNDLE_FILE, BundleRun, read_bundle, unpack_bundle, unpacked_bytes
from leanear.devices.bundle import Packer, Stretch, tensors_of, write_bundle
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file
from tests.runtimes.tiny_artifact import write_tiny_artifact

RUN = BundleRun("null", "fp32", "fp32", 1, 1.0, 0.0)
WINDOW = 30_000
FILES = ["model.onnx", "golden.npz", "manifest.json"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Two models of 480 kB whose weights are those of one, and one whose weights are others."""
    folder = tmp_path_factory.mktemp("artifacts")
    weights = [np.random.default_rng(seed).standard_normal((WINDOW, 4)).astype(np.float32) for seed in (0, 1)]
    made = {"dense": weights[0], "same": weights[0], "other": weights[1]}
    return {name: write_tiny_artifact(folder / name, matrix, source=name) for name, matrix in made.items()}


def bundle_of(artifacts, slim, out):
    return write_bundle(out, name="x", target="x", slim=artifacts[slim], dense=artifacts["dense"], clips=None, run=RUN)


@pytest.mark.parametrize("slim", ["same", "other"])
def test_every_byte_comes_back(artifacts, tmp_path, slim):
    bundle = bundle_of(artifacts, slim, tmp_path / "bundle")
    graphs = [artifacts[name] / "model.onnx" for name in ("dense", slim)]
    assert not (bundle.folder / "slim" / "model.onnx").exists()
    unpack_bundle(bundle)
    for role, name in (("dense", "dense"), ("slim", slim)):
        assert filecmp.cmpfiles(bundle.folder / role, artifacts[name], FILES, shallow=False) == (FILES, [], [])
        read_artifact(bundle.folder / role)
    assert unpacked_bytes(bundle.folder, bundle.document.files) >= sum(path.stat().st_size for path in graphs)


def test_what_two_models_share_travels_once_and_floats_take_less(artifacts, tmp_path):
    sizes = {}
    for slim in ("same", "other"):
        files = bundle_of(artifacts, slim, tmp_path / slim).document.files
        sizes[slim] = [files[f"{role}/model.onnx.packed"].bytes for role in ("dense", "slim")]
    weights = WINDOW * 4 * 4  # bytes
    assert sizes["same"][1] < 0.01 * weights
    # Of a standard normal float32 at least 24 bits are noise: its sign and its mantissa.
    assert all(24 / 32 * weights < size < 0.9 * weights for size in sizes["other"])


def test_files_are_unpacked_once_and_again_where_they_were_changed(artifacts, tmp_path):
    bundle = bundle_of(artifacts, "other", tmp_path / "bundle")
    unpack_bundle(bundle)
    graph = bundle.folder / "slim" / "model.onnx"
    first = graph.stat().st_mtime_ns
    unpack_bundle(bundle)
    assert graph.stat().st_mtime_ns == first
    graph.write_bytes(b"half of it")
    unpack_bundle(bundle)
    assert filecmp.cmp(graph, artifacts["other"] / "model.onnx", shallow=False)


def edited(bundle, name, edit):
    """The bundle with a file's bytes changed, and its sha256 in bundle.json with them."""
    path = bundle.folder / name
    path.write_bytes(edit(path.read_bytes()))
    document = json.loads((bundle.folder / BUNDLE_FILE).read_text())
    document["files"][name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    (bundle.folder / BUNDLE_FILE).write_text(json.dumps(document))
    return read_bundle(bundle.folder)


def header_edit(**change):
    def edit(data):
        line, _, streams = data.partition(b"\n")
        header = json.loads(line)
        for key, value in change.items():
            (header["parts"][0] if key in header["parts"][0] else header)[key] = value
        return json.dumps(header).encode() + b"\n" + streams

    return edit


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda data: data[:-1], "does not unpack"),
        (lambda data: b"[]\n" + data, "not a packed file of this version"),
        (lambda data: b"\xff" + data, "not a packed file"),
        (header_edit(schema="leanear-packed-0"), "not a packed file of this version"),
        (header_edit(sha256="0" * 64), "another sha256"),
        (header_edit(of="../../etc/passwd"), "not a packed file of this version"),
        (header_edit(of="slim/absent"), "needs slim/absent"),
    ],
)
def test_a_packed_file_that_is_wrong_is_one_line(artifacts, tmp_path, edit, word):
    bundle = bundle_of(artifacts, "same", tmp_path / "bundle")
    bundle = edited(bundle, "slim/model.onnx.packed" if word != "does not unpack" else "dense/model.onnx.packed", edit)
    with pytest.raises(BadInput, match=word) as raised:
        unpack_bundle(bundle)
    assert "\n" not in str(raised.value)
    assert not list(bundle.folder.rglob("*.part"))


def test_a_python_without_zlib_is_told_so(artifacts, tmp_path, monkeypatch):
    bundle = bundle_of(artifacts, "same", tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "zlib", None)
    with pytest.raises(BadInput, match="no zlib"):
        unpack_bundle(bundle)


def test_weights_in_a_file_beside_the_graph_are_found(tmp_path):
    """The library that wrote the file says where each tensor lies."""
    weights = {f"w{n}": np.random.default_rng(n).standard_normal(2000 + n).astype(np.float32) for n in range(3)}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in weights]
    outputs = [helper.make_tensor_value_info(f"{name}.out", 1, value.shape) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    found = tensors_of(Artifact(tmp_path, {}, {"classifier": path}, (), 16_000))["model.data"]
    data = (tmp_path / "model.data").read_bytes()
    assert [data[each.offset : each.offset + each.length] for each in found] == [v.tobytes() for v in weights.values()]
    assert all(each.width == 4 for each in found)


def test_tensors_that_overlap_or_repeat_within_a_file_are_kept(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 100_001, np.uint8).tobytes()
    source = tmp_path / "source"
    source.write_bytes(data + data)
    tensors = [Stretch(0, 8192, 4), Stretch(4096, 8192, 4), Stretch(100_001, 8192, 2)]
    (tmp_path / "bundle").mkdir()
    Packer().pack(source, "a", tmp_path / "bundle" / "a.packed", tensors)
    bundle = Bundled(tmp_path / "bundle")
    unpack_bundle(bundle)
    assert (tmp_path / "bundle" / "a").read_bytes() == data + data


class Bundled:
    """As much of a bundle as is unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.document = folder, SimpleNamespace(files=[path.name for path in folder.iterdir()])
