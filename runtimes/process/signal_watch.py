"""Readings that are plainly no signal: silence, channels that cancel each other, samples far beyond full scale."""

from __future__ import annotations

import numpy as np

CANCELLED = 1e-4  # of the channels' energy, which is -40 dB
AUDIBLE_ENERGY = 2.0**-32  # per sample, of half a 16-bit step
FAR_BEYOND = 16.0  # times full scale; limiters and codecs overshoot by less than two


class SignalWatch:
    """What is found of a file's samples while they are read, block after block."""

    def __init__(self) -> None:
        self.frames = 0
        self._channels_energy, self._mix_energy, self._peak = 0.0, 0.0, 0.0

    def hear(self, samples: np.ndarray, mix: np.ndarray) -> None:
        """The next samples (frames, channels), and their mean over channels (frames,)."""
        self.frames += len(samples)
        self._channels_energy += float(np.square(samples, dtype=np.float64).sum()) / samples.shape[1]
        self._mix_energy += float(np.square(mix, dtype=np.float64).sum())
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))

    def findings(self) -> list[str]:
        """One clause for each thing that is wrong with what was heard so far."""
        found = []
        if self.frames and not self._peak:
            found.append("it is silent: every sample is 0")
        audible = self._channels_energy > AUDIBLE_ENERGY * self.frames
        if audible and self._mix_energy < CANCELLED * self._channels_energy:
            found.append("its channels cancel: one is the other upside down, so that their mix is silent")
        return [*found, *beyond_full_scale(self._peak)]


def beyond_full_scale(peak: float) -> list[str]:
    """What is said of samples whose largest magnitude is so far beyond full scale that they were never scaled."""
    if peak <= FAR_BEYOND:
        return []
    return [f"it holds samples up to {peak:,.0f} where 1 is full scale; scale them before use"]
