"""Clips are varied as told: against numpy's interpolation, axis by axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leanear.data.examples import SpeechInputs
from leanear.recover.variations import LATEST, varied


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def draws(clips: int) -> np.ndarray:
    """The random numbers of `generator` as they are used: frequency, time, how late."""
    return torch.rand(3, clips, generator=generator()).numpy()


def full(clips: int = 3, frames: int = 60, mels: int = 16) -> torch.Tensor:
    return torch.randn(clips, frames, mels, generator=torch.Generator().manual_seed(1))


def test_the_mel_axis_of_a_full_window_is_stretched_about_its_lowest_bin_and_time_stays():
    given = full()
    found = varied(given, 0.2, 0.1, generator()).numpy()
    for clip, draw in enumerate(draws(3)[0]):
        places = np.minimum(np.arange(16) * (1 + 0.2 * (2 * draw - 1)), 15)
        for frame in (0, 31, 59):
            expected = np.interp(places, np.arange(16), given[clip, frame].numpy())
            assert found[clip, frame] == pytest.approx(expected, abs=1e-4)


def test_a_clip_with_room_is_slower_or_faster_and_begins_later_in_silence():
    given = torch.full((3, 90, 16), -1.5)
    given[:, :40] = full(3, 40)
    found = varied(given, 0.0, 0.2, generator()).numpy()
    for clip, (_, tempo, place) in enumerate(draws(3).T):
        late, rate = int(place * LATEST * 90), 1 + 0.2 * (2 * tempo - 1)
        assert (found[clip, :late] == -1.5).all()
        expected = np.interp((np.arange(90) - late) / rate, np.arange(90), given[clip, :, 7].numpy())
        assert found[clip, late:, 7] == pytest.approx(expected[late:], abs=1e-4)
    assert len({clip.tobytes() for clip in found}) == 3


def test_of_speech_the_axes_are_the_other_way_and_tokens_stay():
    given = full()
    tokens = torch.arange(6).reshape(3, 2)
    found = varied(SpeechInputs(given.mT, tokens), 0.2, 0.1, generator())
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(found.features.mT, varied(given, 0.2, 0.1, generator()))


def test_without_any_width_nothing_changes():
    given = full()
    assert varied(given, 0.0, 0.0) is given
