"""A Whisper checkpoint in torch as a session that decodes, so that the device's own decoding runs on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from leanear.export.whisper.golden_speech import cross_attention, window_states
from leanear.families import whisper
from leanear.families.whisper import WhisperCheckpoint
from leanear.families.whisper.model import alignment_of
from leanear.runtimes.audio.waveforms import checked_waveform
from leanear.runtimes.sessions import check_rows, checked_tokens
from leanear.runtimes.speech.encoder_windows import FULL, choose_windows
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.tokens.vocabulary import make_vocabulary

SMALLEST_WEIGHT = 1e-30  # of attention, so that its logarithm is a number


class TorchSpeechSession:
    """A `runtimes.sessions.SpeechSession` over a dense or slim checkpoint, fp32, where it is: on the CPU or a GPU."""

    most_rows: int | None = None
    takes_several = True

    def __init__(self, checkpoint: WhisperCheckpoint) -> None:
        self._heads = alignment_of(checkpoint).heads
        self._model = checkpoint.model
        self._feature_extractor = checkpoint.feature_extractor
        self._states: torch.Tensor | None = None
        self._rows = 0
        self._cache: EncoderDecoderCache | None = None

    def encode(self, waveform: np.ndarray, window: int | None = None) -> None:
        """Encoder states of one window."""
        extractor = self._feature_extractor
        window = window or extractor.n_samples
        features = whisper.features(extractor, [checked_waveform(waveform)[0][:window]])
        self.encode_features(features[..., : window // extractor.hop_length])

    def encode_several(self, waveforms: Sequence[np.ndarray], window: int | None = None) -> None:
        """Encoder states of several windows of one length."""
        states: list[torch.Tensor] = []
        for waveform in waveforms:
            self.encode(waveform, window)
            assert self._states is not None
            states.append(self._states)
        self._states = torch.cat(states)

    @torch.inference_mode()
    def encode_features(self, features: torch.Tensor) -> None:
        """Encoder states of log-mel features (1, mels, frames), as many frames as the window has."""
        self._states = window_states(self._model.model.encoder, features.to(self._model.device))
        self._rows = 0

    def start(self, rows: int = 1) -> None:
        """Forget all tokens; `rows` hypotheses follow, as many of each window."""
        check_rows(rows, 0 if self._states is None else len(self._states))
        self._rows = rows
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @torch.inference_mode()
    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        """Logits after the last of `tokens`, float32 (rows, vocabulary)."""
        config, cache = self._model.config, self._cache
        filled = 0 if cache is None else int(cache.get_seq_length())
        tokens, parents = checked_tokens(
            tokens, parents, self._rows, filled, config.vocab_size, config.max_target_positions
        )
        assert cache is not None
        assert self._states is not None
        if parents is not None:
            cache.self_attention_cache.reorder_cache(torch.from_numpy(parents).to(self._states.device))
        output = self._model(
            encoder_outputs=(self._states.repeat_interleave(self._rows // len(self._states), dim=0),),
            decoder_input_ids=torch.from_numpy(tokens).to(self._states.device),
            past_key_values=cache,
            use_cache=True,
        )
        return np.asarray(output.logits[:, -1].float().cpu().numpy())

    @torch.inference_mode()
    def alignment_scores(self, tokens: np.ndarray) -> np.ndarray:
        """Logarithms of the alignment heads' weights, float32 (A, n, T), of tokens fed from the start on."""
        self.start()
        assert self._states is not None
        weights = cross_attention(self._model, tokens, self._states)
        return np.stack([np.log(weights[layer][head].clip(SMALLEST_WEIGHT)) for layer, head in self._heads])

    def facts(self) -> dict[str, Any]:
        """Version and threads of torch."""
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "precision": "fp32",
        }

    def close(self) -> None:
        """Let go of the window's states and of the cache."""
        self._states, self._cache, self._rows = None, None, 0


def speech_model(checkpoint: WhisperCheckpoint, window: str = FULL) -> SpeechModel:
    """What decoding needs to know of a checkpoint, from its tokenizer and its generation settings.

    window: "full", "auto" or seconds.

    Raises:
        BadInput: the model has no such window.
    """
    tokens = whisper.decoding_settings(checkpoint)
    texts, special_from = whisper.vocabulary_tokens(checkpoint), min(tokens.start, tokens.end)
    extractor, words = checkpoint.feature_extractor, whisper.added_words(checkpoint)
    step = whisper.FRAMES_PER_POSITION * extractor.hop_length
    return SpeechModel(
        vocabulary=make_vocabulary(texts, special_from, f"{checkpoint.folder}/tokenizer.json", words),
        tokens=tokens,
        sample_rate_hz=extractor.sampling_rate,
        window_samples=extractor.n_samples,
        windows=choose_windows(window, extractor.n_samples, extractor.sampling_rate, step),
        alignment=alignment_of(checkpoint),
    )
