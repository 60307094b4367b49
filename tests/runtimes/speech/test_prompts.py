"""Tokens of texts as transformers' tokenizers make them, and what windows are shown of prompts and hot words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperTokenizer

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.decode_options import DecodeOptions, hotwords_of, read_prompts
from leanear.runtimes.speech.long_audio import transcribe_windows
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary, make_vocabulary, text_tokens, words_of
from tests.runtimes.speech_sessions import (
    END,
    NO_SPEECH,
    PREVIOUS,
    SIZE,
    SPECIAL,
    START,
    TIMES,
    TRANSCRIBE,
    WINDOW,
    FakeSession,
    at_time,
    model_with,
    said_since_prompt,
    scripted,
)
from tests.whisper_models import make_tokenizer

DEMO = Path(__file__).resolve().parents[3] / "toolchain" / "demo" / "whisper" / "model"
REAL = tuple(Path(folder) for folder in os.environ.get("LEANEAR_REAL_WHISPERS", "").split(os.pathsep) if folder)
TEXTS = (
    "Mr. Quilter is the apostle of the middle classes",
    "it's we'll they're I'd  can't 'tis IT'S",
    "3.14 or 1,000,000 of ½, Ⅻ x² years",
    "  two  spaces,\ttabs\n\nlines   ",
    "über größe naïve 日本語 한국어 العربية हिन्दी 🙂👍🏽",
    "don’t «quote» — dash… #tag @name a_b",
    "a\u00a0b\u2003c\u3000d\x1ce\x85f",
    "the then thing, he is wondering on her own",
    "",
)


# " yes" is the token 6, " no" the tokens 9 and 8; of the made-up sessions' size.
FEW = Vocabulary((b" ", b"y", b"e", b"s", b" y", b"es", b" yes", b"n", b"o", b" n"), SPECIAL)


def vocabulary_of(tokenizer):
    known = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return make_vocabulary([token for token, _ in known], known_special(tokenizer), "tokenizer")


def known_special(tokenizer) -> int:
    return min(tokenizer.all_special_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_of_transformers_tokenizer(text):
    tokenizer = make_tokenizer()
    ours = text_tokens(vocabulary_of(tokenizer), text, "prompt")
    assert list(ours) == tokenizer(text, add_special_tokens=False).input_ids


def test_words_are_those_of_the_real_expression():
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in TEXTS:
        theirs = [text[start:stop] for _, (start, stop) in split.pre_tokenize_str(text)]
        assert list(words_of(text)) == theirs


@pytest.mark.parametrize("folder", [DEMO, *REAL])
def test_learnt_vocabularies_merge_by_their_ids(folder):
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no real Whisper at {folder}")
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    vocabulary = vocabulary_of(tokenizer)
    for text in (*TEXTS, *("".join(vocabulary.text([token])) for token in range(0, vocabulary.special_from, 997))):
        assert list(text_tokens(vocabulary, text, "prompt")) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_prompt_is_transformers_prompt_ids():
    tokenizer = make_tokenizer()
    model = model_with(positions=200)
    options = DecodeOptions(prompt="  The weather in Zürich. ", hotwords=("Anther", "on the ring"))
    prompts = read_prompts(vocabulary_of(tokenizer), model.tokens, options)
    previous, *ids = tokenizer.get_prompt_ids("The weather in Zürich.").tolist()
    assert previous == tokenizer.convert_tokens_to_ids("<|startofprev|>")
    assert list(prompts.first) == ids
    assert list(prompts.every) == tokenizer.get_prompt_ids("Anther, on the ring").tolist()[1:]


def shown_to(options: DecodeOptions, windows: int = 3):
    """What each window's decoder was fed before the start of its own transcript."""
    session, openings = scripted([at_time(0.0), 2, at_time(1.0)]), []
    logits = session._logits

    def recorded(fed, window):
        if fed[-1] == TRANSCRIBE:
            openings.append(fed[: fed.index(START)])
        return logits(fed, window)

    session._logits = recorded
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, windows * WINDOW).astype(np.float32)
    list(transcribe_windows(session, replace(model_with(), vocabulary=FEW), audio, options))
    return openings


def test_a_prompt_is_shown_once_and_hot_words_always():
    plain = {"temperatures": (0.0,), "quiet_cuts": False, "no_speech_limit": None}
    assert shown_to(DecodeOptions(**plain)) == [[], [], []]
    assert shown_to(DecodeOptions(**plain, prompt="yes no")) == [[PREVIOUS, 6, 9, 8], [], []]
    assert shown_to(DecodeOptions(**plain, hotwords=("yes",))) == [[PREVIOUS, 6]] * 3
    said = [TIMES, 2, at_time(1.0)]
    both = DecodeOptions(**plain, prompt="no", hotwords=("yes",), condition=True)
    assert shown_to(both)[:2] == [[PREVIOUS, 6, 9, 8], [PREVIOUS, 6, 9, 8, *said]]


def test_a_window_without_speech_that_was_shown_nothing_is_heard_once():
    """And the prompt, of the first window alone, is not shown in it after all."""
    seen: list[bool] = []

    def logits(fed, window):
        row, speaks = np.zeros(SIZE, np.float32), np.abs(window).max() > 0.1
        if fed[-1] == START:
            seen.append(PREVIOUS in fed)
            row[NO_SPEECH] = -9.0 if speaks else 9.0
        else:
            row[[2, END][min(len(said_since_prompt(fed)), 1)]] = 20.0 if speaks else 1.0
        return row

    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * WINDOW).astype(np.float32)
    audio[WINDOW:] *= 0.02
    options = DecodeOptions(temperatures=(0.0,), timestamps=False, quiet_cuts=False, prompt="yes")
    list(transcribe_windows(FakeSession(logits), replace(model_with(), vocabulary=FEW), audio, options))
    assert seen == [True, False, False]


def test_no_window_is_shown_more_than_half_of_the_positions():
    options = DecodeOptions(
        temperatures=(0.0,), hotwords=("yes " * 5,), prompt="yes " * 25, condition=True, stop_repeats=False
    )
    assert {len(opening) for opening in shown_to(options, 8)} <= {31, 32}


def test_what_cannot_be_shown_is_refused():
    tokens = model_with().tokens  # of 64 positions: 31 tokens and the start of earlier text
    assert len(read_prompts(FEW, tokens, DecodeOptions(prompt="yes " * 30 + "yes")).first) == 31
    for options, complaint in (
        (DecodeOptions(prompt="yes " * 32), "prompt: 32 tokens; this model can be shown 31"),
        (DecodeOptions(hotwords=("yes " * 31 + "yes",)), "hotwords: 32 tokens"),
        (DecodeOptions(prompt="yes " * 20, hotwords=("yes " * 11 + "yes",)), "prompt and hotwords: 20 and 12 tokens"),
        (DecodeOptions(prompt="yes <|en|>"), r"prompt: <\|en\|> is a special token"),
        (DecodeOptions(prompt="maybe"), "no token for a byte of 'maybe'"),
    ):
        with pytest.raises(BadInput, match=complaint):
            read_prompts(FEW, tokens, options)
    for options in (DecodeOptions(prompt="yes"), DecodeOptions(hotwords=("yes",))):
        with pytest.raises(BadInput, match="no token to show earlier text with"):
            read_prompts(FEW, model_with(previous=None).tokens, options)


def test_hot_words_have_commas_between():
    assert hotwords_of(None) == ()
    assert hotwords_of(" Anther,on the ring ,") == ("Anther", "on the ring")
    with pytest.raises(BadInput, match="--hotwords"):
        hotwords_of(" , ")
