"""The benchmark of speech: stages, memory over windows, transcripts clip by clip, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanear.benchmarks.device.commands import main
from leanear.benchmarks.inference import STAGES, one_inference
from leanear.benchmarks.measure.evaluation import evaluate_logits, evaluate_transcripts
from leanear.benchmarks.measure.front_end import share_of_nodes
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.measure.transcripts import measure_transcripts, read_transcripts
from leanear.benchmarks.results import read_results, write_results
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.clips import read_clips, write_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import transcribe_prompt, window_tokens
from tests.benchmarks.speech_artifact import POSITIONS, WINDOW_S, say, write_speech_artifact
from tests.benchmarks.test_results import changed

OPTIONS = SessionOptions(threads=1)
QUICK = {"budget_s": 0.5, "samples": 6, "repeats": 2}


def test_the_stages_add_up_to_the_sample(speech_results):
    assert speech_results.is_speech
    for role in ("dense", "slim"):
        for repeat in speech_results.repeats(role):
            assert set(repeat.stages_ms) == set(STAGES)
            stages = np.array([repeat.stages_ms[name] for name in STAGES])
            assert stages.shape[1] == len(repeat.samples_ms)
            apart = np.array(repeat.samples_ms) - stages.sum(axis=0)
            assert (apart >= -0.001).all()
            assert np.median(apart) < 1.0, "but for a pause of the process"
    assert speech_results.document["latency"]["settings"]["tokens"] == 4
    assert len(speech_results.stages_ms("slim", "encoder")) == 3


class Listening:
    """A session that writes down what it is asked to do, and always finds the end the likeliest."""

    def __init__(self, vocabulary: int, end: int) -> None:
        self.calls, self.vocabulary, self.end = [], vocabulary, end

    def encode(self, waveform, window=None):
        assert window == len(say())
        self.calls.append(("encode", len(waveform)))

    def start(self, rows=1):
        self.calls.append(("start", rows))

    def step(self, tokens, parents=None):
        self.calls.append(("step", tokens.tolist()))
        logits = np.zeros((1, self.vocabulary), np.float32)
        logits[0, self.end], logits[0, 3] = 9.0, 1.0
        return logits


def test_a_window_makes_as_many_tokens_as_it_is_told_whatever_the_model_says(dense_speech):
    artifact = read_artifact(dense_speech)
    decoding = artifact.speech.decoding
    session = Listening(artifact.speech.output.shape[1], decoding.end)
    one_inference(session, artifact, say("cat"), 5)()
    prompt = [decoding.start, decoding.languages["en"], decoding.transcribe, decoding.no_timestamps]
    steps = [("step", [prompt]), *[("step", [[3]])] * 4]
    assert session.calls == [("encode", len(say())), ("start", 1), *steps]


def test_the_number_of_tokens_follows_the_window(dense_speech):
    own = read_artifact(dense_speech).speech.decoding
    decoding = replace(own, window_s=30.0, positions=448)
    assert window_tokens(decoding) == 100
    assert window_tokens(replace(decoding, window_s=6.0)) == 20
    assert window_tokens(replace(decoding, positions=POSITIONS)) == POSITIONS - 4, "no more than fit behind the prompt"
    assert window_tokens(own) == 4
    english = replace(decoding, multilingual=False)
    assert transcribe_prompt(english) == [decoding.start, decoding.no_timestamps]
    assert transcribe_prompt(replace(decoding, default_language=None))[1] == decoding.languages["en"]


def test_memory_is_looked_at_after_every_window(speech_results):
    for stages in speech_results.document["memory"]["roles"].values():
        assert 20 <= len(stages["rss_run_bytes"]) <= 50
        assert max(stages["rss_run_bytes"]) <= stages["peak_rss_bytes"]


def test_transcripts_are_what_was_said(speech_results, speech_clips_path):
    accuracy, clips = speech_results.document["accuracy"], read_clips(speech_clips_path)
    assert accuracy["references"] == list(clips.texts)
    assert accuracy["word_errors"] is None, "they are counted on the workstation"
    for answers in accuracy["roles"].values():
        heard = [text for text, reference in zip(answers["texts"], clips.texts) if text == reference]
        assert len(heard) == 9
        assert answers["texts"][3] == "the cat down"
        assert answers["texts"][-1] == "", "silence"
        assert answers["tokens"][:3] == [3, 2, 4]
        assert answers["languages"] == ["en"] * 12 + [None]
        assert all(seconds > 0 for seconds in answers["seconds"])
    assert accuracy["decoding"]["temperatures"] == [0.0]
    assert accuracy["decoding"]["timestamps"] is False
    assert accuracy["audio_s"] == [WINDOW_S] * 12 + [0.25]


def test_the_clips_joined_are_heard_as_well(speech_results, speech_clips_path):
    recordings, clips = speech_results.document["recordings"], read_clips(speech_clips_path)
    assert recordings["status"] == "ok"
    assert " ".join(recordings["references"]) == " ".join(clips.texts)[: len(" ".join(recordings["references"]))]
    assert min(recordings["audio_s"]) >= 3 * WINDOW_S
    for answers in recordings["roles"].values():
        assert len(answers["texts"]) == len(recordings["names"]) > 1
        assert min(answers["windows"]) > 1


def test_the_identity_and_the_cache_are_recorded(speech_results, dense_speech):
    facts = speech_results.document["artifacts"]["dense"]
    assert set(facts["graphs"]) == {"encoder", "decoder"}
    assert facts["cache"]["bytes_per_token"] == 512
    assert facts["decoding"] == {
        "window_s": WINDOW_S,
        "positions": POSITIONS,
        "multilingual": True,
        "default_language": "en",
        "default_task": "transcribe",
    }
    assert facts["vocabulary"] == read_artifact(dense_speech).speech.output.shape[1]


def test_transcribing_goes_on_from_the_clips_that_were_done(slim_speech, speech_clips_path, tmp_path):
    store = tmp_path / "transcripts.json"
    row = {"text": "kept", "language": None, "tokens": 1, "compression_ratio": 0.5, "seconds": 1.0}
    write_json(store, {"schema": "leanear-transcripts-1", "rows": [row] * 2})
    request = {
        "artifact": str(slim_speech),
        "runtime": "null",
        "threads": 1,
        "precision": "fp32",
        "window": None,
        "clips": str(speech_clips_path),
        "transcripts": str(store),
    }
    assert measure_transcripts(request, lambda *_: None) == {"clips": 13}
    assert [row.text for row in read_transcripts(store)][:3] == ["kept", "kept", "seven dog ran home"]
    store.write_text(store.read_text()[:50])
    assert read_transcripts(store) == ()


@pytest.mark.usefixtures("run_in_one_process")
def test_clips_longer_than_a_window_are_taken_with_timestamps(slim_speech, tmp_path, speech_clips_path):
    clips = read_clips(speech_clips_path)
    long = np.concatenate([say("the", "cat"), say("dog", "ran")])
    clips = replace(clips, waveforms=(long,), names=("long.wav",), texts=("the cat dog ran",))
    write_clips(tmp_path / "long.npz", clips)
    (transcript,) = evaluate_transcripts(slim_speech, tmp_path / "long.npz", "null", OPTIONS)
    assert transcript.text == "the cat dog ran"


def test_clips_of_the_other_kind_are_refused(slim_speech, slim_folder, clips_path, speech_clips_path, tmp_path):
    out = tmp_path / "r.json"
    with pytest.raises(BadInput, match="labels and no transcripts, but .* writes down speech"):
        benchmark(None, slim_speech, clips_path, "null", OPTIONS, out, **QUICK)
    with pytest.raises(BadInput, match="transcripts and no labels, but .* classifies"):
        benchmark(None, slim_folder, speech_clips_path, "null", OPTIONS, out, **QUICK)
    with pytest.raises(BadInput, match="one is for audio-classification, the other for automatic-speech"):
        benchmark(slim_folder, slim_speech, None, "null", OPTIONS, out, **QUICK)
    with pytest.raises(BadInput, match="have no accuracy"):
        evaluate_logits(slim_speech, speech_clips_path, "null", OPTIONS)
    with pytest.raises(BadInput, match="writes no transcripts"):
        evaluate_transcripts(slim_folder, clips_path, "null", OPTIONS)


def test_models_of_other_vocabularies_are_not_compared(slim_speech, tmp_path):
    other = write_speech_artifact(tmp_path / "other", source="dense")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["decoding"]["suppress"] = [1]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="decoding settings differ"):
        benchmark(other, slim_speech, None, "null", OPTIONS, tmp_path / "r.json", **QUICK)


@pytest.mark.usefixtures("run_in_one_process")
def test_one_speech_artifact_without_clips(slim_speech, tmp_path):
    results = benchmark(None, slim_speech, None, "null", OPTIONS, tmp_path / "r.json", **QUICK)
    assert results.document["accuracy"]["status"] == "not measured"
    assert results.document["accuracy"]["roles"] == {}


def test_the_device_command_transcribes(slim_speech, dense_speech, speech_clips_path, tmp_path, capsys):
    session = ["--runtime", "null", "--threads", "1"]
    assert main(["eval", str(slim_speech), "--clips", str(speech_clips_path), "--json", *session]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["transcripts"][1] == {"name": "clip-01.wav", "text": "lights on", "reference": "lights on"}
    assert answer["clips"] == 13
    assert main(["eval", str(slim_speech), "--clips", str(speech_clips_path), *session]) == 0
    assert "clip-03.wav  the cat down" in capsys.readouterr().out
    inputs = [str(slim_speech), "--dense", str(dense_speech), "--clips", str(speech_clips_path)]
    assert main(["bench", *inputs, "--out", str(tmp_path / "r.json"), "--budget", "0.2", *session]) == 0
    said = capsys.readouterr().out
    assert "`leanear report` counts their word errors on a workstation" in said
    results = read_results(tmp_path / "r.json")
    assert {len(answers.texts) for answers in results.content.accuracy.roles.values()} == {13}


WORD_ERRORS = {
    "metric": "by hand",
    "reference_words": [3] * 13,
    "roles": {
        role: {"substitutions": [1] * 13, "deletions": [0] * 13, "insertions": [0] * 13} for role in ("dense", "slim")
    },
}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("task",), None, "task is None, expected one of"),
        (("task",), "translation", "task is 'translation', expected one of audio-classification"),
        (("task",), "audio-classification", "missing key 'accuracy.labels'"),
        (("accuracy", "audio_s"), None, "missing key 'accuracy.audio_s'"),
        (("accuracy", "label_ids"), [1], "unknown key 'accuracy.label_ids'"),
        (("accuracy", "roles", "slim", "texts"), ["x"], "accuracy.roles.slim.texts: 1 for 13 clips"),
        (("accuracy", "roles", "slim", "texts", 0), 7, r"texts\[0\] is 7, expected a text"),
        (("accuracy", "word_errors"), {**WORD_ERRORS, "metric": 1}, "word_errors.metric is 1, expected a text"),
        (("accuracy", "word_errors"), {**WORD_ERRORS, "roles": {}}, "missing key 'accuracy.word_errors.roles.dense'"),
        (("accuracy", "word_errors"), {**WORD_ERRORS, "reference_words": [1]}, "reference_words: 1 for 13 clips"),
        (("latency", "repeats", 0, "stages_ms"), None, r"missing key 'latency.repeats\[0\].stages_ms'"),
        (("latency", "front_end_share", "slim"), "half", "front_end_share.slim is 'half', expected a number or null"),
        (("artifacts", "slim", "cache"), [], r"cache is \[\], expected an object or null"),
    ],
)
def test_a_wrong_key_of_speech_results_is_named(speech_results, tmp_path, path, value, said):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(changed(speech_results.document, path, value)))
    with pytest.raises(BadInput, match=said):
        read_results(broken)


def test_word_errors_are_kept(speech_results, tmp_path):
    document = changed(speech_results.document, ("accuracy", "word_errors"), WORD_ERRORS)
    write_results(tmp_path / "r.json", document)
    assert read_results(tmp_path / "r.json").document == document


def test_the_null_runtime_does_not_tell_the_front_ends_share(speech_results):
    assert speech_results.document["latency"]["front_end_share"] == {"dense": None, "slim": None}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_share_of_some_nodes_is_between_nothing_and_all(runtime, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["waveform", "wide"], ["front_end.wide"], name="front_end.wide"),
        helper.make_node("MatMul", ["front_end.wide", "square"], ["encoder.deep"], name="encoder.deep"),
    ]
    weights = {"wide": np.ones((400, 300), np.float32), "square": np.ones((300, 300), np.float32)}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, 400])],
        [helper.make_tensor_value_info("encoder.deep", TensorProto.FLOAT, [1, 300])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    shares = [
        share_of_nodes(runtime, path, OPTIONS, np.ones(400, np.float32), prefix)
        for prefix in ("front_end.", "encoder.", "decoder.")
    ]
    assert 0 < shares[0] < 1
    assert 0 < shares[1] < 1
    assert shares[2] is None, "no node of that name"
    assert share_of_nodes("null", path, OPTIONS, np.ones(400, np.float32), "encoder.") is None
