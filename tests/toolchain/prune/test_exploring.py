"""`leanear explore` from folder to folder, what it keeps, and what `leanear prune` says of a model that it hurt."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from leanear.benchmarks.formatting import without_folders
from leanear.cli.commands import run
from leanear.families.asked import NOTHING_ASKED
from leanear.prune import exploring, scoring
from leanear.prune.curve import measured_ratio
from leanear.prune.exploring import Exploration, Point, _begins_at, _command, summary, table_rows
from leanear.prune.widths import RotatedRecipe
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import as_json, read
from tests.conftest import tone, write_tiny, write_tones
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.whisper_pruning import write_audio
from tests.whisper_models import write_whisper

FILES = {"explore.json", "explore.md", "explore.html", ".scores"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny AST's folder, and its clips'."""

    folder = tmp_path_factory.mktemp("classifier")
    return write_tiny(folder / "model"), write_tones(folder / "data", 12)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny Whisper's folder, and its clips'."""
    folder = tmp_path_factory.mktemp("speaker")
    write_audio(folder / "data" / "train", 10)
    write_audio(folder / "data" / "test", 3, seed=1)
    return write_whisper(folder / "model"), folder / "data"


def explored(capsys, given, out: Path, *flags: str) -> dict:
    arguments = ["explore", str(given[0]), "--data", str(given[1]), "--out", str(out), "--json", *flags]
    assert run(arguments) == 0
    return json.loads(capsys.readouterr().out)


def passes(monkeypatch) -> list[str]:
    """The names of both passes, each time that a batch goes through one."""
    seen: list[str] = []

    def watch(name):
        original = getattr(scoring, name)

        def watched(*arguments, **options):
            seen.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(scoring, name, watched)

    watch("statistics_of")
    watch("squares_of")
    return seen


@pytest.fixture(scope="module")
def explored_folder(classifier, tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder with the classifier's curve and scores, and the passes that it took."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        seen = passes(patch)
        assert run(["explore", *map(str, (classifier[0], "--data", classifier[1], "--out", out))]) == 0
    return out, seen


def curve_of(explored_folder) -> dict:
    return json.loads((explored_folder[0] / "explore.json").read_text())


@pytest.mark.parametrize("kind", ["classifier", "speaker"])
def test_the_curve_of_a_folder(capsys, request, tmp_path, monkeypatch, kind):
    given, out, seen = request.getfixturevalue(kind), tmp_path / "out", passes(monkeypatch)
    found = explored(capsys, given, out)
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "explore.json").read_text()) == found
    assert (found["schema"], found["metric"]) == (
        "leanear-explore-1",
        "accuracy" if kind == "classifier" else "word error rate",
    )
    sparsities = [point["sparsity"] for point in found["points"]]
    assert sparsities == [tenth / 10 for tenth in range(1, len(sparsities) + 1)]
    assert len(sparsities) >= 6
    losses = [point["loss"] for point in found["points"]]
    assert losses == sorted(losses), "what may keep more is estimated to lose no more"
    for key in ("parameters", "macs"):
        sizes = [found[f"{key}_dense"], *(point[key] for point in found["points"])]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)
    measured = {point["sparsity"]: point["measured"] for point in found["points"] if point["measured"] is not None}
    assert list(measured) == [share for share in (0.3, 0.5, 0.7, 0.9) if share in sparsities]
    assert all(each["divergence"] > 0 and each["clips"] == found["held_out_clips"] for each in measured.values())
    assert found["latency_ms_dense"] is None
    assert all(point["latency_ms"] is None for point in found["points"])
    markdown = (out / "explore.md").read_text()
    whole = read(Exploration, out / "explore.json")
    assert as_json(whole) == found, "what is written is read, and the other way round"
    assert summary(whole) in markdown
    assert without_folders(found["command"]) in markdown.replace("\\", "")
    assert str(out.parent) not in markdown + (out / "explore.html").read_text(), "no folder of this machine"
    assert seen, "scored once"
    seen.clear()
    assert explored(capsys, given, out) == found
    assert seen == [], "the second time the scores are taken from the folder"


def test_a_point_is_the_model_that_prune_makes(capsys, explored_folder, tmp_path):
    found = curve_of(explored_folder)
    arguments = ["prune", *found["command"].split()[2:-1], str(tmp_path / "slim"), "--json"]
    assert run(arguments) == 0
    pruned = json.loads(capsys.readouterr().out)
    sparsity = float(arguments[arguments.index("--sparsity") + 1])
    point = next(point for point in found["points"] if point["sparsity"] == sparsity)
    assert pruned["parameters"] == pytest.approx(point["parameters"], rel=0.01)
    assert pruned["parameters_dense"] == found["parameters_dense"]
    curve = pruned["pruning"]["loss"]["curve"]
    assert [each["sparsity"] for each in curve] == [each["sparsity"] for each in found["points"]]


def test_what_is_printed_is_the_table(capsys, classifier, explored_folder, tmp_path, markdown_alone):
    model, data = classifier
    shutil.copytree(explored_folder[0], tmp_path / "out")
    assert run(["explore", str(model), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    document = read(Exploration, tmp_path / "out" / "explore.json")
    header, rows = table_rows(document)
    assert header == ("removed", "parameters", "MACs", "corrected estimate", "measured, nats", "accuracy, %")
    for row in rows:
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{row[0]} "))
        assert line.split() == " ".join(row).split()
    assert f"next:    {document.command}" in printed
    assert summary(document) in " ".join(printed.split())
    knees = [row for row in rows if "(knee)" in row[0]]
    assert len(knees) == (document.knee is not None)


@pytest.mark.parametrize("where", ["in the first pass", "in the second pass", "after the scores"])
def test_an_interrupted_run_goes_on(capsys, classifier, explored_folder, tmp_path, monkeypatch, markdown_alone, where):
    model, data = classifier
    out, seen = tmp_path / "out", passes(monkeypatch)
    assert set(explored_folder[1]) == {"statistics_of", "squares_of"}

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        place = {
            "in the first pass": (scoring, "merge_statistics"),
            "in the second pass": (scoring, "squares_of"),
            "after the scores": (exploring, "choose_measured"),
        }[where]
        patch.setattr(*place, interrupt)
        assert run(["explore", str(model), "--data", str(data), "--out", str(out)]) == 130
    assert not (out / "explore.json").exists()
    seen.clear()
    assert explored(capsys, classifier, out) == curve_of(explored_folder)
    if where == "in the second pass":
        assert set(seen) == {"squares_of"}
    if where == "after the scores":
        assert seen == []


def test_a_folder_with_something_else_in_it_is_left_alone(capsys, classifier, tmp_path):
    (tmp_path / "letters.txt").write_text("dear all")
    model, data = classifier
    assert run(["explore", str(model), "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "it is left alone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_scores_of_other_clips_are_not_used(capsys, classifier, explored_folder, tmp_path, monkeypatch, markdown_alone):
    other = shutil.copytree(classifier[1], tmp_path / "other")
    soundfile.write(other / "yes" / "0.wav", tone(4321), 16000)
    for number in range(12):
        soundfile.write(other / "up" / f"{number}.wav", tone(2000 + number), 16000)
    shutil.copytree(explored_folder[0], tmp_path / "out")
    seen = passes(monkeypatch)
    found = explored(capsys, (classifier[0], other), tmp_path / "out")
    assert seen
    assert found == explored(capsys, (classifier[0], other), tmp_path / "anew")


def document(divergence: float | None = 0.5, **changes) -> Exploration:
    measured = {
        "clips": 10, "divergence": divergence, "dense_mistakes": 1.0, "slim_mistakes": 4.0, "counted": 20.0,
        "low_points": None, "high_points": None, "standard_error_points": 1.0, "points": 15.0, "matters": True,
    }  # fmt: skip
    point = {"sparsity": 0.5, "loss": 0.04, "parameters": 50, "macs": 250, "latency_ms": 1.5, "measured": measured}
    facts = {
        "schema": "leanear-explore-1", "model": "a", "prune": "attention", "command": "leanear", "metric": "accuracy",
        "matters_nats": 0.05, "knee": 0.5, "begins_at": 0.42, "parameters_dense": 100, "macs_dense": 1000,
        "latency_ms_dense": 2.0, "held_out_clips": 10,
        "points": [point, {**point, "sparsity": 0.6, "measured": None}],
    }  # fmt: skip
    return read(Exploration, {**facts, **changes}, "explore.json")


def test_a_key_that_is_none_of_it_is_refused():
    with pytest.raises(BadInput, match=r"explore\.json: unknown key 'knees'"):
        document(knees=0.5)
    with pytest.raises(BadInput, match=r"explore\.json: begins_at is 'early', expected a number"):
        document(begins_at="early")


def test_rows_by_hand():
    header, rows = table_rows(document())
    assert header == ("removed", "parameters", "MACs", "ms", "corrected estimate", "measured, nats", "accuracy, %")
    assert rows[0] == ("50 % (knee)", "0.500×", "0.250×", "1.50", "0.04", "0.5", "95.0 → 80.0")
    assert rows[1] == ("60 %", "0.500×", "0.250×", "1.50", "0.04", "", "")
    header, rows = table_rows(document(latency_ms_dense=None, metric="word error rate", knee=None))
    assert header[-1] == "WER, %"
    assert rows[0] == ("50 %", "0.500×", "0.250×", "0.04", "0.5", "5.0 → 20.0")


def test_answers_that_are_not_numbers_are_not_called_nothing():
    assert table_rows(document(divergence=None))[1][0][5] == "not a number"


def test_the_curve_in_words():
    measured = "Measured on {}, before compensation and further rounds; estimates are corrected by what was measured."
    assert summary(document()) == (
        "A loss that matters (0.05 nats and more, or mistakes beyond chance) begins at about 42 %; the knee is at 50 %."
        " " + measured.format("10 held-out calibration clips")
    )
    assert summary(document(knee=None, begins_at=0.0, held_out_clips=1)) == (
        "Every size that was looked at has a loss that matters (0.05 nats and more, or mistakes beyond chance). "
        + measured.format("1 held-out calibration clip")
    )


def test_between_measured_points_losses_follow_them():
    ratio = measured_ratio([(0.7, 0.1, 0.4), (0.3, 0.01, 0.01), (0.9, 1.0, math.nan), (0.1, 1e-9, 1e-6)])
    assert [ratio(place) for place in (0.05, 0.3, 0.5, 0.7, 0.9)] == pytest.approx([1, 1, 2, 4, 4])
    assert measured_ratio([])(0.5) == 1.0
    assert measured_ratio([(0.7, 1e-9, 2.0)])(0.7) == pytest.approx(20_000), "what was thought to be free"


def test_the_command_is_of_what_was_explored():
    recipe = RotatedRecipe(calibration_clips=12, seed=3, prune="all")
    assert _command("demo-ast", Path("my clips"), NOTHING_ASKED, 0.4, recipe, "jetson") == (
        "leanear prune demo-ast --data 'my clips' --sparsity 0.4 --prune all --calibration-clips 12 --seed 3"
        " --target jetson --out slim/"
    )
    assert _command("m", None, NOTHING_ASKED, 0.5, RotatedRecipe(), "cpu") == (
        "leanear prune m --sparsity 0.5 --out slim/"
    )


@pytest.mark.parametrize(
    ("estimated", "measured", "begins"),
    [
        (0.78, {0.3: False, 0.5: False, 0.7: True, 0.9: True}, 0.5),
        (0.62, {0.3: False, 0.5: False, 0.7: True}, 0.62),
        (0.92, {0.3: False, 0.9: False}, 0.92),
        (0.4, {0.2: None, 0.3: True}, 0.2),
        (0.4, {0.3: True}, 0.0),
    ],
)
def test_what_was_measured_to_matter_belies_the_estimate(estimated, measured, begins):
    points = [
        Point(sparsity, 0.0, 1, 1.0, None, None if matters is None else SimpleNamespace(matters=matters))
        for sparsity, matters in measured.items()
    ]
    assert _begins_at(estimated, [*points, Point(0.6, 0.0, 1, 1.0, None, None)]) == begins


# Pruning says what it did


def test_a_model_that_was_hurt_comes_with_a_warning(capsys, speaker, tmp_path):
    model, data = speaker
    arguments = ["prune", str(model), "--data", str(data), "--out"]
    assert run([*arguments, str(tmp_path / "narrow"), "--sparsity", "0.75"]) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING: "))
    pruning = json.loads((tmp_path / "narrow" / "pruning.json").read_text())
    finished = pruning["loss"]["finished"]
    assert finished["matters"]
    assert finished["divergence"] >= 0.05
    assert "does damage here" in warning
    assert f"by {finished['divergence']:.3g} nats" in warning
    assert run([*arguments, str(tmp_path / "wide"), "--sparsity", "0.01"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert not json.loads((tmp_path / "wide" / "pruning.json").read_text())["loss"]["finished"]["matters"]


def test_the_plan_tells_what_was_estimated_and_what_was_measured(capsys, classifier, tmp_path):
    model, data = classifier
    flags = ["--sparsity", "0.5", *recipe_flags(tmp_path, "compensate = false")]
    assert run(["prune", str(model), "--data", str(data), "--out", str(tmp_path / "slim"), *flags]) == 0
    told = json.loads((tmp_path / "slim" / "plan.json").read_text())["recipe"]["loss_nats_per_target"]
    loss = json.loads((tmp_path / "slim" / "pruning.json").read_text())["loss"]
    chosen = loss["rounds"][loss["best"]]
    assert told == {
        "estimated": loss["estimated"], "measured": chosen["measured"], "finished": loss["finished"]["divergence"],
    }  # fmt: skip
    assert loss["estimated"] == loss["rounds"][loss["best"]]["estimated"]
    assert loss["finished"]["divergence"] == pytest.approx(loss["rounds"][loss["best"]]["measured"], rel=1e-3)
    assert 0 <= loss["begins_at"] < 1
