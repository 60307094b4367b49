"""A recording without what nobody says: only the stretches with speech are heard, and times are those of the recording.

Where a pause is longer than a moment a window ends, so that what was said before it is known while the pause lasts.

Speech begins at one probability, and ends after a while below another: the rule is that of silero's
`get_speech_timestamps`; here it is told of frames as they come, and says what it keeps as soon as that is certain.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import Callable, Iterable, Iterator

import numpy as np

from leanear.runtimes.errors import BadInput, RuntimeUnavailable
from leanear.runtimes.process.notes import note
from leanear.runtimes.sessions import SpeechSession
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import Decoded
from leanear.runtimes.speech.long_audio import Waveform, transcribe
from leanear.runtimes.speech.speech_model import SpeechModel
from leanear.runtimes.speech.transcript import Segment, Tally, VoiceKept
from leanear.runtimes.speech.words import Word
from leanear.runtimes.voice.graph import FRAME_SAMPLES, RATE_HZ, Detector

FRAME_S = FRAME_SAMPLES / RATE_HZ
ON, OFF, AUTO = "on", "off", "auto"
CHOICES = (ON, OFF, AUTO)
LONG_S = 30.0  # audio is long from here on
BLOCK_FRAMES = 16  # half a second at a time
PAUSE_S = 2.0  # longer ones end a window
LEAST_SAMPLES = 320  # before a pause, that are worth a window


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


RULES = VoiceRules()


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


@dataclass(frozen=True)
class Voice:
    """Whether speech is told from other sounds, and by what.

    choice: one of CHOICES; opened: a detector for one recording; is_live: the audio comes while it is heard, and may
    become long.
    """

    choice: str
    opened: Callable[[], Detector]
    is_live: bool = False


class SpeechOnly:
    """The speech in a waveform of RATE_HZ, as `long_audio.Waveform`.

    A slice ends at its end, or where a pause longer than `pause_s` was. kept: how much of the audio so far is in it.
    """

    def __init__(
        self, waveform: Waveform, detector: Detector, rules: VoiceRules = RULES, pause_s: float = PAUSE_S
    ) -> None:
        self._waveform, self._detector, self._found = waveform, detector, SpeechStretches(rules)
        self._pause = round(pause_s * RATE_HZ / FRAME_SAMPLES)
        self._audio, self._audio_from, self._ended = np.zeros(0, np.float32), 0, False
        self._samples = 0  # of the waveform, read so far
        self._kept, self._kept_from = np.zeros(0, np.float32), 0
        self._places, self._origins = [0], [0]  # where each stretch begins, here and in the waveform
        self._taken = 0  # stretches that `_places` has
        self._pauses: list[int] = []  # where, here: those that no slice has come to
        self._last_pause = 0

    @property
    def kept(self) -> VoiceKept:
        """Seconds of the waveform that were read, and of them those that are kept."""
        return VoiceKept(self._samples / RATE_HZ, (self._kept_from + len(self._kept)) / RATE_HZ)

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples [start, stop) of the speech, fewer before a pause and where the audio ends."""
        self._kept = self._kept[span.start - self._kept_from :]
        self._kept_from = span.start
        self._pauses = [pause for pause in self._pauses if pause >= span.start + LEAST_SAMPLES]
        while not self._ended and self._behind < span.stop and not self._pauses:
            self._hear_block()
        stop = min([span.stop, *self._pauses])
        return self._kept[: stop - span.start]

    def original(self, sample: int, *, is_end: bool = False) -> int:
        """The sample of the waveform that a place in its speech is; is_end: it is of what ends there, not begins."""
        find = bisect.bisect_left if is_end else bisect.bisect_right
        place = max(find(self._places, sample) - 1, 0)
        return self._origins[place] + sample - self._places[place]

    @property
    def _behind(self) -> int:
        return self._kept_from + len(self._kept)

    def _hear_block(self) -> None:
        wanted = BLOCK_FRAMES * FRAME_SAMPLES
        block = np.asarray(self._waveform[self._samples : self._samples + wanted], np.float32)
        self._samples += len(block)
        self._ended = len(block) < wanted
        self._audio = np.concatenate([self._audio, block])
        whole = -(-len(block) // FRAME_SAMPLES)
        if whole:
            frames = np.zeros(whole * FRAME_SAMPLES, np.float32)
            frames[: len(block)] = block
            self._found.hear(self._detector.probabilities(frames.reshape(whole, FRAME_SAMPLES)))
        if self._ended:
            self._found.finish()
        self._take()
        if self._found.silent_frames > self._pause and self._behind > self._last_pause:
            self._last_pause = self._behind
            if self._behind >= self._kept_from + LEAST_SAMPLES:
                self._pauses.append(self._behind)

    def _take(self) -> None:
        """Take what is certain to be speech, and let go of what is certain not to be."""
        parts = [self._kept]
        for number in range(max(self._taken - 1, 0), len(self._found.stretches)):
            first, behind = (frame * FRAME_SAMPLES for frame in self._found.stretches[number])
            held = sum(map(len, parts)) + self._kept_from
            if number >= self._taken:
                self._begin(held, first)
            origin = self._origins[-1] + held - self._places[-1]
            parts.append(self._audio[origin - self._audio_from : behind - self._audio_from])
        self._taken = len(self._found.stretches)
        self._kept = np.concatenate(parts)
        let_go = min(self._found.let_go * FRAME_SAMPLES, self._samples)
        self._audio = self._audio[let_go - self._audio_from :]
        self._audio_from = let_go

    def _begin(self, place: int, origin: int) -> None:
        if place == 0:
            self._origins[0] = origin
            return
        self._places.append(place)
        self._origins.append(origin)


def transcribe_spoken(
    session: SpeechSession,
    model: SpeechModel,
    waveform: Waveform,
    options: DecodeOptions,
    voice: Voice,
    tally: Tally,
    words: bool = False,
    first_try: Decoded | None = None,
) -> Iterator[Segment]:
    """As `long_audio.transcribe`, of what is spoken alone where `voice` says so; the tally says what that is.

    first_try: of a waveform that is heard as a whole.

    Raises:
        LeanearError: as there, or speech was to be told from other sounds and cannot be.
    """
    is_long = voice.is_live or _is_long(waveform, model)
    options = replace(options, batch=1) if voice.is_live else options
    detector = _detector(model, voice, is_long)
    if detector is None:
        yield from transcribe(session, model, waveform, options, tally, words, first_try, voice.is_live)
        return
    speech = SpeechOnly(waveform, detector)
    for segment in transcribe(session, model, speech, options, tally, words, None, is_long):
        tally.voice = speech.kept
        yield _moved(segment, speech)
    tally.voice = speech.kept


def _moved(segment: Segment, speech: SpeechOnly) -> Segment:
    """The segment, and its words, with the times that they have in the whole audio."""
    words = segment.words
    if words is not None:
        words = tuple(
            replace(word, start_s=start, end_s=end) for word in words for start, end in [_times(word, speech)]
        )
    start_s, end_s = _times(segment, speech)
    return replace(segment, start_s=start_s, end_s=end_s, words=words)


def _times(timed: Segment | Word, speech: SpeechOnly) -> tuple[float, float]:
    """Seconds in the whole audio of the beginning and the end."""
    start = speech.original(round(timed.start_s * RATE_HZ))
    end = speech.original(round(timed.end_s * RATE_HZ), is_end=True)
    return start / RATE_HZ, max(start, end) / RATE_HZ


def _detector(model: SpeechModel, voice: Voice, is_long: bool) -> Detector | None:
    """What tells speech from other sounds, None where all is to be heard."""
    if voice.choice == OFF or (voice.choice == AUTO and not is_long):
        return None
    try:
        if model.sample_rate_hz != RATE_HZ:
            raise BadInput(f"--vad: for models that hear {RATE_HZ} Hz; this one hears {model.sample_rate_hz}")
        return voice.opened()
    except (BadInput, RuntimeUnavailable) as error:
        if voice.choice == ON:
            raise
        note(f"all of the audio is heard, speech or not: {error}")
        return None


def _is_long(waveform: Waveform, model: SpeechModel) -> bool:
    long = round(LONG_S * model.sample_rate_hz)
    return len(waveform[0 : long + 1]) > long
