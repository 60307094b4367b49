"""Two checkpoints of one name have two deployment folders; one checkpoint has one, however it is named."""

from __future__ import annotations

from pathlib import Path

from leanear.deploy.pipeline import claim, default_folder


def test_two_models_called_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("one", "two"):
        Path(run, "model").mkdir(parents=True)
    first = default_folder("one/model", "cpu")
    assert first == Path("deployments/model/cpu")
    assert default_folder("two/model", "cpu") == first, "nobody has it yet"
    first.mkdir(parents=True)
    claim(first, "one/model")
    second = default_folder("two/model", "cpu")
    assert second.parent.name.startswith("model-")
    second.mkdir(parents=True)
    claim(second, "two/model")
    for name in ("two/model", str(tmp_path / "two" / "model"), "one/../two/model"):
        assert default_folder(name, "cpu") == second
    assert default_folder("one/model", "cpu") == first
    assert default_folder("one/model", "openvino").parent == first.parent


def test_a_hub_id_and_a_demo_are_themselves_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, name in (("org/model", "org--model"), ("demo-ast", "demo-ast")):
        folder = default_folder(model, "cpu")
        assert folder == Path("deployments") / name / "cpu"
        folder.mkdir(parents=True)
        claim(folder, model)
        assert default_folder(model, "cpu") == folder
