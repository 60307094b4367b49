"""Log-mel spectrograms of whole batches, the same numbers as transformers' own extractor, fast enough to train on."""

from __future__ import annotations

import numpy as np
import torch
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

FRAME_SAMPLES = 400
HOP_SAMPLES = 160
_FFT_SAMPLES = 512
_LEAST_MEL_POWER = 1.192092955078125e-07


def log_mel(waves: torch.Tensor, lengths: np.ndarray, extractor: ASTFeatureExtractor) -> torch.Tensor:
    """Log-mel features, float32 (B, extractor.max_length, mel bins), zero after a clip's last frame, not normalised.

    `waves` is float32 (B, samples); row b holds `lengths[b]` samples, at least one frame (400).
    """
    needed = FRAME_SAMPLES + HOP_SAMPLES * (extractor.max_length - 1)
    waves = torch.nn.functional.pad(waves, (0, max(0, needed - waves.shape[1])))[:, :needed]
    frames = waves.unfold(1, FRAME_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(2, keepdim=True)
    before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
    window = torch.from_numpy(np.asarray(extractor.window, np.float32))
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, n=_FFT_SAMPLES)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.from_numpy(np.asarray(extractor.mel_filters, np.float32))
    features = torch.log(torch.clamp(power @ filters, min=_LEAST_MEL_POWER))
    whole_frames = 1 + (torch.from_numpy(lengths) - FRAME_SAMPLES) // HOP_SAMPLES
    return features * (torch.arange(extractor.max_length)[None, :, None] < whole_frames[:, None, None])


def normalise(features: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Features as the model takes them: AST halves the unit deviation (Gong et al. 2021, arXiv:2104.01778)."""
    return (features - mean) / (2 * std)


def whisper_log_mel(waves: torch.Tensor, extractor: WhisperFeatureExtractor) -> torch.Tensor:
    """Whisper's features, float32 (B, mel bins, frames), of windows as long as `waves`, float32 (B, samples).

    `samples` is a whole number of hops. Each window's floor is 8 (in log10 of power) below its own maximum.
    """
    window = torch.hann_window(extractor.n_fft)
    spectrum = torch.stft(waves, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.from_numpy(np.asarray(extractor.mel_filters, np.float32))
    features = torch.clamp(filters.T @ power, min=1e-10).log10()
    features = torch.maximum(features, features.amax((1, 2), keepdim=True) - 8.0)
    return (features + 4.0) / 4.0
