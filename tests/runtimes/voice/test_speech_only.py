"""Speech among silence and noise: silero's own package says where, and made-up detectors what becomes of its times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.export.whisper.voice import packaged_voice_graph
from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.transcript import Segment, Tally
from leanear.runtimes.speech.words import Word
from leanear.runtimes.voice.graph import FRAME_SAMPLES, RATE_HZ, VoiceGraph, detectors, load_voice_graph
from leanear.runtimes.voice.speech_only import SpeechOnly, SpeechStretches, Voice, VoiceRules, _moved, transcribe_spoken
from tests.runtimes.speech_sessions import at_time, model_with, scripted

CLIPS = Path(__file__).resolve().parents[3] / "toolchain" / "demo" / "whisper" / "clips"
PAUSES_S = (3.0, 0.5, 6.0, 2.5)


@pytest.fixture(scope="module")
def talk():
    """A talk of clips with pauses of faint noise, and where each clip lies in it."""
    generator = np.random.default_rng(0)
    parts, places, held = [], [], 0
    for path, pause_s in zip(sorted(CLIPS.rglob("*.flac"))[:4], PAUSES_S):
        clip, rate_hz = soundfile.read(path, dtype="float32")
        assert rate_hz == RATE_HZ
        pause = (0.002 * generator.standard_normal(round(pause_s * RATE_HZ))).astype(np.float32)
        places.append((held + len(pause), held + len(pause) + len(clip)))
        parts += [pause, clip]
        held += len(pause) + len(clip)
    return np.concatenate([*parts, np.zeros(4 * RATE_HZ, np.float32)]), places


def slices(speech: SpeechOnly, length: int) -> list[np.ndarray]:
    parts, start = [], 0
    while len(part := speech[start : start + length]):
        parts.append(part)
        start += len(part)
    return parts


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_probabilities_are_those_of_the_package(talk, runtime):
    """The package runs another graph of the model, frame by frame."""
    silero_vad, torch = pytest.importorskip("silero_vad"), pytest.importorskip("torch")
    audio = talk[0][: 200 * FRAME_SAMPLES]
    theirs = silero_vad.load_silero_vad(onnx=True)
    expected = [theirs(torch.from_numpy(frame), RATE_HZ).item() for frame in audio.reshape(-1, FRAME_SAMPLES)]
    graph = VoiceGraph(load_voice_graph(packaged_voice_graph(), runtime))
    frames = audio.reshape(-1, FRAME_SAMPLES)
    ours = np.concatenate([graph.probabilities(part) for part in (frames[:1], frames[1:90], frames[90:])])
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert max(expected) > 0.9 > 0.1 > min(expected)


@pytest.mark.parametrize("silence_s", [0.2, 1.0, 2.0])
def test_what_is_kept_is_what_the_package_keeps(talk, silence_s):
    silero_vad, torch = pytest.importorskip("silero_vad"), pytest.importorskip("torch")
    audio, places = talk
    rules = VoiceRules(silence_s=silence_s)
    frame_ms = 1000 * FRAME_SAMPLES // RATE_HZ
    expected = silero_vad.get_speech_timestamps(
        torch.from_numpy(audio),
        silero_vad.load_silero_vad(onnx=True),
        min_silence_duration_ms=rules.silence * frame_ms,
        speech_pad_ms=rules.around * frame_ms,
        min_speech_duration_ms=1000 * rules.speech_s,
    )
    graph = VoiceGraph(load_voice_graph(packaged_voice_graph(), "onnxruntime"))
    speech = SpeechOnly(audio, graph, rules, pause_s=1e6)
    found = np.concatenate(slices(speech, 50_001))
    np.testing.assert_array_equal(found, np.concatenate([audio[each["start"] : each["end"]] for each in expected]))
    assert speech.kept.audio_s == len(audio) / RATE_HZ
    assert speech.kept.speech_s == len(found) / RATE_HZ < 0.7 * len(audio) / RATE_HZ
    for begin, behind in places:  # a clip has silence at its ends, so that its middle is what has to be there
        middle = (begin + behind) // 2
        assert any(each["start"] < middle < each["end"] for each in expected)


class Loud:
    """Says that somebody speaks where a frame is loud."""

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        return (np.abs(frames).mean(axis=1) > 0.05).astype(np.float32)


def made_up(*spans: tuple[int, int], frames: int) -> np.ndarray:
    """A waveform whose samples are all different, loud in the spans (first frame, frame behind)."""
    audio = np.linspace(0.001, 0.01, frames * FRAME_SAMPLES, dtype=np.float32)
    for first, behind in spans:
        audio[first * FRAME_SAMPLES : behind * FRAME_SAMPLES] += 0.2
    return audio


def test_every_kept_sample_has_its_place_in_the_whole():
    audio = made_up((20, 60), (75, 90), (300, 420), (500, 503), frames=700)
    speech = SpeechOnly(audio, Loud(), pause_s=2.0)
    parts = slices(speech, 10_000)
    found = np.concatenate(parts)
    around = VoiceRules().around
    expected = [(20 - around) * FRAME_SAMPLES, (90 + around) * FRAME_SAMPLES]
    expected += [(300 - around) * FRAME_SAMPLES, (420 + around) * FRAME_SAMPLES]  # three frames are no speech
    kept = np.concatenate([audio[expected[0] : expected[1]], audio[expected[2] : expected[3]]])
    np.testing.assert_array_equal(found, kept)
    for place in range(0, len(found), 997):
        assert audio[speech.original(place)] == found[place]
    first = expected[1] - expected[0]
    assert speech.original(first, is_end=True) == expected[1]
    assert speech.original(first) == expected[2]


def test_a_window_ends_at_a_long_pause_and_not_at_a_short_one():
    audio = made_up((20, 100), (160, 240), (500, 560), frames=800)  # pauses of 1.9 s and 8.3 s
    around, frame = VoiceRules().around, FRAME_SAMPLES
    speech = SpeechOnly(audio, Loud(), pause_s=2.0)
    assert [len(part) for part in slices(speech, 10**6)] == [
        (160 + 4 * around) * frame, (60 + 2 * around) * frame]  # fmt: skip
    speech = SpeechOnly(audio, Loud(), pause_s=2.0)
    first = (160 + 4 * around) * frame
    assert len(speech[0 : 10**6]) == first
    assert len(speech[first - 100 : 10**6]) == (60 + 2 * around) * frame + 100, "a rest of nothing is no window"


def test_what_was_said_is_known_before_the_pause_is_over():
    class Live:
        """Audio that is not there yet where it is asked for too far."""

        def __init__(self, audio):
            self.audio = audio

        def __getitem__(self, span):
            assert span.stop <= len(self.audio), "it would wait for what is said after the pause"
            return self.audio[span]

    speech = SpeechOnly(Live(made_up((20, 100), frames=240)), Loud(), pause_s=2.0)
    assert len(speech[0 : 30 * RATE_HZ]) == (80 + 2 * VoiceRules().around) * FRAME_SAMPLES


def test_an_endless_talk_takes_no_more_memory():
    class Endless:
        def __getitem__(self, span):
            return np.full(span.stop - span.start, 0.5, np.float32)

    speech = SpeechOnly(Endless(), Loud())
    for start in range(0, 40 * RATE_HZ, RATE_HZ):
        assert len(speech[start : start + RATE_HZ]) == RATE_HZ
        assert len(speech._audio) + len(speech._kept) < 3 * RATE_HZ


@pytest.mark.parametrize("seed", range(5))
def test_stretches_do_not_depend_on_how_much_is_told_at_a_time(seed):
    shares = np.random.default_rng(seed).beta(0.3, 0.3, 2_000)
    rules = VoiceRules(silence_s=0.2)
    whole = SpeechStretches(rules)
    whole.hear(shares)
    whole.finish()
    pieces, kept = SpeechStretches(rules), set()
    for start in range(0, len(shares), 7):
        pieces.hear(shares[start : start + 7])
        for first, behind in pieces.stretches:
            kept |= set(range(first, behind))
    pieces.finish()
    assert pieces.stretches == whole.stretches
    assert kept <= {frame for first, behind in whole.stretches for frame in range(first, behind)}
    assert all(before[1] <= after[0] for before, after in zip(whole.stretches, whole.stretches[1:]))


# ---- what transcribing makes of it

SPOKEN = replace(model_with(timestamp_step_s=0.02), sample_rate_hz=RATE_HZ, window_samples=RATE_HZ)
TWO = made_up((100, 140), (1_200, 1_230), frames=1_400)  # 45 s


def spoken(choice: str, audio: np.ndarray = TWO, opened=Loud, model=SPOKEN, is_live: bool = False):
    session = scripted([at_time(0.1), 2, at_time(0.5)], [at_time(0.0), 3, at_time(0.3)])
    options = DecodeOptions(temperatures=(0.0,), quiet_cuts=False, no_speech_limit=None, stop_repeats=False)
    tally = Tally()
    segments = list(transcribe_spoken(session, model, audio, options, Voice(choice, opened, is_live), tally))
    return segments, tally


def test_times_are_those_of_the_whole_recording():
    segments, tally = spoken("on")
    begins = [(100 - VoiceRules().around) * FRAME_SAMPLES / RATE_HZ, (1_200 - VoiceRules().around) * 0.032]
    assert segments[0].start_s == pytest.approx(begins[0])  # without a pair of timestamps it is the window's begin
    assert segments[0].end_s == pytest.approx(begins[0] + 0.5)
    assert begins[1] <= segments[-1].start_s <= segments[-1].end_s <= len(TWO) / RATE_HZ
    assert tally.voice.audio_s == len(TWO) / RATE_HZ
    assert tally.voice.speech_s == pytest.approx((70 + 4 * VoiceRules().around) * 0.032)
    assert tally.sentence.startswith(f"speech in {tally.voice.speech_s:.1f} of 44.8 s (")


def test_words_have_the_times_of_the_whole_recording_too():
    speech = SpeechOnly(TWO, Loud())
    slices(speech, RATE_HZ)
    around_s, frame_s = VoiceRules().around * 0.032, 0.032
    first_s = (40 + 2 * VoiceRules().around) * frame_s  # of the first stretch, so long is it
    words = (Word(" a", 0.1, first_s, 1.0), Word(" b", first_s, first_s + 0.5, 1.0))
    moved = _moved(Segment(0.1, first_s + 0.5, " a b", (), 0.0, 0.0, None, 1.0, words=words), speech)
    behind_s, second_s = 140 * frame_s + around_s, 1_200 * frame_s - around_s
    assert (moved.start_s, moved.end_s) == pytest.approx((100 * frame_s - around_s + 0.1, second_s + 0.5))
    assert (moved.words[0].end_s, moved.words[1].start_s) == pytest.approx((behind_s, second_s))
    assert [word.text for word in moved.words] == [" a", " b"]


def test_auto_is_for_long_audio_and_for_what_comes_while_it_is_heard():
    short = TWO[: 29 * RATE_HZ]
    assert spoken("auto")[1].voice is not None
    assert spoken("auto", short)[1].voice is None
    assert spoken("auto", short, is_live=True)[1].voice is not None
    assert spoken("off")[1].voice is None
    assert spoken("off")[1].sentence == ""


def test_audio_without_speech_has_no_words_and_says_so():
    segments, tally = spoken("on", np.zeros(40 * RATE_HZ, np.float32))
    assert segments == []
    assert tally.sentence == "speech in 0.0 of 40.0 s (0 %), the rest was not transcribed (--vad)"


def test_what_cannot_be_is_refused_where_it_was_asked_for_and_noted_where_not(caplog):
    def missing():
        raise RuntimeUnavailable("--vad: nothing here that runs it")

    with pytest.raises(RuntimeUnavailable, match="nothing here"):
        spoken("on", opened=missing)
    with pytest.raises(BadInput, match="16000 Hz; this one hears 8000"):
        spoken("on", model=replace(SPOKEN, sample_rate_hz=8_000))
    assert spoken("auto", opened=missing)[1].voice is None
    assert caplog.messages == ["note: all of the audio is heard, speech or not: --vad: nothing here that runs it"]


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "voice.onnx").write_bytes(b"no graph")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(BadInput, match="voice.onnx: (ONNX Runtime|OpenVINO) refuses the graph"):
            detectors(lambda: tmp_path / "voice.onnx", runtime)()
