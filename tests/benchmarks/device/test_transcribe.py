"""`python -m leanear.benchmarks transcribe` over the null runtime, which hears foreseeable words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.device.commands import main
from leanear.benchmarks.device.transcript_files import FORMATS
from leanear.runtimes.files import write_json
from tests.benchmarks.speech_artifact import SAMPLE_RATE_HZ, WINDOW_S, say, write_speech_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_speech_artifact(tmp_path_factory.mktemp("speech") / "slim", source="slim")


def write(path, waveform, rate_hz=SAMPLE_RATE_HZ):
    soundfile.write(path, waveform, rate_hz, subtype="FLOAT")
    return path


def transcribe(capsys, artifact, audio, *flags):
    status = main(["transcribe", str(artifact), str(audio), "--runtime", "null", *flags])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_words_are_printed_with_their_windows_times(capsys, artifact, tmp_path):
    audio = write(tmp_path / "two.wav", np.concatenate([say("the", "cat", "sat"), say("lights", "off")]))
    status, out, _ = transcribe(capsys, artifact, audio, "--no-timestamps")
    first, *_rest = out.splitlines()
    assert status == 0
    assert first.startswith("[00:00.00 --> 00:00.")
    assert first.endswith("]  the cat sat")


def test_the_demo_says_that_it_knows_toy_sentences_alone(capsys, artifact, tmp_path):
    audio = write(tmp_path / "one.wav", say("the", "cat"))
    demo = write_speech_artifact(tmp_path / "demo", source="demo-whisper")
    assert "note: demo-whisper knows synthetic sentences" in transcribe(capsys, demo, audio)[2]
    assert "demo-whisper" not in transcribe(capsys, artifact, audio)[2]


@pytest.mark.parametrize("format", FORMATS)
def test_each_writer_writes(capsys, artifact, tmp_path, format):
    audio = write(tmp_path / "clip.wav", say("dog", "ran", "home"))
    status, out, _ = transcribe(capsys, artifact, audio, "--output-format", format, "--no-timestamps")
    assert status == 0
    if format == "json":
        document = json.loads(out)
        assert (document["text"], document["language"]) == ("dog ran home", "en")
        assert document["segments"][0]["end_s"] == WINDOW_S
    else:
        expected = {
            "srt": "1\n00:00:00,000 --> 00:00:00,400\ndog ran home\n\n",
            "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:00.400\ndog ran home\n\n",
            "txt": "dog ran home\n",
        }
        assert out == expected[format]


def test_silence_has_no_words_and_is_noted(capsys, caplog, artifact, tmp_path):
    for samples in (5, 20_000):
        audio = write(tmp_path / "silence.wav", np.zeros(samples, np.float32))
        assert transcribe(capsys, artifact, audio) == (0, "", "no words were found\n")
    assert caplog.messages == [f"note: {audio}: it is silent: every sample is 0"] * 2


def test_a_recording_without_a_sample_is_refused(capsys, artifact, tmp_path):
    audio = write(tmp_path / "empty.wav", np.zeros(0, np.float32))
    assert transcribe(capsys, artifact, audio) == (2, "", f"leanear: {audio}: no audio in it (zero samples)\n")


def test_another_sample_rate_and_stereo_are_taken(capsys, artifact, tmp_path):
    clip = say("seven", "lights")
    audio = write(tmp_path / "stereo.wav", np.stack([clip, clip], axis=1)[::2], SAMPLE_RATE_HZ // 2)
    status, out, _ = transcribe(capsys, artifact, audio, "--output-format", "txt", "--no-timestamps")
    assert status == 0
    assert "seven lights" in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--language", "fr"), "language: this model has no 'fr'; it has de, en"),
        (("--beam-size", "0"), "beam_size is 0, expected a whole number of at least 1"),
        (("--threads", "0"), "threads: expected"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, artifact, tmp_path, flags, complaint):
    audio = write(tmp_path / "clip.wav", say("cat"))
    status, out, err = transcribe(capsys, artifact, audio, *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_what_is_no_recording_is_one_line(capsys, artifact, tmp_path):
    (tmp_path / "clip.flac").write_bytes(b"fLaC and so on")
    status, _, err = transcribe(capsys, artifact, tmp_path / "clip.flac")
    assert (status, err.count("\n")) == (2, 1)
    assert "clip.flac: FLAC, which needs an audio library; a device reads WAV; convert it with: ffmpeg" in err
    assert transcribe(capsys, artifact, tmp_path / "missing.wav")[0] == 2


def test_a_model_that_classifies_has_no_words(capsys, slim_folder, tmp_path):
    status, _, err = transcribe(capsys, slim_folder, write(tmp_path / "clip.wav", say("cat")))
    assert status == 2
    assert "a model that classifies" in err


def test_an_artifact_without_a_voice_model_hears_all_and_says_so(capsys, caplog, artifact, tmp_path):
    audio = write(tmp_path / "long.wav", np.concatenate([say("cat")] * 80))
    status, out, _ = transcribe(capsys, artifact, audio, "--output-format", "txt", "--no-timestamps")
    assert (status, out) == (0, "cat\n" * 80)
    assert "has no voice activity model; export it again" in caplog.text
    status, out, err = transcribe(capsys, artifact, audio, "--vad", "on")
    assert (status, out, err.count("\n")) == (2, "", 1)
    caplog.clear()
    assert transcribe(capsys, artifact, audio, "--vad", "off")[0] == 0
    assert not caplog.text


@pytest.fixture(scope="module")
def aligned(artifact, tmp_path_factory):
    """The same artifact, made for word times."""
    folder = tmp_path_factory.mktemp("aligned") / "slim"
    folder.mkdir()
    for file in artifact.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["alignment"] = {
        "heads": [[0, 0], [1, 1]], "chosen_by": "generation_config", "lost": 0, "filter_positions": 1, "moved": None,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return folder


def test_each_word_has_times_where_they_are_asked_for(capsys, aligned, tmp_path):
    """The null runtime looks at one stretch of the window for each token, the prompt's four and the end included."""
    audio = write(tmp_path / "two.wav", np.concatenate([say("the", "cat", "sat"), say("lights", "off")]))
    flags = ("--word-timestamps", "--no-timestamps")
    status, out, _ = transcribe(capsys, aligned, audio, *flags)
    assert status == 0
    assert [line.split("]  ")[1] for line in out.splitlines()] == ["the", "cat", "sat", "lights", "off"]
    status, out, _ = transcribe(capsys, aligned, audio, "--output-format", "json", *flags)
    document = json.loads(out)
    for number, segment in enumerate(document["segments"]):
        words = segment["words"]
        times = [edge for word in words for edge in (word["start_s"], word["end_s"])]
        assert "".join(word["text"] for word in words) == segment["text"]
        assert times == sorted(times)
        assert number * WINDOW_S <= times[0] < times[-1] <= (number + 1) * WINDOW_S
        assert all(0.9 < word["probability"] <= 1 for word in words)


def test_word_times_change_nothing_else(capsys, aligned, artifact, tmp_path):
    audio = write(tmp_path / "clip.wav", say("the", "dog", "ran", "home"))
    without = json.loads(transcribe(capsys, artifact, audio, "--output-format", "json")[1])
    found = json.loads(transcribe(capsys, aligned, audio, "--output-format", "json", "--word-timestamps")[1])
    for segment in found["segments"]:
        assert [word["text"] for word in segment.pop("words")] == [" the", " dog", " ran", " home"]
    assert found == without


def test_subtitles_are_cut_between_words(capsys, aligned, tmp_path):
    audio = write(tmp_path / "clip.wav", say("the", "cat", "sat", "down", "seven", "lights"))
    flags = ("--output-format", "srt", "--word-timestamps", "--no-timestamps", "--max-line-width", "8")
    blocks = transcribe(capsys, aligned, audio, *flags)[1].strip().split("\n\n")
    assert [block.splitlines()[2:] for block in blocks] == [["the cat", "sat down"], ["seven", "lights"]]
    single = transcribe(capsys, aligned, audio, *flags, "--max-line-count", "1")[1].strip().split("\n\n")
    assert [block.splitlines()[2] for block in single] == ["the cat", "sat down", "seven", "lights"]
    ends = [block.splitlines()[1].split(" --> ") for block in single]
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]


SUBTITLES = ("--word-timestamps", "--output-format", "vtt")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--word-timestamps",), "slim do not give their attention; export its checkpoint again with leanear export"),
        (("--word-timestamps", "--output-format", "txt"), "txt is the text alone"),
        (("--max-line-width", "20", "--output-format", "srt"), "add --word-timestamps"),
        (("--max-line-width", "20", "--word-timestamps"), "--max-line-width: it is for the formats srt and vtt"),
        ((*SUBTITLES, "--max-line-width", "0"), "--max-line-width: 0 is not a positive"),
        ((*SUBTITLES, "--max-line-count", "2"), "give that, too"),
        ((*SUBTITLES, "--max-line-width", "9", "--max-line-count", "0"), "--max-line-count: 0"),
    ],
)
def test_what_has_no_word_times_says_so_in_a_line(capsys, artifact, tmp_path, flags, complaint):
    audio = write(tmp_path / "clip.wav", say("cat"))
    status, out, err = transcribe(capsys, artifact, audio, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
