"""What a Whisper in torch says of windows of audio, greedily, and how many words of it are wrong."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from leanear.calibration.targets import NO_TARGET
from leanear.data.examples import LabelledInputs, Mistakes, SpeechInputs
from leanear.data.word_errors import Normaliser, choose_normaliser, count_word_errors
from leanear.families.whisper.settings import NO_TIMESTAMPS
from leanear.progress import Report, quiet

BATCH_CLIPS = 32
LANGUAGE_PLACE = 1  # in a multilingual model's prompt, after <|startoftranscript|>


def word_mistakes(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, clips: LabelledInputs
) -> Mistakes:
    """The word errors of the model's greedy transcripts without timestamps, and the references' words, clip by clip."""
    assert isinstance(clips.inputs, SpeechInputs)
    assert clips.texts is not None
    prompt = clips.inputs.tokens[:1, : int((clips.targets[0] != NO_TARGET).int().argmax()) + 1]
    prompt = prompt[:, int((prompt[0] == model.config.decoder_start_token_id).int().argmax()) :]  # no text from before
    untimed = torch.tensor([[tokenizer.convert_tokens_to_ids(NO_TIMESTAMPS)]])
    if prompt[0, -1] != untimed:  # the first clip has timestamps
        prompt = torch.cat([prompt, untimed], dim=1)
    normaliser = normaliser_for(tokenizer, model.generation_config, prompt[0].tolist())
    transcripts: list[str] = []
    for features in clips.inputs.features.split(BATCH_CLIPS):
        transcripts += tokenizer.batch_decode(greedy_tokens(model, features, prompt), skip_special_tokens=True)
    found = count_word_errors(clips.texts, transcripts, normaliser)
    return Mistakes(_floats(found.errors), _floats(found.reference_words))


def normaliser_for(tokenizer: WhisperTokenizer, settings: GenerationConfig, prompt: Sequence[int]) -> Normaliser:
    """What transcripts are compared after, for the language of the prompt."""
    language = "en"
    if settings.is_multilingual and getattr(settings, "task", None) != "translate":
        token = tokenizer.convert_ids_to_tokens(prompt[LANGUAGE_PLACE])
        language = token.removeprefix("<|").removesuffix("|>")
    return choose_normaliser(language, tokenizer.english_spelling_normalizer)


@torch.inference_mode()
def greedy_tokens(
    model: WhisperForConditionalGeneration, features: torch.Tensor, prompt: torch.Tensor, report: Report = quiet
) -> list[list[int]]:
    """After the prompt (1, P), token after token the likeliest that is not suppressed, up to the end of the text.

    features: (B, mels, frames). The same as transformers' `generate` without timestamps; a text that does not end is
    cut off where the decoder has no more positions.
    """
    settings, config = model.generation_config, model.config
    never, not_first = (list(tokens or ()) for tokens in (settings.suppress_tokens, settings.begin_suppress_tokens))
    states = model.model.encoder(features.to(model.device)).last_hidden_state
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    fed = prompt.to(model.device).expand(len(features), -1)
    said = torch.empty(len(features), 0, dtype=torch.int64, device=model.device)
    ended = torch.zeros(len(features), dtype=torch.bool, device=model.device)
    while prompt.shape[1] + said.shape[1] < config.max_target_positions and not ended.all():
        answer = model(encoder_outputs=(states,), decoder_input_ids=fed, past_key_values=cache, use_cache=True)
        logits = answer.logits[:, -1].clone()
        logits[:, never if said.shape[1] else never + not_first] = -torch.inf
        fed = torch.where(ended, config.eos_token_id, logits.argmax(dim=-1))[:, None]
        said = torch.cat([said, fed], dim=1)
        ended |= fed[:, 0] == config.eos_token_id
        report(f"what the model says of clips, token {said.shape[1]}", said.shape[1] / config.max_target_positions)
    return [row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row for row in said.tolist()]


def _floats(counts: Sequence[int]) -> np.ndarray:
    return np.array(counts, dtype=np.float64)
