"""Where somebody speaks, frame by frame: speech begins at one probability, and ends after a while below another.

The rule is that of silero's `get_speech_timestamps`; here it is told of frames as they come, and says what it keeps as
soon as that is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

from leanear.runtimes.voice.graph import FRAME_SAMPLES, RATE_HZ

FRAME_S = FRAME_SAMPLES / RATE_HZ


@dataclass(frozen=True)
class VoiceRules:
    """What counts as speech; seconds are rounded to frames.

    begin, end: the probability that speech begins at, and the one that it ends below; silence_s: how long that has to
    last; speech_s: what is shorter is no speech; around_s: kept before and after, at most half of `silence_s`.
    """

    begin: float = 0.5
    end: float = 0.35
    silence_s: float = 1.0
    speech_s: float = 0.25
    around_s: float = 0.4

    @property
    def silence(self) -> int:
        """Frames of silence that end speech."""
        return round(self.silence_s / FRAME_S)

    @property
    def speech(self) -> int:
        """Frames that speech is longer than."""
        return int(self.speech_s / FRAME_S)

    @property
    def around(self) -> int:
        """Frames kept on either side."""
        return min(round(self.around_s / FRAME_S), self.silence // 2)


class SpeechStretches:
    """Stretches [first, behind) of frames that are kept, of which the last one may grow; `seen` frames were told of."""

    def __init__(self, rules: VoiceRules) -> None:
        self._rules = rules
        self._start: int | None = None
        self._quiet_since: int | None = None
        self._grows = False
        self.stretches: list[list[int]] = []
        self.seen = 0

    @property
    def let_go(self) -> int:
        """The first frame that may be kept later on: of those before it no more will be."""
        if self._grows:
            return self.stretches[-1][1]
        return max((self.seen if self._start is None else self._start) - self._rules.around, 0)

    @property
    def silent_frames(self) -> int:
        """For how many frames nobody has spoken, those kept around speech not counted; 0 while somebody may."""
        if self._start is not None:
            return 0
        return self.seen - (self.stretches[-1][1] if self.stretches else 0)

    def hear(self, probabilities: Iterable[float]) -> None:
        """The next frames' probabilities."""
        for probability in probabilities:
            self._hear(float(probability))

    def finish(self) -> None:
        """No more frames: speech that has not ended ends here."""
        if self._start is not None and self.seen - self._start > self._rules.speech:
            self._keep(self._start, self.seen)
        self._start, self._grows = None, False

    def _hear(self, probability: float) -> None:
        rules = self._rules
        frame, self.seen = self.seen, self.seen + 1
        if probability >= rules.begin:
            self._quiet_since = None
            self._start = frame if self._start is None else self._start
        elif probability < rules.end and self._start is not None and self._quiet_since is None:
            self._quiet_since = frame
        if self._start is None:
            return
        spoken_to = self.seen if self._quiet_since is None else self._quiet_since
        if spoken_to - self._start > rules.speech:
            around = 0 if self._quiet_since is None else rules.around
            self._keep(self._start, min(spoken_to + around, self.seen))
        ends = probability < rules.end and self._quiet_since is not None and frame - self._quiet_since >= rules.silence
        if ends:
            self._start, self._quiet_since, self._grows = None, None, False

    def _keep(self, start: int, behind: int) -> None:
        if not self._grows:
            self.stretches.append([max(start - self._rules.around, 0), behind])
            self._grows = True
        self.stretches[-1][1] = max(behind, self.stretches[-1][1])
