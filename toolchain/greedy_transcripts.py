"""What a Whisper in torch says of windows of audio, greedily, and how many words of it are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from toolchain.examples import LabelledInputs, Mistakes, SpeechInputs
from toolchain.word_errors import choose_normaliser, count_word_errors

BATCH_CLIPS = 32
LANGUAGE_PLACE = 1  # in a multilingual model's prompt, after <|startoftranscript|>


def greedy_transcripts(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, inputs: SpeechInputs
) -> list[str]:
    """The likeliest token after token by transformers' `generate`, suppressed ones left out, no timestamps.

    The language is that of the prompt in `inputs`.
    """
    prompt = {}
    if model.generation_config.is_multilingual:
        prompt = {"language": _language(tokenizer, inputs), "task": "transcribe"}
    texts: list[str] = []
    with torch.inference_mode():
        for part in inputs.features.split(BATCH_CLIPS):
            ids = model.generate(part, **prompt, return_timestamps=False, do_sample=False, num_beams=1)
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def word_mistakes(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, clips: LabelledInputs
) -> Mistakes:
    """The word errors of the model's greedy transcripts, and the words of the references, clip by clip."""
    assert isinstance(clips.inputs, SpeechInputs)
    assert clips.texts is not None
    language = _language(tokenizer, clips.inputs) if model.generation_config.is_multilingual else "en"
    normaliser = choose_normaliser(language, tokenizer.english_spelling_normalizer)
    found = count_word_errors(clips.texts, greedy_transcripts(model, tokenizer, clips.inputs), normaliser)
    return Mistakes(_floats(found.errors), _floats(found.reference_words))


def _language(tokenizer: WhisperTokenizer, inputs: SpeechInputs) -> str:
    token = tokenizer.convert_ids_to_tokens(int(inputs.tokens[0, LANGUAGE_PLACE]))
    return token.removeprefix("<|").removesuffix("|>")


def _floats(counts: Sequence[int]) -> np.ndarray:
    return np.array(counts, dtype=np.float64)
