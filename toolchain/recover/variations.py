"""Training clips as another voice might have said them, a little slower or faster, a moment later."""

from __future__ import annotations

import torch
from torch.nn import functional

from leanear.data.examples import Inputs, SpeechInputs

LATEST = 1 / 30  # of a window: how much later a clip may begin


def varied(inputs: Inputs, frequency_warp: float, time_warp: float, generator: torch.Generator | None = None) -> Inputs:
    """Inputs whose features are stretched by random factors of their own for every clip.

    inputs: features (B, frames, mels), or `SpeechInputs`, whose are (B, mels, frames). frequency_warp: the mel axis is
    scaled about its lowest bin by 1 plus or minus so much, as a vocal tract of another length does (Jaitly and Hinton
    2013); time_warp: so is the time of a clip that leaves room in its window, which then also begins later. Where a
    window is full, times stay: timestamps are said of it. generator: of the draws, or None for torch's own.
    """
    if not frequency_warp and not time_warp:
        return inputs
    if isinstance(inputs, SpeechInputs):
        features = _varied(inputs.features.mT, frequency_warp, time_warp, generator)
        return SpeechInputs(features.mT, inputs.tokens)
    return _varied(inputs, frequency_warp, time_warp, generator)


def _varied(
    features: torch.Tensor, frequency_warp: float, time_warp: float, generator: torch.Generator | None
) -> torch.Tensor:
    clips, frames, mels = features.shape
    draws = torch.rand(3, clips, generator=generator)
    silence = features[:, -1:]
    heard = frames - (features == silence).all(dim=2).flip(1).cumprod(dim=1).sum(dim=1)
    has_room = (heard * (1 + time_warp) <= frames * (1 - LATEST)) & bool(time_warp)
    mel_rate = 1 + frequency_warp * (2 * draws[0] - 1)
    frame_rate = 1 + time_warp * (2 * draws[1] - 1) * has_room
    late = (draws[2] * LATEST * frames).floor() * has_room
    # what is sampled for a place: both run from -1 to 1 over mels and frames
    zero = torch.zeros(clips)
    first_frame = 1 / frame_rate - 1 - 2 * late / ((frames - 1) * frame_rate)
    rows = [torch.stack([mel_rate, zero, mel_rate - 1], 1), torch.stack([zero, 1 / frame_rate, first_frame], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [clips, 1, frames, mels], align_corners=True)
    warped = functional.grid_sample(features[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    return torch.where(torch.arange(frames)[None, :, None] < late[:, None, None], silence, warped)
