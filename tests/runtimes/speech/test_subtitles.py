"""What the writers write, to the letter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from leanear.runtimes.speech.subtitles import WRITERS, Lines, as_json, plain, srt, vtt, words_alone
from leanear.runtimes.speech.transcript import Segment
from leanear.runtimes.speech.words import Word


def segment(start_s: float, end_s: float, text: str) -> Segment:
    return Segment(start_s, end_s, text, (1, 2), 0.0, -0.25, 0.1, 1.5, "en")


TWO = [segment(0.0, 1.5, " Hello, world."), segment(3661.0, 3662.0409, " <b>Über & über</b> --> x")]


def test_plain_lines_have_times_and_text():
    assert "".join(plain(TWO)) == (
        "[00:00.00 --> 00:01.50]  Hello, world.\n[01:01:01.00 --> 01:01:02.04]  <b>Über & über</b> --> x\n"
    )
    assert "".join(words_alone(TWO)) == "Hello, world.\n<b>Über & über</b> --> x\n"


def test_srt():
    assert "".join(srt(TWO)) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello, world.\n\n"
        "2\n01:01:01,000 --> 01:01:02,041\n<b>Über & über</b> -> x\n\n"
    )


def test_vtt_escapes_markup():
    assert "".join(vtt(TWO)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello, world.\n\n"
        "01:01:01.000 --> 01:01:02.041\n&lt;b&gt;Über &amp; über&lt;/b&gt; --&gt; x\n\n"
    )


def test_json_is_one_object():
    document = json.loads("".join(as_json(TWO)))
    assert document["schema"] == "leanear-transcript-1"
    assert (document["language"], document["text"]) == ("en", "Hello, world. <b>Über & über</b> --> x")
    assert document["segments"][0] == {
        "start_s": 0.0,
        "end_s": 1.5,
        "text": " Hello, world.",
        "tokens": [1, 2],
        "temperature": 0.0,
        "average_log_probability": -0.25,
        "no_speech_probability": 0.1,
        "compression_ratio": 1.5,
        "language": "en",
    }


def test_nothing_heard_is_still_a_file_of_its_kind():
    assert {name: "".join(write([])) for name, write in WRITERS.items() if name != "json"} == {
        "plain": "",
        "txt": "",
        "srt": "",
        "vtt": "WEBVTT\n\n",
    }
    assert json.loads("".join(as_json([]))) == {
        "schema": "leanear-transcript-1", "segments": [], "language": None, "text": "",
    }  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_segment_is_written_before_the_next_is_asked_for(name):
    asked = []

    def segments():
        for number in range(3):
            asked.append(number)
            yield segment(number, number + 1, f" word{number}")

    pieces = WRITERS[name](segments())
    while "word0" not in next(pieces):
        pass
    assert asked == [0]


def test_line_breaks_and_control_letters_do_not_break_cues():
    odd = [segment(0.0, 1.0, " one\n\ntwo\r\nthree\x00\x1b[31m \u200d four\u2028five")]
    assert "".join(srt(odd)) == "1\n00:00:00,000 --> 00:00:01,000\none two three[31m \u200d four five\n\n"


def test_a_cue_of_no_length_is_given_a_millisecond():
    assert "".join(srt([segment(2.0, 2.0, " x")])).splitlines()[1] == "00:00:02,000 --> 00:00:02,001"
    assert "".join(vtt([segment(2.0, 1.9, " x")])).splitlines()[2] == "00:00:02.000 --> 00:00:02.001"


@pytest.mark.parametrize("write", [srt, vtt])
def test_no_cue_ends_when_it_begins_whatever_the_rounding(write):
    for sample in range(0, 4_000):
        moment = sample / 16_000
        (line,) = (line for line in "".join(write([segment(moment, moment, " x")])).splitlines() if "-->" in line)
        begin, end = line.split(" --> ")
        assert begin < end, sample


@pytest.mark.parametrize("text", [" \u200b", "\u200d", "\x00", " "])
def test_of_no_letters_there_is_no_cue(text):
    assert "".join(srt([segment(0.0, 1.0, text), segment(1.0, 2.0, " x")])) == "1\n00:00:01,000 --> 00:00:02,000\nx\n\n"


def test_times_round_and_carry():
    assert "".join(srt([segment(59.9996, 3599.9999, " x")])).splitlines()[1] == "00:01:00,000 --> 01:00:00,000"
    assert "".join(plain([segment(59.999, 3599.999, " x")])) == "[01:00.00 --> 01:00:00.00]  x\n"


SAID = (Word(" one", 0.5, 0.75, 0.5), Word(" <two>,", 1.0, 1.5, 0.5), Word(" three", 1.5, 2.0, 1.0))
TIMED = replace(segment(0.0, 2.5, " one <two>, three"), words=SAID)


def test_words_with_times_are_lines_of_their_own_and_parts_of_json():
    assert "".join(plain([TIMED])).splitlines()[1] == "[00:01.00 --> 00:01.50]  <two>,"
    written = json.loads("".join(as_json([TIMED])))["segments"][0]
    assert written["words"][2] == {"text": " three", "start_s": 1.5, "end_s": 2.0, "probability": 1.0}
    assert written["start_s"] == 0.0
    assert "".join(words_alone([TIMED])) == "one <two>, three\n"


def test_subtitles_of_words_begin_and_end_with_them():
    assert "".join(srt([TIMED])) == "1\n00:00:00,500 --> 00:00:02,000\none <two>, three\n\n"
    assert "".join(vtt([TIMED], None, Lines(10))) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.000\none &lt;two&gt;,\nthree\n\n"
    )
    assert "".join(srt([TIMED], None, Lines(3, 2))) == (
        "1\n00:00:00,500 --> 00:00:01,500\none\n<two>,\n\n2\n00:00:01,500 --> 00:00:02,000\nthree\n\n"
    )
