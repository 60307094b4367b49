"""Work that is under way, for who has no bar to look at: what is done, how far it is, how long it may still take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable

from leanear.benchmarks.formatting import duration

SILENCE_S = 12.0  # until a line comes: 20 s are promised, and a busy machine may be late


@dataclass
class Work:
    """Something under way: what was reported of it last, and since when its fraction, which never falls, has grown.

    as_a_whole: it is all that a command does, and is only spoken of where no step of it is under way. announce: says
    that it has begun, where that was not said yet.
    """

    title: str
    as_a_whole: bool = False
    text: str = ""
    fraction: float | None = None
    started: float = field(default_factory=time.monotonic)
    grows_since: float = 0.0
    grows_from: float = 0.0
    announce: Callable[[], object] = bool

    def report(self, text: str, fraction: float | None = None) -> None:
        """Take a report; a fraction that falls, or is not known, leaves the work as far as it was."""
        if fraction is not None and self.fraction is None:
            self.grows_since, self.grows_from = time.monotonic(), fraction
        if fraction is not None:
            self.fraction = max(fraction, self.fraction or 0.0)
        self.text = text

    def line(self, now: float) -> str:
        """What is being done, how far that is and how long it may still take, and the time so far."""
        return f"{self.said}{self._how_far(now)}, {duration(now - self.started)} so far"

    @property
    def said(self) -> str:
        """What is being done."""
        return f"{self.title}: {self.text}" if self.text else self.title

    def _how_far(self, now: float) -> str:
        if self.fraction is None:
            return ""
        done, grown = f"{100 * self.fraction:.0f} %", self.fraction - self.grows_from
        if not grown > 0.02 or self.fraction >= 1:  # too little to guess from
            return f" ({done})"
        left_s = (1 - self.fraction) * (now - self.grows_since) / grown
        return f" ({done}, about {duration(left_s)} to go)"
