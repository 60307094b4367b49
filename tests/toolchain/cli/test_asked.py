"""Task and language from the command line: what is made, what is measured, and that neither is taken for another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from transformers import GenerationConfig

from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.results_document import DecodingFacts
from leanear.cli.commands import cli, run
from leanear.evaluate.speech_evaluation import count_results_word_errors, written_language
from leanear.families import whisper
from leanear.families.asked import Asked
from leanear.families.checkpoint import load_checkpoint
from leanear.plan import read_plan
from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions
from tests.runtimes.tiny_artifact import loudness_weights, write_tiny_artifact
from tests.toolchain.speech_folder import sound, write_speech_folder
from tests.whisper_models import make_tokenizer, write_whisper

pytestmark = pytest.mark.usefixtures("measured_here", "markdown_alone_here")

KNOWN = make_tokenizer().get_vocab()
DE, TRANSLATE = KNOWN["<|de|>"], KNOWN["<|translate|>"]
ASKED = ("--task", "translate", "--language", "de")
WITH_A_WHISPER = ("deploy", "prune", "explore", "export", "bench", "eval", "transcribe", "compare-methods")
TARGET = 'description = "Nothing"\nruntime = "null"\ngraph_form = "portable"\nprecision = "fp32"\nthreads = 1\n'


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """`model`, a Whisper of four languages of which its settings name none, with `data` and a target of no runtime."""
    folder = tmp_path_factory.mktemp("field")
    write_whisper(folder / "model", calm=True)
    write_speech_folder(folder / "data", [f"the colour of number {number}" for number in range(10)])
    (folder / "nothing.toml").write_text(TARGET)
    return folder


def run_in(field, command, *flags):
    return run([command, str(field / "model"), "--data", str(field / "data"), *flags])


@pytest.mark.parametrize("command", WITH_A_WHISPER)
def test_every_command_that_runs_a_whisper_takes_both(command):
    options = {option for parameter in cli.commands[command].params for option in parameter.opts}
    assert {"--task", "--language"} <= options


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "eval", "compare-methods"])
def test_a_classifier_has_neither(tiny_folder, field, tmp_path, capsys, command):
    out = [] if command == "eval" else ["--out", str(tmp_path / "out")]
    for label in ("up", "yes"):
        shutil.copytree(field / "data", tmp_path / "clips" / label, ignore=shutil.ignore_patterns("*.csv"))
    arguments = [command, str(tiny_folder), "--data", str(tmp_path / "clips"), *out, "--language", "de"]
    assert run(arguments) == 2
    assert "--task and --language are for Whisper; " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["deploy", "prune", "explore", "export", "eval", "compare-methods"])
def test_a_language_that_the_model_has_not_is_refused(field, tmp_path, capsys, command):
    out = [] if command == "eval" else ["--out", str(tmp_path / "out")]
    assert run_in(field, command, *out, "--language", "fr") == 2
    assert "no" in (said := capsys.readouterr().err.splitlines()[-1])
    assert "'fr'" in said
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("own", "asked", "language", "task"),
    [
        ({}, Asked(), None, "transcribe"),
        ({}, Asked("translate", "de"), "de", "translate"),
        ({"language": "de", "task": "translate"}, Asked(), "de", "translate"),
        ({"language": "de", "task": "translate"}, Asked(language="en"), "en", "translate"),
        ({"language": "de", "task": "translate"}, Asked("transcribe"), "de", "transcribe"),
        ({"language": "de"}, Asked(language="auto"), None, "transcribe"),
        ({"language": "german"}, Asked(), "de", "transcribe"),
    ],
)
def test_what_is_asked_for_comes_before_what_is_the_models_own(field, tmp_path, own, asked, language, task):
    shutil.copytree(field / "model", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    decoding = whisper.decoding_settings(load_checkpoint(tmp_path / "model", asked))
    assert (decoding.default_language, decoding.default_task) == (language, task)


@pytest.mark.parametrize("own", [True, False])
def test_clips_are_calibrated_on_under_that_prompt(field, tmp_path, own):
    shutil.copytree(field / "model", tmp_path / "model")
    if own:
        path = tmp_path / "model" / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "task": "translate", "language": "de"}))
    checkpoint = load_checkpoint(tmp_path / "model", Asked() if own else Asked("translate", "de"))
    clips = Clips((sound(0), sound(1)), np.zeros(0, np.int64), ("a", "b"), (), 16_000, ("the", "on and on"))
    tokens = whisper.labelled_inputs(checkpoint, clips).inputs.tokens
    prompt = [KNOWN["<|startoftranscript|>"], DE, TRANSLATE, KNOWN["<|notimestamps|>"]]
    assert tokens[:, :4].tolist() == [prompt, prompt]


def test_auto_is_no_language_to_refuse_of_a_model_of_one(tmp_path):
    folder = write_whisper(tmp_path / "model", english_only=True)
    assert whisper.decoding_settings(load_checkpoint(folder, Asked(language="auto"))).default_language == "en"
    with pytest.raises(BadInput, match="the model cannot translate"):
        load_checkpoint(folder, Asked(task="translate"))


def test_a_slim_checkpoint_is_of_what_was_asked_for(field, tmp_path):
    slim = tmp_path / "slim"
    assert run_in(field, "prune", "--out", str(slim), "--sparsity", "0.3", "--calibration-clips", "4", *ASKED) == 0
    plan, settings = read_plan(slim / "plan.json"), GenerationConfig.from_pretrained(slim)
    assert (settings.language, settings.task) == ("de", "translate")
    assert (plan.recipe["language"], plan.recipe["task"]) == ("de", "translate")
    assert (plan.made_from["language"], plan.made_from["task"]) == ("de", "translate")
    decoding = whisper.decoding_settings(load_checkpoint(slim))
    assert (decoding.default_language, decoding.default_task) == ("de", "translate")


def test_a_deployment_in_another_language_is_another(field, tmp_path, capsys):
    out, target = tmp_path / "out", str(field / "nothing.toml")
    flags = ["--target", target, "--out", str(out), "--calibration-clips", "6", "--budget", "1", "--sparsity", "0.2"]
    assert run_in(field, "deploy", *flags) == 0
    own = (out / "dense" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert run_in(field, "deploy", *flags, *ASKED) == 0
    said = capsys.readouterr().err
    assert "pruning: " in said
    assert "exporting dense" in said
    assert "measuring on null" in said
    assert "reading 4 calibration" not in said, "the clips are the same"
    for name in ("dense", "slim"):
        artifact = read_artifact(out / name)
        decoding = artifact.speech.decoding
        assert (decoding.default_language, decoding.default_task) == ("de", "translate")
        golden = read_golden(artifact).speech
        assert golden is not None
        assert golden.prompt.tolist()[1:3] == [DE, TRANSLATE]
    results = json.loads((out / "results" / "null-fp32.json").read_text())
    assert "EnglishTextNormalizer" in results["accuracy"]["word_errors"]["metric"], "translations are English"
    assert "translate" in (out / "report.md").read_text()
    assert run_in(field, "deploy", *flags, *ASKED) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run_in(field, "deploy", *flags) == 0
    assert "pruning: " in capsys.readouterr().err
    assert (out / "dense" / "manifest.json").read_bytes() == own


def test_a_benchmark_in_another_language_is_another(dense_speech, slim_speech, speech_clips_path, tmp_path):
    out = tmp_path / "results.json"

    def measured(**asked):
        options = SessionOptions(threads=1)
        return benchmark(
            dense_speech, slim_speech, speech_clips_path, "null", options, out, budget_s=0.2, samples=3, repeats=1,
            asked=asked,
        ).document  # fmt: skip

    own, german = measured(), measured(language="de")
    assert own["inputs_sha256"] != german["inputs_sha256"]
    assert german["accuracy"]["decoding"]["language"] == "de"
    for document, spoken in ((own, "en"), (german, "de")):
        heard = document["accuracy"]["roles"]["slim"]["languages"]
        assert set(heard) - {None} == {spoken}, "silence has none"
    assert measured(language="de")["started_utc"] == german["started_utc"]
    shutil.copy(out, tmp_path / "Basic.json")
    translated = measured(language="de", task="translate")
    assert translated["inputs_sha256"] not in (own["inputs_sha256"], german["inputs_sha256"])
    for path, normaliser in ((tmp_path / "Basic.json", "Basic"), (out, "English")):
        counted = count_results_word_errors(path, None).document["accuracy"]["word_errors"]
        assert f"{normaliser}TextNormalizer" in counted["metric"]


@pytest.mark.parametrize(
    ("asked", "clips", "said"),
    [
        ({"language": "fr"}, True, "this model has no 'fr'; it has de, en"),
        ({"task": "sing"}, True, "task is 'sing', expected one of transcribe, translate"),
        ({"language": "de"}, False, "--language: for the transcripts of clips, and none were given"),
    ],
)
def test_a_benchmark_refuses_before_it_measures(slim_speech, speech_clips_path, tmp_path, asked, clips, said):
    with pytest.raises(BadInput, match=said):
        benchmark(
            None, slim_speech, speech_clips_path if clips else None, "null", SessionOptions(threads=1),
            tmp_path / "results.json", asked=asked,
        )  # fmt: skip


def test_a_classifier_is_not_benchmarked_in_a_language(tmp_path, capsys):
    artifact = write_tiny_artifact(tmp_path / "artifact", loudness_weights(), source="tiny")
    flags = ["--out", str(tmp_path / "r.json"), "--threads", "1", "--language", "de"]
    assert run(["bench", str(artifact), *flags]) == 2
    assert "--task and --language are for Whisper; " in capsys.readouterr().err.splitlines()[-1]


def test_a_curve_and_a_comparison_say_what_was_asked_for(field, tmp_path, monkeypatch):
    curve, compared = tmp_path / "curve", tmp_path / "compared"
    assert run_in(field, "explore", "--out", str(curve), "--calibration-clips", "4", "--language", "de") == 0
    assert " --language de --sparsity " in json.loads((curve / "explore.json").read_text())["command"]
    from leanear.studies.methods import SPEECH_MODEL, methods

    chosen = tuple(method for method in methods(SPEECH_MODEL) if method.group in ("dense", "default"))[:2]
    monkeypatch.setattr("leanear.studies.comparing.methods", lambda _there=None: chosen)
    flags = ["--out", str(compared), "--calibration-clips", "4", "--sparsity", "0.5", "--seeds", "1"]
    assert run_in(field, "compare-methods", *flags, "--task", "translate") == 0
    assert json.loads((compared / "comparison.json").read_text())["made_from"]["task"] == "translate"


@pytest.mark.parametrize(
    ("decoding", "asked", "heard", "language"),
    [
        ({"multilingual": False, "default_language": "en"}, Asked(), [None], "en"),
        ({"multilingual": True, "default_language": None}, Asked(), ["de", "en", None, "de"], "de"),
        ({"multilingual": True, "default_language": None}, Asked(), [None, None], None),
        ({"multilingual": True, "default_language": "es"}, Asked(), ["de"], "es"),
        ({"multilingual": True, "default_language": "es"}, Asked(language="de"), ["es"], "de"),
        ({"multilingual": True, "default_language": "es"}, Asked(language="auto"), ["de"], "de"),
        ({"multilingual": True, "default_language": "es", "default_task": "translate"}, Asked(), ["es"], "en"),
        ({"multilingual": True, "default_language": "es", "default_task": "translate"}, Asked("transcribe"), [], "es"),
        ({"multilingual": True, "default_language": "es"}, Asked("translate"), ["es"], "en"),
    ],
)
def test_the_language_of_transcripts(decoding, asked, heard, language):
    facts = DecodingFacts(**{"window_s": 30.0, "positions": 448, "default_task": None, **decoding})
    assert written_language(facts, asked, heard) == language
