"""`leanear prune` of the same inputs into the same folder is done in no time, and anew where anything changed."""

from __future__ import annotations

import json

import pytest
import soundfile

from leanear.cli.commands import run
from leanear.deploy import exporting
from leanear.prune import pruning
from leanear.prune.scoring import SCORES_FILE
from leanear.runtimes.files import only_here
from tests.conftest import tone, write_tones


def test_what_was_pruned_from_the_same_inputs_is_done(capsys, caplog, monkeypatch, tiny_folder, tmp_path):
    data, out, scores = write_tones(tmp_path / "data", 6), tmp_path / "slim", tmp_path / "scores"
    arguments = [
        "prune",
        str(tiny_folder),
        "--data",
        str(data),
        "--out",
        str(out),
        "--calibration-clips",
        "8",
        "--json",
    ]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as again:
        again.setattr(pruning, "open_reachable", lambda *_: pytest.fail("the checkpoint was read"))
        assert run(arguments) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == first
        assert f"nothing to do: {out} was made before, from the same inputs" in printed.err
    made = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}

    def is_made_again(*flags: str) -> bool:
        assert run([*arguments, *flags]) == 0
        before = dict(made)
        made.update({path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()})
        return made != before

    assert not is_made_again()
    assert is_made_again("--keep-scores", str(scores))
    assert (scores / SCORES_FILE).is_file()
    assert not is_made_again("--keep-scores", str(scores))
    assert "replaces" not in caplog.text
    assert is_made_again("--sparsity", "0.3")
    assert f"{out}: replaces a model of another request (another job); --out FOLDER keeps both" in caplog.text
    for clip in (data / "yes").iterdir():
        soundfile.write(clip, tone(444), 16_000)
    assert is_made_again("--sparsity", "0.3")
    (out / "model.safetensors").write_bytes(b"damaged")
    assert is_made_again("--sparsity", "0.3")


def test_of_two_at_once_into_one_folder_the_second_is_refused(caplog, capsys, tiny_folder, tmp_path):
    data, out = write_tones(tmp_path / "data", 6), tmp_path / "slim"
    state = tmp_path / ".slim.state"
    arguments = ["prune", str(tiny_folder), "--data", str(data), "--out", str(out), "--calibration-clips", "8"]
    state.mkdir()
    with only_here(state, ()):
        assert run(arguments) == 2
        assert f"{state}: another leanear is at work in this folder" in capsys.readouterr().err
        assert not out.exists()
    assert run(arguments) == 0
    assert not state.exists()


def test_of_two_exports_at_once_into_one_folder_the_second_is_refused(capsys, monkeypatch, tiny_folder, tmp_path):
    """The second begins while the first one reads the checkpoint; what a killed one left half-written goes."""
    out, litter = tmp_path / "out [1]" / "artifact", tmp_path / "out [1]" / ".artifact.killed.part"
    arguments = ["export", str(tiny_folder), "--out", str(out)]
    load, second = exporting.load_checkpoint, []
    litter.mkdir(parents=True)

    def loaded(*given):
        with monkeypatch.context() as alone:
            alone.setattr(exporting, "load_checkpoint", load)
            second.append((run(arguments), capsys.readouterr().err))
        return load(*given)

    monkeypatch.setattr(exporting, "load_checkpoint", loaded)
    assert run(arguments) == 0
    ((status, said),) = second
    assert status == 2
    assert said.splitlines()[-1].endswith("another leanear is at work in this folder; wait, or choose another")
    assert sorted(path.name for path in out.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert [path.name for path in out.parent.iterdir()] == ["artifact"]
