"""From waveforms to features, logits, a loss by teacher forcing, and word errors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import WhisperFeatureExtractor

from leanear.calibration.targets import NO_TARGET as NOT_A_TARGET
from leanear.data.examples import LabelledInputs, Mistakes, SpeechInputs
from leanear.families.whisper.checkpoint import WhisperCheckpoint, WhisperModel
from leanear.families.whisper.greedy_transcripts import word_mistakes
from leanear.runtimes.errors import BadInput


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
    return functional.cross_entropy(found, target_ids.flatten().to(found.device), ignore_index=NOT_A_TARGET)


def mistakes(
    checkpoint: WhisperCheckpoint, model: WhisperModel, clips: LabelledInputs, answers: torch.Tensor
) -> Mistakes:
    """Word errors of the model's own greedy transcripts; answers, by teacher forcing, have no part in it."""
    del answers
    return word_mistakes(model, checkpoint.tokenizer, clips)
