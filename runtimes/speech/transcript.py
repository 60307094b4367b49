"""What is heard of a recording: windows, their segments, and the tally of what that took."""

from __future__ import annotations

from dataclasses import dataclass, field

from leanear.runtimes.process.notes import plural
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.words import Word


@dataclass(frozen=True)
class VoiceKept:
    """How much audio there was, and how much of it was kept because somebody speaks."""

    audio_s: float
    speech_s: float


@dataclass
class Tally:
    """What transcribing took, counted as it goes on.

    windows: that were decoded; short: of them, in a window shorter than the full one; second_tries: how many of those
    were heard again in full, by the reason ("cap", "loop", "short": see `attempts`; "unlikely": the tokens were), or of
    full ones in two parts ("cut": too little was heard). repeats: windows of which what comes again and again was left
    out; voice: what was left out because nobody speaks, None: nothing was. segments: that have words; taken_for: what
    audio without a header was taken for.
    """

    windows: int = 0
    short: int = 0
    repeats: int = 0
    second_tries: dict[str, int] = field(default_factory=dict)
    voice: VoiceKept | None = None
    segments: int = 0
    taken_for: str = ""

    def again(self, reason: str) -> None:
        """One more second try."""
        self.second_tries[reason] = self.second_tries.get(reason, 0) + 1

    @property
    def heard_again(self) -> int:
        """Second tries for any reason."""
        return sum(self.second_tries.values())

    @property
    def sentence(self) -> str:
        """How much was kept as speech, how many second tries there were and why, and what was left out; "" of none."""
        parts = []
        if self.voice is not None:
            audio_s, speech_s = self.voice.audio_s, self.voice.speech_s
            share = f" ({100 * speech_s / audio_s:.0f} %)" if audio_s else ""
            rest = ", the rest was not transcribed (--vad)" if audio_s - speech_s >= 0.05 else ""
            parts.append(f"speech in {speech_s:.1f} of {audio_s:.1f} s{share}{rest}")
        if self.second_tries:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.second_tries.items())
            were = "was" if self.heard_again == 1 else "were"
            parts.append(f"{self.heard_again} of {plural(self.windows, 'window')} {were} heard again ({reasons})")
        if self.repeats:
            parts.append(f"in {plural(self.repeats, 'window')} what came again and again was left out")
        return "; ".join(parts)


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: its times in the audio, its text, and how the window that it is from was decoded.

    words: with times of their own, which together are the text; None where they were not asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    average_log_probability: float
    no_speech_probability: float | None
    compression_ratio: float
    language: str | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Window:
    """One window as it was taken: samples [start, start + advance) are done with; decoded is None where it was silent.

    segments: with the timestamps in their tokens, those without text too; none where the window was judged to hold no
    speech.
    """

    start: int
    samples: int
    advance: int
    decoded: Decoded | None
    segments: tuple[Segment, ...]
