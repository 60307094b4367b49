"""What a Whisper is calibrated on, beside what transformers' tokenizer and extractor say of the same audio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from leanear.families import whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.families.whisper import calibration_examples
from leanear.families.whisper.forward import word_mistakes
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from tests.conftest import tone
from tests.whisper_models import WINDOW_S, write_whisper

RATE_HZ = 16_000
SECONDS = (0.5, 0.7, 0.3, 0.6, 0.4, 0.5, 1.5, 1.2)  # of the clips 1 and 5, 7, 2 and 4 a window of 2 s each
NAMES = ("e", "b", "f", "a", "g", "c", "h", "d")
TEXTS = ("one", "the other", "in", "on and on", "out", "hand", "over", "Über")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(write_whisper(tmp_path_factory.mktemp("model") / "tiny", english_only=True))


@pytest.fixture(scope="module")
def clips() -> Clips:
    waveforms = tuple(tone(200 + 100 * number, seconds) for number, seconds in enumerate(SECONDS))
    return Clips(waveforms, np.zeros(0, np.int64), NAMES, (), RATE_HZ, TEXTS)


@pytest.fixture(scope="module")
def made(checkpoint, clips):
    return whisper.calibration_inputs(checkpoint, clips)


def test_every_text_is_there_once(made):
    assert WINDOW_S == 2
    assert made.texts == ("one", "on and on", "over", "the other hand", "Über in out")


def test_joined_clips_are_one_waveform_to_the_extractor(checkpoint, clips, made):
    together = np.concatenate([clips.waveforms[number] for number in (7, 2, 4)])
    expected = checkpoint.feature_extractor(together, sampling_rate=RATE_HZ, return_tensors="pt")["input_features"]
    assert torch.equal(made.inputs.features[4:5], expected)


def test_tokens_are_what_the_tokenizer_says(checkpoint, made):
    tokenizer = checkpoint.tokenizer
    first = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1  # <|0.00|>
    at = [first + round(seconds / 0.02) for seconds in (0.0, 1.2, 1.5, 1.9)]
    said = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in ("Über", "in", "out")]
    expected = [at[0], *said[0], at[1], at[1], *said[1], at[2], at[2], *said[2], at[3]]
    start, end = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("startoftranscript", "endoftext"))
    before = tokenizer.get_prompt_ids(" the other hand").tolist()  # that of the window before, begun by <|startofprev|>
    fed, targets = made.inputs.tokens[4].tolist(), made.targets[4].tolist()
    length = len(before) + 1 + len(expected)
    assert fed[:length] == [*before, start, *expected]
    assert targets[:length] == [*[-100] * len(before), *expected, end]
    assert set(fed[length:]) <= {end}
    assert set(targets[length:]) <= {-100}
    assert made.inputs.tokens[3, 0] == start, "nothing is before the first window"


def test_clips_that_are_alone_are_as_they_are_judged(checkpoint, clips, made):
    judged = whisper.labelled_inputs(checkpoint, clips)
    length = judged.inputs.tokens.shape[1]
    assert torch.equal(made.inputs.features[:3], judged.inputs.features[::3])
    assert torch.equal(made.inputs.tokens[:3, :length], judged.inputs.tokens[::3])
    assert torch.equal(made.targets[:3, :length], judged.targets[::3])


def test_words_are_counted_without_timestamps_whichever_clip_is_first(checkpoint, made):
    order = torch.tensor([4, 3, 0, 1, 2])
    there, turned = (word_mistakes(checkpoint.model, checkpoint.tokenizer, each) for each in (made, made[order]))
    np.testing.assert_array_equal(there.errors[order.numpy()], turned.errors)
    assert turned.counted.tolist() == [3, 3, 1, 3, 1]


def test_words_are_the_models_own_where_it_is_mostly_right(checkpoint, clips, monkeypatch, caplog):
    """Capitals and a full stop are no errors; of three words "on and on" one is right in the second clip's."""
    tokenizer = checkpoint.tokenizer
    own = ["One.", "The, other!", "", "On yes yes yes", "Out", "Hand", "Over", "\u00dcber"]
    tokens = [tokenizer(f" {text}" if text else "", add_special_tokens=False)["input_ids"] for text in own]
    monkeypatch.setattr(calibration_examples, "greedy_tokens", lambda model, heard, prompt, told: tokens[: len(heard)])
    made = whisper.calibration_inputs(checkpoint, clips)
    said = [tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in made.targets]
    assert said == [" One.", " on and on", " Over", " The, other! Hand", " \u00dcber in Out"]
    assert made.texts == ("one", "on and on", "over", "the other hand", "\u00dcber in out"), "what words are counted by"
    assert "2 calibration clips of 8: calibrated on the transcript, as the model says something else" in caplog.text


def test_what_the_model_says_over_and_over_is_not_taken(checkpoint, clips, monkeypatch):
    """What is in brackets is no word to the normaliser, so that a loop of it counts as right."""
    one = replace(clips, waveforms=clips.waveforms[:1], names=("a",), texts=("one",))
    looped = checkpoint.tokenizer(" One." + " [on and on]" * 12, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(calibration_examples, "greedy_tokens", lambda model, heard, prompt, told: [looped])
    made = whisper.calibration_inputs(checkpoint, one)
    assert checkpoint.tokenizer.decode(made.targets[0][made.targets[0] >= 0], skip_special_tokens=True) == " one"


def test_clips_without_a_word_are_left_out_and_named(checkpoint, clips, caplog):
    few = replace(clips, waveforms=clips.waveforms[:4], names=tuple("abcd"), texts=("...", "one", "[noise]", "in"))
    made = whisper.calibration_inputs(checkpoint, few)
    assert made.texts == ("one", "in")
    features = checkpoint.feature_extractor(clips.waveforms[1], sampling_rate=RATE_HZ, return_tensors="pt")
    assert torch.equal(made.inputs.features[:1], features["input_features"])
    assert "2 calibration clips of 4 left out" in caplog.text
    assert "(a, c)" in caplog.text
    with pytest.raises(BadInput, match=r"clips: no word is left of the transcript.*\(a, b, c and 1 more\)"):
        whisper.calibration_inputs(checkpoint, replace(few, texts=("!!!",) * 4))


def test_audio_is_prepared_once_and_its_language_heard_in_the_first_clips(tmp_path, clips, monkeypatch):
    several = load_checkpoint(write_whisper(tmp_path / "several"))
    several.model.generation_config.language = None
    windows, heard = [], []
    prepare = calibration_examples.features
    monkeypatch.setattr(calibration_examples, "features", lambda *given: windows.append(1) or prepare(*given))
    monkeypatch.setattr(calibration_examples, "detected_language", lambda _, features: heard.append(features) or "de")
    made = whisper.calibration_inputs(several, clips)
    assert len(windows) == len(clips.waveforms) + 2, "two windows are joined of five clips"
    assert len(heard) == 1
    assert torch.equal(heard[0][::3], made.inputs.features[:3])
    german = several.tokenizer.convert_tokens_to_ids("<|de|>")
    assert [german in row for row in made.inputs.tokens.tolist()] == [True] * len(made.texts)


def test_one_clip_is_heard_alone(checkpoint, clips):
    one = replace(clips, waveforms=clips.waveforms[:1], names=("a",), texts=("one",))
    assert whisper.calibration_inputs(checkpoint, one).texts == ("one",)


def test_a_long_text_leaves_less_room_for_what_was_before(checkpoint, clips):
    """Two windows: in the second a text that fits the decoder by itself, and with all of the first one's would not."""
    positions, tokenizer = checkpoint.model.config.max_target_positions, checkpoint.tokenizer
    long = " ".join(["on"] * 60)
    while len(tokenizer(f" {long}", add_special_tokens=False)["input_ids"]) > positions - 16:
        long = long[:-3]
    texts = ("one", "the other the other", long)
    few = replace(clips, waveforms=clips.waveforms[6:7] * 3, names=("a", "b", "c"), texts=texts)
    made = whisper.calibration_inputs(checkpoint, few)
    assert made.texts == texts
    assert made.inputs.tokens.shape[1] <= positions
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    before = made.inputs.tokens[2].tolist().index(start)
    assert 0 < before < len(tokenizer(" the other the other", add_special_tokens=False)["input_ids"]) + 1
