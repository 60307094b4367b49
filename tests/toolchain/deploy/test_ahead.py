"""Engines that are built ahead of time in a deployment folder: what is kept, what is built again, and what is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from leanear.benchmarks.measure.measure import benchmark
from leanear.deploy.ahead import engine_sections, engines_stage, read_engines, say_engines
from leanear.deploy.measuring import pruning_sections, write_folder_report
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.progress import Narrator
from leanear.prune.document import Widths
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.backends.engines import engines_ahead
from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from leanear.runtimes.records import write
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target, read_target
from tests.runtimes.fake_tensorrt import FakeCuda, FakeTensorRT
from tests.runtimes.tiny_artifact import weights, write_tiny_artifact
from tests.toolchain.pruning_documents import pruning_document

REASON = "no NVIDIA GPU"
FP32, BF16 = (SessionOptions(threads=1, precision=precision) for precision in ("fp32", "bf16"))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(FakeCuda(devices=0), "tensorrt_rtx", "1.7.1", capable=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, role in enumerate(("dense", "slim")):
        write_tiny_artifact(tmp_path / role, weights(seed))
    return tmp_path


@pytest.fixture
def narrator() -> Narrator:
    return Narrator("quiet")


@pytest.fixture
def target() -> Target:
    return replace(read_target("rtx"), precision="fp32")


def test_engines_are_built_once_beside_their_graphs(library, folder, target, narrator):
    assert engines_stage(folder, target, REASON, narrator)
    assert not engines_stage(folder, target, REASON, narrator)
    assert len(library.builds) == 2
    for role in ("dense", "slim"):
        assert len(list((folder / role).glob("classifier-*.engine"))) == 1
        assert not (folder / role / "timing.cache").exists()
    document = read_engines(folder)
    assert document["execution"] == {"status": "not measured", "reason": REASON}
    assert document["library"] == ["tensorrt_rtx", "1.7.1"]


def test_another_version_takes_the_place_of_the_engines(library, folder, target, narrator):
    engines_stage(folder, target, REASON, narrator)
    library.__version__ = "1.8.0"
    assert engines_stage(folder, target, REASON, narrator)
    assert len(list((folder / "slim").glob("*.engine"))) == 1
    assert "1.8.0" in str(read_engines(folder))


def test_the_report_and_the_lines_say_what_was_not_run(library, folder, target, narrator, capsys):
    assert engine_sections(folder) == ()
    engines_stage(folder, target, REASON, narrator)
    (section,) = engine_sections(folder)
    assert "not measured (no NVIDIA GPU)" in str(section)
    assert "slim classifier" in str(section)
    say_engines(folder, Narrator())
    assert "execution: not measured (no NVIDIA GPU)" in " ".join(capsys.readouterr().err.split())


def test_where_they_are_measured_the_report_has_them_too(library, folder, target, narrator, markdown_alone):
    engines_stage(folder, target, "", narrator)
    out, options = folder / "results" / "null-fp32.json", SessionOptions(threads=1)
    benchmark(folder / "dense", folder / "slim", None, "null", options, out, budget_s=1.0, samples=4, repeats=1)
    text = write_folder_report(folder, out, folder, None).markdown.read_text(encoding="utf-8")
    assert "## Latency" in text
    assert "## Engines" in text
    assert "not measured (" not in text[text.index("## Engines") :]


def test_a_report_without_results_says_how_the_slim_model_came_about(folder):
    assert pruning_sections(folder) == ()
    (folder / "checkpoint").mkdir()
    little = MeasuredLoss(50, 0.001, 5.0, 5.0, 100.0, None, None, None)
    widths = Widths((16, 16), one_per_head=True, not_filled_up_by="tensorrt")
    write(folder / "checkpoint" / "pruning.json", pruning_document(little, widths=widths))
    (section,) = pruning_sections(folder)
    said = [block.text for block in section.blocks]
    assert said[0] == "50.0 % of the attention parameters are removed."
    assert "a multiple of 16, and the graph of form tensorrt fills no head up" in said[2]


def test_a_gpu_takes_the_engines_that_were_built_for_its_capability(library, folder, target, narrator):
    engines_stage(folder, target, REASON, narrator)
    artifact = read_artifact(folder / "slim")
    found = engines_ahead("tensorrt_rtx", artifact, FP32, "8.9")
    assert found is not None
    assert found["classifier"].path.parent == folder / "slim"
    assert engines_ahead("tensorrt_rtx", artifact, FP32, "9.0") is None
    library.__version__ = "1.8.0"
    assert engines_ahead("tensorrt_rtx", artifact, FP32, "8.9") is None


def test_a_slim_model_that_ships_in_bf16_has_such_engines(library, folder, target, narrator):
    engines_stage(folder, replace(target, precision="bf16"), REASON, narrator)
    assert read_engines(folder)["precision"] == "fp32 and bf16"
    slim = read_artifact(folder / "slim")
    assert engines_ahead("tensorrt_rtx", slim, BF16, "8.6") is not None
    assert engines_ahead("tensorrt_rtx", slim, FP32, "8.6") is None
    assert engines_ahead("tensorrt_rtx", read_artifact(folder / "dense"), FP32, "8.6") is not None


def test_a_node_that_the_parser_does_not_take_stops_the_deployment(library, folder, target, narrator):
    library.refused = "no importer"
    with pytest.raises(BadInput, match="parser does not take some.node"):
        engines_stage(folder, target, REASON, narrator)


def test_a_missing_library_names_the_command(folder, target, narrator, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(RuntimeUnavailable, match="pip install tensorrt-rtx"):
        engines_stage(folder, target, REASON, narrator)
