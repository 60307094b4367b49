"""The command as its users meet it: bad input is one clear line and a status, and every command has help."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from leanear.cli.commands import cli, run
from leanear.runtimes.errors import BadInput
from tests.conftest import tone
from tests.toolchain.recipes import recipe_flags

pytestmark = pytest.mark.usefixtures("measured_here")

ROOT = Path(__file__).parents[3]


def one_line(capsys) -> str:
    said = capsys.readouterr().err.strip().splitlines()
    complaint = [line for line in said if line.startswith("leanear: ")]
    assert len(complaint) == 1, said
    assert not any("Traceback" in line for line in said)
    return complaint[0]


@pytest.mark.parametrize("sparsity", ["0", "1", "1.5", "-0.5", "nan", "half"])
def test_sparsity_out_of_range(capsys, model, data, tmp_path, sparsity):
    arguments = ["prune", str(model), "--data", str(data), f"--sparsity={sparsity}", "--out", str(tmp_path / "slim")]
    assert run(arguments) == 2
    assert one_line(capsys).count("--sparsity") == 1
    assert not list(tmp_path.iterdir())


def test_unknown_target_lists_the_known(capsys):
    assert run(["deploy", "--target", "toaster"]) == 2
    assert "'toaster'; known are cpu, jetson, openvino, raspberrypi, rtx" in one_line(capsys)


def test_misspelt_flag(capsys):
    assert run(["deploy", "--targt", "cpu"]) == 2
    assert "--targt" in one_line(capsys)


def test_missing_model_folder(capsys, data, tmp_path):
    assert run(["prune", "./no/such/model", "--data", str(data), "--out", str(tmp_path / "slim")]) == 2
    assert "./no/such/model: no such model folder" in one_line(capsys)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "wav2vec2"}', "'wav2vec2'; leanear takes Audio Spectrogram Transformers"),
        ('{"model_type": "wav2vec2"}', "and Whisper (whisper)"),
        ("{", "not JSON"),
    ],
)
def test_a_model_of_another_family(capsys, data, tmp_path, config, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    assert run(["prune", str(folder), "--data", str(data), "--out", str(tmp_path / "slim")]) == 2
    line = one_line(capsys)
    assert message in line
    assert str(folder / "config.json") in line


def test_damaged_weights(capsys, model, data, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(["prune", str(broken), "--data", str(data), "--out", str(tmp_path / "slim")]) == 2
    assert f"{weights}: weights cannot be read" in one_line(capsys)


@pytest.mark.parametrize("kind", ["missing", "empty", "text named wav", "unknown label"])
def test_unusable_data(capsys, model, tmp_path, kind):
    folder = tmp_path / "data"
    if kind != "missing":
        folder.mkdir()
    if kind == "text named wav":
        (folder / "yes").mkdir()
        for name in ("a.wav", "b.wav"):
            (folder / "yes" / name).write_text("no audio")
    if kind == "unknown label":
        (folder / "perhaps").mkdir()
        for name in ("a.wav", "b.wav"):
            soundfile.write(folder / "perhaps" / name, tone(300), 16000)
    assert run(["prune", str(model), "--data", str(folder), "--out", str(tmp_path / "slim")]) == 2
    message = {
        "missing": "no such data folder",
        "empty": "no .wav",
        "text named wav": "not readable as audio",
        "unknown label": "'perhaps' is unknown to the model",
    }[kind]
    assert message in one_line(capsys)
    assert not (tmp_path / "slim").exists()


def test_a_model_without_audio_of_its_own_needs_data(capsys, model, tmp_path):
    assert run(["prune", str(model), "--out", str(tmp_path / "slim")]) == 2
    assert "--data is missing" in one_line(capsys)


def test_a_folder_with_something_else_in_it_is_left_alone(capsys, model, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert run(["prune", str(model), "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "left alone" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_cannot_be_written(capsys, model, data):
    for command in ("prune", "deploy", "explore", "export"):
        assert run([command, str(model), "--data", str(data), "--out", "/proc/leanear/slim"]) == 2
        said = "/proc/leanear/slim: --out cannot be written: nothing can be made in /proc (No such file or directory)"
        assert said in one_line(capsys)


def test_deploy_leaves_a_folder_with_something_else_in_it_alone(capsys, model, data, tmp_path):
    for name in ("checkpoint", "dense", ".x.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    assert run(["deploy", str(model), "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "left alone" in one_line(capsys)
    assert len(list(tmp_path.rglob("thesis.txt"))) == 3


@pytest.mark.parametrize("inside", ["model", "data"])
def test_deploy_does_not_replace_what_it_reads(capsys, model, data, tmp_path, inside):
    out = tmp_path / "deployment"
    out.mkdir()
    (out / ".leanear-lock").touch()
    paths = {"model": model, "data": data}
    paths[inside] = Path(shutil.copytree(paths[inside], out / "checkpoint"))
    assert run(["deploy", str(paths["model"]), "--data", str(paths["data"]), "--out", str(out)]) == 2
    assert "lies inside --out" in one_line(capsys)
    assert any((out / "checkpoint").iterdir())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '"hidden_act": "nope"', "config.json: no model can be built"),
        ("config.json", '"num_attention_heads": 0', "config.json: no model can be built"),
        ("config.json", '"hidden_size": "big"', "config.json: no model can be built"),
        ("config.json", '"id2label": ["a"]', "config.json: no model can be built"),
        ("config.json", '"num_hidden_layers": 0', "num_hidden_layers is 0"),
        ("config.json", '"hidden_act": "relu"', "hidden_act is 'relu'; only 'gelu' can be exported"),
        ("config.json", '"intermediate_size": 64', "has another shape in the weights"),
        (
            "preprocessor_config.json",
            '"sampling_rate": 0',
            "preprocessor_config.json: sampling_rate is 0; a whole number",
        ),
        ("preprocessor_config.json", '"max_length": 99', "max_length is 99, but config.json says 46"),
    ],
)
def test_settings_that_make_no_sense_are_named(capsys, model, data, tmp_path, name, text, message):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    settings = {**json.loads((folder / name).read_text()), **json.loads("{" + text + "}")}
    (folder / name).write_text(json.dumps(settings))
    assert run(["prune", str(folder), "--data", str(data), "--out", str(tmp_path / "slim")]) == 2
    line = one_line(capsys)
    assert message in line
    assert str(folder) in line


def test_a_checkpoint_runs_in_torch_alone_and_is_no_artifact(capsys, model, data, tmp_path):
    clip = next(data.rglob("*.wav"))
    for command in (["eval", str(model), "--data", str(data)], ["classify", str(clip), "--model", str(model)]):
        assert run([*command, "--runtime", "openvino"]) == 2
        assert one_line(capsys) == "leanear: --runtime openvino is for artifacts; a checkpoint runs in torch, in fp32"
    assert run(["bench", str(model), "--out", str(tmp_path / "results.json")]) == 2
    assert (
        one_line(capsys) == f"leanear: {model}: no artifact, for there is no manifest.json; `leanear export` makes one"
    )


def test_weights_that_are_not_numbers(capsys, model, data, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.dense.bias"][2] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert run(["eval", str(folder), "--data", str(data), "--json"]) == 2
    assert "NaN or infinite values, in 'classifier.dense.bias'" in one_line(capsys)


def test_flags_out_of_range(capsys, model, data):
    for flags in (["--seed", "9" * 20], ["--max-drop", "nan"], ["--data", ""]):
        assert run(["deploy", str(model), "--data", str(data), *flags]) == 2
        assert flags[0] in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--speedup 0.9", "--speedup is 0.9; it must be above 1"),
        ("--speedup inf", "Invalid value for '--speedup': inf is not a finite number"),
        ("--macs 1.5", "--macs is 1.5; it must lie between 0 and 1"),
        ("--latency-ms 0", "--latency-ms is 0; it must be above 0"),
        ("--max-drop -1", "--max-drop"),
        ("--max-drop 101", "--max-drop is 101"),
        ("--sparsity 0.5 --speedup 1.2", "--sparsity and --speedup: give one of them"),
        ("--macs 0.5 --latency-ms 9", "--macs and --latency-ms: give one of them"),
        ("--recipe nowhere.toml", "nowhere.toml: cannot be read (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "deploy"])
def test_goals_and_flags_that_do_not_go_together(capsys, model, data, tmp_path, command, flags, message):
    out = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert run([command, str(model), *out, *flags.split()]) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir()), "refused before any work"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--speedup 1.2", "--speedup is of method rotated"),
        ("--max-drop 1", "--max-drop is of method rotated"),
        ("--recovery full", "--recovery full is of method rotated"),
        ("--prune all", "--prune all is of method rotated"),
        ("--keep-scores scores", "--keep-scores is of method rotated"),
    ],
)
def test_options_that_the_reference_does_not_have(capsys, model, data, tmp_path, flags, message):
    recipe = recipe_flags(tmp_path, 'method = "reference"')
    out = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert run(["prune", str(model), *out, *recipe, *flags.split()]) == 2
    assert message in one_line(capsys)


def test_training_that_is_not_asked_for(capsys, model, data, tmp_path):
    recipe = recipe_flags(tmp_path, "[distillation]\nminutes = 5")
    assert run(["prune", str(model), "--data", str(data), "--out", str(tmp_path / "out"), *recipe]) == 2
    assert "[distillation] is of no use without --recovery full or lora" in one_line(capsys)


@pytest.mark.parametrize(("recipe", "seconds"), [("", 1200.0), ("[distillation]\nminutes = 0.5", 30.0)])
def test_recovery_ends_after_the_minutes_that_were_given(capsys, monkeypatch, model, data, tmp_path, recipe, seconds):
    from leanear.prune import pruning

    jobs = []

    def prune_checkpoint(*_arguments, job, **_settings):
        jobs.append(job)
        raise BadInput("enough")

    monkeypatch.setattr(pruning, "prune_checkpoint", prune_checkpoint)
    arguments = ["prune", str(model), "--data", str(data), "--out", str(tmp_path / "slim")]
    assert run([*arguments, "--recovery", "lora", *recipe_flags(tmp_path, recipe)]) == 2
    assert (jobs[0].recovery.method, jobs[0].recovery.seconds) == ("lora", seconds)


def test_milliseconds_out_of_reach(capsys, monkeypatch, model, data, tmp_path):
    """A table and measurements made up, so that nothing is timed: all of the model but its blocks takes 3 ms."""
    from leanear.data.clips import read_examples_for
    from leanear.prune import pruning
    from leanear.timing import model_timing
    from leanear.timing.block_timing import InTurn
    from leanear.timing.latency_table import LatencyTable, ModelTiming, read_geometry

    parts = dict(zip(LatencyTable.PARTS, (1.0, 0.0, 0.0, 0.1, 0.01, 0.01, 0.0), strict=True))
    kept: list[bool] = []

    def table(checkpoint, target):
        made = LatencyTable(
            read_geometry(checkpoint), target.graph_form, 3.0, ModelTiming((), 9.0, 9.0, 9.0),
            {"ordinary": parts, "last": parts}, (), 0.0, {},
        )  # fmt: skip
        return SimpleNamespace(get=lambda **_: made, kept=lambda: made if kept else None)

    monkeypatch.setattr(model_timing, "latency_table", table)
    monkeypatch.setattr(model_timing.AstTiming, "dense_and_slim", lambda *_: InTurn(6.0, 5.75))
    arguments = ["prune", str(model), "--data", str(data), "--out", str(tmp_path / "slim")]
    with monkeypatch.context() as unread:
        unread.setattr(pruning, "read_examples_for", lambda *_, **__: pytest.fail("a clip was read"))
        assert run([*arguments, "--latency-ms", "0.001"]) == 2
        assert one_line(capsys) == (
            "leanear: --latency-ms 0.001: 0.001 ms are out of reach: the narrowest model, no head, takes"
            " 5.75 ms on cpu, 1.04 times as fast as the dense one with 6 ms"
        )
        assert run([*arguments, "--speedup", "1.2"]) == 2
        assert "--speedup 1.2: 5 ms are out of reach: the narrowest model" in one_line(capsys)
        kept.append(True)
        assert run([*arguments, "--latency-ms", "2.9"]) == 2
        assert "2.9 ms are out of reach: the narrowest model, no head, takes 3 ms" in one_line(capsys)
        kept.clear()
    assert not (tmp_path / "slim").exists()
    assert pruning.read_examples_for is read_examples_for
    assert run([*arguments, "--latency-ms", "5.8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["pruning"]
    (check,) = facts["latency_checks"]
    assert (check["measured_dense_ms"], check["measured_ms"], check["met"]) == (6.0, 5.75, True)
    assert facts["goal"] == {"kind": "latency_ms", "value": 5.8}
    assert facts["cost"]["unit"] == "ms"
    assert facts["timed"]["precision"] == "fp32"
    assert facts["cost"]["slim"] <= 5.8 < facts["cost"]["dense"]
    assert run([*arguments, "--speedup", "1.02", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["pruning"]["cost"]
    assert cost["slim"] <= cost["dense"] / 1.02


def test_too_few_clips_to_hold_any_out(capsys, model, data, tmp_path):
    arguments = ["prune", str(model), "--data", str(data), "--out", str(tmp_path / "slim"), "--calibration-clips", "4"]
    assert run([*arguments, "--max-drop", "1"]) == 2
    assert "--max-drop 1: the search needs at least 6 calibration clips; there are 4" in one_line(capsys)


@contextlib.contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """Until the block ends this process may write no larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit_bytes", "written"), [(20_000, ".slim.state/statistics/chunk-00000.safetensors"), (80_000, "slim")]
)
def test_no_room_for_statistics_or_weights(capsys, model, data, tmp_path, limit_bytes, written):
    """A limit on file size stands in for a full disk: the write fails in the same place."""
    flags = ("--data", str(data), "--out", str(tmp_path / "slim"), "--calibration-clips", "4")
    with largest_file(limit_bytes):
        assert run(["prune", str(model), *flags]) == 1
    assert one_line(capsys).startswith(f"leanear: {tmp_path / written}: ")
    assert [path.name for path in tmp_path.iterdir()] == [".slim.state"], "nothing half-written, what was finished kept"
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_an_example_and_a_function(name, capsys):
    assert run([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Example" in printed
    assert f"leanear {name}" in printed
    (row,) = [row for row in (ROOT / "docs" / "running.md").read_text().splitlines() if row.startswith(f"| `{name}` |")]
    module, _, function = row.rstrip(" |").rpartition("`")[0].rpartition("`")[2].rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(module), function))
