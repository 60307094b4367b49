"""`leanear prune` of the same inputs into the same folder is done in no time, and anew where anything changed."""

from __future__ import annotations

import json

import pytest
import soundfile

from leanear.cli.commands import run
from leanear.deploy import exporting
from leanear.prune import closed_loop, pruning, stages
from leanear.prune.scoring import SCORES_FILE
from leanear.runtimes.files import only_here
from tests.conftest import tone, write_tones
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.speech_folder import write_speech_folder
from tests.whisper_models import write_whisper


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


@pytest.mark.parametrize("family", ["ast", "whisper"])
def test_an_interrupted_recovery_begins_again_from_what_was_pruned(capsys, monkeypatch, tiny_folder, tmp_path, family):
    """Nothing before it is done twice, unless another model is asked for; the bytes are those of one run."""
    texts, flags = [f"number {number}" for number in range(8)], ["--sparsity", "0.5", "--recovery", "full"]
    flags += ["--calibration-clips", "8"]
    model, data = tiny_folder, tmp_path / "data"
    if family == "ast":
        write_tones(data, 6)
    else:
        model = write_whisper(tmp_path / "model", calm=True)
        write_speech_folder(data, texts)
        flags += ["--task", "translate", "--language", "de"]
    flags += recipe_flags(tmp_path, "shots = 2\n[distillation]\nepochs = 1\n")
    command = ["prune", str(model), "--data", str(data), *flags, "--out"]
    measured, chosen = [], closed_loop.choose_measured

    def choose(*given, **named):
        measured.append(1)
        return chosen(*given, **named)

    monkeypatch.setattr("leanear.prune.rotated.choose_measured", choose)
    assert run([*command, str(tmp_path / "whole")]) == 0
    assert len(measured) == 2
    again = [*command, str(tmp_path / "resumed"), "--keep-scores", str(tmp_path / "scores")]
    with monkeypatch.context() as stopped:
        stopped.setattr(stages, "distill_", lambda *_given, **_named: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(again) == 130
        assert len(measured) == 4
        assert run([*again, "--sparsity", "0.4"]) == 130
        assert len(measured) == 6, "another model's is not taken"
        assert run(again) == 130
    measured.clear()
    with monkeypatch.context() as once:
        once.setattr(stages, "compensate_", lambda *_given, **_named: pytest.fail("compensated again"))
        assert run(again) == 0
    assert measured == []
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.is_file()]
    assert {"model.safetensors", "plan.json", "pruning.json", "config.json"} <= {*names}
    for name in names:
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (tmp_path / "scores" / "scores.safetensors").is_file()
    assert not list((tmp_path / "scores").rglob("model.safetensors")), "it is of no more use"
