"""From waveforms to features, logits, a loss by teacher forcing, greedy transcripts and their word errors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from leanear.calibration.targets import NO_TARGET
from leanear.data.examples import LabelledInputs, Mistakes, SpeechInputs
from leanear.data.word_errors import Normaliser, choose_normaliser, count_word_errors
from leanear.families.whisper.model import WhisperCheckpoint, WhisperModel
from leanear.families.whisper.settings import NO_TIMESTAMPS
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput

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


def window_samples(feature_extractor: WhisperFeatureExtractor) -> int:
    """How much of a waveform the model hears at once."""
    return int(feature_extractor.n_samples)


def features(feature_extractor: WhisperFeatureExtractor, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """Log-mel features (B, mels, frames) of one window per waveform, fp32, by transformers' own extractor.

    Raises:
        BadInput: a waveform is longer than the window; what is behind it would be lost.
    """
    longest = max(len(waveform) for waveform in waveforms)
    if longest > feature_extractor.n_samples:
        lasts_s, window_s = longest / feature_extractor.sampling_rate, feature_extractor.chunk_length
        raise BadInput(f"a clip lasts {lasts_s:.2f} s, longer than the model's window of {window_s} s")
    arrays = [
        feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate)["input_features"][0]
        for waveform in waveforms
    ]
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def logits(model: WhisperModel, inputs: SpeechInputs) -> torch.Tensor:
    """Logits (B, L, vocabulary) of the token after each of `inputs.tokens`, on the model's device."""
    inputs = inputs.to(model.device)
    if inputs.encoded:
        states = (inputs.features,)
        return model(encoder_outputs=states, decoder_input_ids=inputs.tokens, use_cache=False).logits
    return model(input_features=inputs.features, decoder_input_ids=inputs.tokens, use_cache=False).logits


@torch.no_grad()
def encoded(model: WhisperModel, inputs: SpeechInputs, batch_size: int) -> SpeechInputs:
    """The inputs with what the model's encoder makes of them: enough where only its decoder changes."""
    device = next(model.parameters()).device
    parts = [model.model.encoder(part.to(device)).last_hidden_state for part in inputs.features.split(batch_size)]
    return SpeechInputs(torch.cat(parts), inputs.tokens.to(device), encoded=True)


def batch_loss(model: WhisperModel, inputs: SpeechInputs, target_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the tokens of a batch that are to be learned; target_ids: (B, L), -100 elsewhere."""
    found = logits(model, inputs).flatten(0, 1)
    return functional.cross_entropy(found, target_ids.flatten().to(found.device), ignore_index=NO_TARGET)


def mistakes(
    checkpoint: WhisperCheckpoint, model: WhisperModel, clips: LabelledInputs, answers: torch.Tensor
) -> Mistakes:
    """Word errors of the model's own greedy transcripts; answers, by teacher forcing, have no part in it."""
    del answers
    return word_mistakes(model, checkpoint.tokenizer, clips)
