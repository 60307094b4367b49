"""Clips joined to recordings: how many, in what order, and when there are none."""

from __future__ import annotations

import numpy as np
import pytest

from leanear.benchmarks.measure.answers import recordings_of
from leanear.runtimes.clips import Clips


def spoken(seconds, rate=100):
    """A clip of the value of its number, of each length, that says its number."""
    waveforms = tuple(np.full(round(each * rate), number + 1.0, np.float32) for number, each in enumerate(seconds))
    words = tuple(f"word{number}" for number in range(len(seconds)))
    return Clips(waveforms, np.zeros(len(seconds), np.int64), words, (), rate, texts=words)


def test_every_recording_is_three_windows_of_whole_clips_with_pauses():
    clips = spoken([4.0] * 7)
    found = recordings_of(clips, window_s=4.0)
    assert found.texts == ("word0 word1 word2", "word3 word4 word5")
    assert found.names == ("word0 to word2", "word3 to word5")
    assert [len(each) / 100 for each in found.waveforms] == [13.5, 13.5]
    pause = np.zeros(50, np.float32)
    wanted = [part for number in (3, 4, 5) for part in (clips.waveforms[number], pause)]
    np.testing.assert_array_equal(found.waveforms[1], np.concatenate(wanted))


@pytest.mark.parametrize("seconds", [[4.0, 4.0], [], [4.0, 4.0, 4.0, 4.1]])
def test_there_are_none_of_too_few_clips_or_where_a_clip_is_longer_than_a_window(seconds):
    assert len(recordings_of(spoken(seconds), window_s=4.0)) == 0


def test_they_are_ten_minutes_in_all_at_most():
    found = recordings_of(spoken([29.5] * 60, rate=10), window_s=30.0)
    assert sum(len(each) for each in found.waveforms) / 10 <= 600
    assert len(found) == 6
