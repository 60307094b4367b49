"""`leanear transcribe` on a tiny checkpoint and on its artifact: awkward audio, every writer, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.commands import main as device_main
from leanear.cli.commands import run
from leanear.data.audio import AudioStream
from leanear.evaluate import transcribing
from leanear.evaluate.speech_evaluation import open_transcriber
from leanear.export.artifact import export_artifact
from leanear.export.options import ExportOptions
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.manifest import Alignment
from leanear.runtimes.speech import first_tries
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_windows
from leanear.runtimes.speech.long_audio import transcribe
from leanear.runtimes.speech.tokens.repeats import compression_ratio, loop_start
from tests.export.whisper_cases import small_speech
from tests.whisper_models import WINDOW_S, make_extractor, make_whisper, write_whisper

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def model():
    model = make_whisper(seed=5, positions=32)
    model.model.decoder.embed_tokens.weight.data[model.config.eos_token_id] *= 3.0
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("whisper") / "tiny", model)


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifact") / "tiny"
    export_artifact(
        model,
        make_extractor(),
        [sounds(1.0)[:, 0]],
        out,
        ExportOptions(form="portable", source={"source": "tiny"}, made_from={}),
        small_speech(model),
    )
    return out


def sounds(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = sum(np.sin(2 * np.pi * frequency * time_s) for frequency in generator.uniform(80, 0.4 * rate_hz, 3))
    clip = 0.1 * tones * np.sin(2 * np.pi * 0.3 * time_s) + 0.02 * generator.standard_normal(len(time_s))
    return np.repeat(clip[:, np.newaxis], channels, axis=1).astype(np.float32)


AWKWARD = {
    "several windows": (sounds(4.6 * WINDOW_S), RATE_HZ),
    "exactly one window": (sounds(WINDOW_S), RATE_HZ),
    "a tenth of a second": (sounds(0.1), RATE_HZ),
    "less than a frame": (sounds(0.005), RATE_HZ),
    "silence": (np.zeros((3 * WINDOW_S * RATE_HZ, 1), np.float32), RATE_HZ),
    "noise": (np.random.default_rng(1).uniform(-0.9, 0.9, (2 * RATE_HZ, 1)).astype(np.float32), RATE_HZ),
    "8 kHz stereo": (sounds(2.5, 2, 8_000, 2), 8_000),
    "clipped": (np.sign(sounds(2.0)), RATE_HZ),
}


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino"])
def transcriber(request, checkpoint, artifact):
    runtime = request.param
    opened = open_transcriber(str(checkpoint if runtime == "torch" else artifact), runtime, "fp32", 1)
    yield opened
    opened.session.close()


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_audio_has_sensible_text_or_none(name, transcriber, tmp_path):
    samples, rate_hz = AWKWARD[name]
    soundfile.write(tmp_path / "clip.wav", samples, rate_hz, subtype="FLOAT")
    for options in (
        DecodeOptions(best_of=2, temperatures=(0.0, 1.0)),
        DecodeOptions(timestamps=False, temperatures=(0.0,), beam_size=2),
    ):
        with AudioStream(tmp_path / "clip.wav", RATE_HZ) as stream:
            segments = list(transcribe(transcriber.session, transcriber.model, stream, options))
        if name in ("silence", "less than a frame"):
            assert segments == []
        for segment in segments:
            assert 0.0 <= segment.start_s <= segment.end_s <= len(samples) / rate_hz + 1e-9
            assert segment.text.strip()
            assert loop_start(segment.tokens) is None
        starts = [segment.start_s for segment in segments]
        assert starts == sorted(starts)
        assert compression_ratio("".join(segment.text for segment in segments)) < 20


def test_checkpoint_and_artifact_say_the_same(checkpoint, artifact, tmp_path):
    soundfile.write(tmp_path / "clip.flac", sounds(3.3 * WINDOW_S, 4), RATE_HZ)
    options = DecodeOptions(temperatures=(0.0,), condition=True, stop_repeats=False)
    said = {}
    for kind, model in (("torch", checkpoint), ("onnxruntime", artifact), ("openvino", artifact)):
        opened = open_transcriber(str(model), kind, "fp32", 1)
        with AudioStream(tmp_path / "clip.flac", RATE_HZ) as stream:
            segments = list(transcribe(opened.session, opened.model, stream, options))
        opened.session.close()
        said[kind] = [(segment.tokens, segment.start_s, segment.end_s) for segment in segments]
    assert said["torch"] == said["onnxruntime"] == said["openvino"]
    assert len(said["torch"]) > 1


def command(capsys, *arguments) -> tuple[int, str, str]:
    status = run(["transcribe", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_prints_and_writes(capsys, artifact, tmp_path):
    soundfile.write(tmp_path / "clip.wav", sounds(5.0), RATE_HZ)
    base = (tmp_path / "clip.wav", "--model", artifact, "--threads", 1)
    status, out, err = command(capsys, *base)
    assert (status, err) == (0, "")
    assert out.startswith("[00:00.")
    assert command(capsys, *base)[1] == out
    status, srt, _ = command(capsys, *base, "--output-format", "srt")
    assert srt.startswith("1\n00:00:00,")
    status, nothing, _ = command(capsys, *base, "--output-format", "srt", "--out", tmp_path / "clip.srt")
    assert (status, nothing) == (0, "")
    assert (tmp_path / "clip.srt").read_text(encoding="utf-8") == srt
    document = json.loads(command(capsys, *base, "--output-format", "json")[1])
    assert len(document["segments"]) == out.count("\n")
    assert srt.count(" --> ") == sum(line[line.index("]") + 1 :].strip() != "" for line in out.splitlines())
    assert command(capsys, *base, "--output-format", "vtt")[1].startswith("WEBVTT\n\n00:00:")


def test_a_folder_is_written_file_by_file(capsys, checkpoint, tmp_path):
    (tmp_path / "talks").mkdir()
    for name in ("one.flac", "two.wav"):
        soundfile.write(tmp_path / "talks" / name, sounds(1.5), RATE_HZ)
    base = ("--model", checkpoint, "--threads", 1, "--output-format", "srt")
    both = ("--output-format", "json", "--output-dir", tmp_path / "out")
    status, out, err = command(capsys, tmp_path / "talks", *base, *both)
    assert (status, out) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.json", "one.srt", "two.json", "two.srt"]
    assert err.count("\n") == 4
    one = command(capsys, tmp_path / "talks" / "one.flac", *base)[1]
    assert (tmp_path / "out" / "one.srt").read_text(encoding="utf-8") == one


@pytest.mark.parametrize("of", ["checkpoint", "artifact"])
def test_short_recordings_are_decoded_together_and_told_one_by_one(of, capsys, caplog, tmp_path, request, monkeypatch):
    (tmp_path / "talks").mkdir()
    for number, seconds in enumerate((1.5, 1.0, 4.0, 0.5, 1.2, 1.9)):  # one of several windows among them
        samples = sounds(seconds, number) * (100.0 if number == 5 else 1.0)
        soundfile.write(tmp_path / "talks" / f"{number}.wav", samples, RATE_HZ, subtype="FLOAT")
    (tmp_path / "talks" / "3a.wav").write_bytes(b"no audio")
    counted, opened = [], []
    monkeypatch.setattr(transcribing, "AudioStream", lambda path, *given, **more: (
        opened.append(path.name), AudioStream(path, *given, **more))[1])  # fmt: skip
    monkeypatch.setattr(first_tries, "decode_windows", lambda *given, **more: (
        counted.append(len(given[3])), decode_windows(*given, **more))[1])  # fmt: skip
    base = (tmp_path / "talks", "--threads", 1, "--language", "en")
    model = request.getfixturevalue(of)
    alone = command(capsys, *base, "--model", model, "--batch", 1)
    assert not counted
    opened.clear()
    assert command(capsys, *base, "--model", model) == alone
    assert sorted(opened) == ["0.wav", "1.wav", "2.wav", "2.wav", "3.wav", "3a.wav", "3a.wav", "4.wav", "5.wav"]
    assert counted == [4, 1] or counted == [4]
    assert alone[0] == 2
    assert alone[2].count("3a.wav") == 1
    assert caplog.text.count("5.wav: it holds samples up to") == 2, "once a command"
    if of == "artifact":
        assert device_main(["transcribe", str(model), *map(str, base)]) == 2
        told = capsys.readouterr()
        assert told.out == alone[1]
        assert len(counted) > 1


def test_what_nobody_says_is_left_out_of_long_audio_and_told(capsys, checkpoint, artifact, tmp_path):
    soundfile.write(tmp_path / "long.wav", sounds(31.0), RATE_HZ)  # tones, and nobody speaks
    base = (tmp_path / "long.wav", "--threads", 1, "--temperatures", 0)
    for model in (checkpoint, artifact):
        for runtime in ("onnxruntime",) if model == checkpoint else ("onnxruntime", "openvino"):
            flags = ("--model", model, "--runtime", runtime)
            status, out, err = command(capsys, *base, *flags)
            assert (status, out) == (0, "")
            assert err == "speech in 0.0 of 31.0 s (0 %), the rest was not transcribed (--vad); no words were found\n"
    kept = json.loads(command(capsys, *base, "--model", artifact, "--output-format", "json")[1])["voice_activity"]
    assert kept == {"audio_s": 31.0, "speech_s": 0.0}
    assert device_main(["transcribe", str(artifact), str(tmp_path / "long.wav"), "--runtime", "openvino"]) == 0
    assert capsys.readouterr() == ("", err)
    status, out, err = command(capsys, *base, "--model", artifact, "--vad", "off", "--output-format", "json")
    assert (status, err) == (0, "")
    assert json.loads(out)["voice_activity"] is None
    assert json.loads(out)["segments"]


def test_bad_input_is_one_line(capsys, checkpoint, artifact, tmp_path, tiny_folder):
    soundfile.write(tmp_path / "clip.wav", sounds(1.0), RATE_HZ)
    clip = tmp_path / "clip.wav"
    (tmp_path / "text.txt").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    capsys.readouterr()  # what writing the models said
    for arguments, complaint in (
        ((tmp_path / "no.wav", "--model", artifact), "no.wav: no such file"),
        ((tmp_path / "no.wav", "--model", artifact, "--output-format", "json"), "no.wav: no such file"),
        ((tmp_path / "text.txt", "--model", artifact, "--output-format", "vtt"), "text.txt: not readable as audio"),
        ((tmp_path / "empty.wav", "--model", artifact), "empty.wav: no audio in it (zero samples)"),
        ((tmp_path / "empty.wav", "--model", artifact, "--out", tmp_path / "empty.txt"), "no audio in it"),
        ((clip, "--model", tmp_path / "nowhere"), "nowhere"),
        ((clip, "--model", tiny_folder), "a model that classifies"),
        ((clip, "--model", artifact, "--language", "xx"), "no language 'xx'"),
        ((clip, "--model", artifact, "--temperatures", "warm"), "--temperatures"),
        ((clip, "--model", artifact, "--temperatures", "-1"), "temperatures"),
        ((clip, "--model", checkpoint, "--precision", "int8"), "--precision int8 is for artifacts"),
        ((clip, "--model", checkpoint, "--runtime", "openvino"), "--runtime openvino is for artifacts"),
        ((clip, "--model", artifact, "--out", tmp_path), ""),
        ((clip, clip, "--model", artifact, "--out", tmp_path / "out.txt"), "--out: the file of one transcript"),
        ((tmp_path, "--model", artifact, "--output-format", "vtt"), "--output-format vtt of several recordings"),
    ):
        status, out, err = command(capsys, *arguments)
        assert status in (1, 2), arguments
        assert out == ""
        assert complaint in err
        assert err.count("\n") == 1
    assert not (tmp_path / "empty.txt").exists()


def test_a_vocabulary_of_another_model_is_named(capsys, artifact, tmp_path):
    folder = shutil.copytree(artifact, tmp_path / "other")
    document = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    document["tokens"] = document["tokens"][:-3]
    write_json(folder / "vocabulary.json", document)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["vocabulary"]["sha256"] = sha256_file(folder / "vocabulary.json")
    write_json(folder / "manifest.json", manifest)
    soundfile.write(tmp_path / "clip.wav", sounds(1.0), RATE_HZ)
    status, _, err = command(capsys, tmp_path / "clip.wav", "--model", folder)
    assert status == 2
    assert "tokens, but the decoder knows" in err


# Words


@pytest.fixture(scope="module")
def aligned(model, tmp_path_factory):
    """The same model, exported for word times."""
    out = tmp_path_factory.mktemp("aligned") / "tiny"
    alignment = Alignment(((0, 0), (1, 0), (1, 1)), "generation_config")
    export_artifact(
        model,
        make_extractor(),
        [sounds(1.0)[:, 0]],
        out,
        ExportOptions("portable", {"source": "tiny"}, {}, alignment=alignment),
        small_speech(model),
    )
    return out


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_words_have_their_place_in_long_audio_and_change_nothing(runtime, checkpoint, aligned):
    """Over several windows, with what each window really said: text and segments are those without words."""
    opened = open_transcriber(str(checkpoint if runtime == "torch" else aligned), runtime, "fp32", 1)
    audio, options = sounds(4.6 * WINDOW_S)[:, 0], DecodeOptions(seed=3)
    without = list(transcribe(opened.session, opened.model, audio, options))
    found = list(transcribe(opened.session, opened.model, audio, options, words=True))
    opened.session.close()
    assert [replace(segment, words=None) for segment in found] == without
    edges = []
    for segment in found:
        assert "".join(word.text for word in segment.words) == segment.text
        edges += [edge for word in segment.words for edge in (word.start_s, word.end_s)]
    assert len(edges) > 8
    assert edges == sorted(edges)
    assert edges[-1] > 2 * WINDOW_S
    assert edges[-1] <= 4.6 * WINDOW_S


def test_every_runtime_has_the_same_word_times(checkpoint, aligned):
    said = {}
    for runtime, folder in (("torch", checkpoint), ("onnxruntime", aligned), ("openvino", aligned)):
        opened = open_transcriber(str(folder), runtime, "fp32", 1)
        segments = transcribe(opened.session, opened.model, sounds(WINDOW_S)[:, 0], DecodeOptions(), words=True)
        said[runtime] = [(word.text, word.start_s, word.end_s) for segment in segments for word in segment.words]
        opened.session.close()
    assert said["torch"]
    assert said["torch"] == said["onnxruntime"] == said["openvino"]


def test_words_by_the_command(aligned, artifact, checkpoint, tmp_path, capsys):
    audio = tmp_path / "clip.wav"
    soundfile.write(audio, sounds(2.0), RATE_HZ)
    asked = ["transcribe", str(audio), "--word-timestamps"]
    assert run([*asked, "--model", str(aligned), "--output-format", "json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all({"text", "start_s", "end_s", "probability"} == set(word) for word in document["segments"][0]["words"])
    assert run([*asked, "--model", str(artifact)]) == 2
    assert "export its checkpoint again with leanear export CHECKPOINT --word-timestamps" in capsys.readouterr().err
    assert run([*asked, "--model", str(checkpoint), "--output-format", "txt"]) == 2


def test_the_demo_says_once_that_it_knows_toy_sentences_alone(artifact, tmp_path, caplog, capsys):
    demo, audio = tmp_path / "slim", tmp_path / "clip.wav"
    shutil.copytree(artifact, demo)
    manifest = json.loads((demo / "manifest.json").read_text())
    manifest["model"]["source"] = "demo-whisper"
    (demo / "manifest.json").write_text(json.dumps(manifest))
    soundfile.write(audio, sounds(2.0), RATE_HZ)
    assert run(["transcribe", str(audio), str(audio), "--model", str(artifact)]) == 0
    assert "demo-whisper" not in caplog.text
    assert run(["transcribe", str(audio), "--model", str(demo)]) == 0
    assert caplog.text.count("of people's speech it makes nonsense") == 1
    caplog.clear()
    capsys.readouterr()
    assert run(["transcribe", str(audio), "--model", "demo-whisper"]) == 0
    assert caplog.text.count("note: demo-whisper knows synthetic sentences of a few words alone") == 1


def test_a_checkpoint_without_a_list_takes_its_upper_half_and_says_so(tmp_path, capsys, caplog):
    folder = write_whisper(tmp_path / "tiny", make_whisper(seed=5, positions=32, alignment_heads=()))
    audio = tmp_path / "clip.wav"
    soundfile.write(audio, sounds(2.0), RATE_HZ)
    assert run(["transcribe", str(audio), "--model", str(folder), "--word-timestamps", "--output-format", "json"]) == 0
    assert "word times from 2 heads, the whole upper half of the decoder" in caplog.text
    assert json.loads(capsys.readouterr().out)["segments"][0]["words"]
