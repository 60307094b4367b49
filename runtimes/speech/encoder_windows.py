"""How long a stretch of audio a Whisper's encoder is given: its full window, or a shorter one that holds the audio.

A short clip in the full window is mostly silence, and the encoder works on silence as long as on speech. So the clip is
filled up with zeros only to the shortest window that holds it and a tail of silence, without which the end of the text
is lost. The full window is always there: it hears what the shorter ones were not trusted with.

For a measurement, one window of speech is what it starts from, and how many tokens it generates.
"""

from __future__ import annotations

import math

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import AUTO, FULL, Decoding, EncoderWindows
from leanear.runtimes.process.notes import note

DEFAULT_WINDOW = AUTO  # of `transcribe`, and of what is exported for a runtime that takes windows of several lengths
AUTO_FROM_S, AUTO_STEP_S = 10, 2  # a new length costs a runtime time and memory, a second of silence time
TAIL_S = 2.0  # of silence behind the audio
TOKENS_PER_MINUTE = 200.0  # 100 tokens of a 30 s window: brisk speech in Whisper's English vocabulary
FEWEST_TOKENS = 4


def full_window(window_samples: int) -> EncoderWindows:
    """The full window alone."""
    return EncoderWindows(FULL, (window_samples,), 0)


def choose_windows(choice: str, window_samples: int, sample_rate_hz: int, step_samples: int) -> EncoderWindows:
    """The windows of `choice`, "full", "auto" or seconds, of a model whose full window and encoder step are given.

    Lengths are rounded up to whole steps. Of a model whose full window is no longer than the shortest of "auto", that
    is the full window alone.

    Raises:
        BadInput: it is none of the three, or a window that leaves no room for audio or is longer than the model's.
    """
    if choice == FULL:
        return full_window(window_samples)
    tail, full_s = round(TAIL_S * sample_rate_hz), window_samples / sample_rate_hz
    if choice == AUTO:
        seconds = range(AUTO_FROM_S, math.ceil(full_s), AUTO_STEP_S)
        lengths = (_whole_steps(each, sample_rate_hz, step_samples) for each in seconds)
        shorter = [length for length in lengths if length < window_samples]
        return EncoderWindows(AUTO, (*shorter, window_samples), tail if shorter else 0)
    wanted = float(check_window_choice(choice, full_s))
    length = _whole_steps(wanted, sample_rate_hz, step_samples)
    if length >= window_samples:
        return full_window(window_samples)
    if wanted < AUTO_FROM_S < full_s:
        note(f"--window {wanted:g}: of windows under {AUTO_FROM_S} s Whisper may make words that nobody said")
    return EncoderWindows(f"{wanted:g}", (length, window_samples), tail)


def artifact_windows(artifact: Artifact, choice: str | None = None) -> EncoderWindows:
    """The windows that a Whisper artifact's encoder is given.

    choice: "full", "auto" or seconds; None: as the artifact says.

    Raises:
        BadInput: there is no such window, or the artifact's encoder takes its full one alone.
    """
    full = artifact.manifest.input.window_samples
    own = artifact.manifest.input.windows or full_window(full)
    if choice is None:
        return own
    chosen = choose_windows(choice, full, artifact.sample_rate_hz, step_samples(artifact))
    if len(chosen.lengths) > 1 and len(own.lengths) == 1:
        raise BadInput(
            f"--window {choice}: the encoder of {artifact.folder} takes its full window alone; export it with"
            f" --window {choice}"
        )
    return chosen


def step_samples(artifact: Artifact) -> int:
    """Samples of one position of a Whisper's encoder, which is a timestamp's step."""
    return round(artifact.speech.decoding.timestamp_step_s * artifact.sample_rate_hz)


def check_window_choice(choice: str, full_s: float = math.inf) -> str:
    """`choice` itself, where it could be one of a model of `full_s` seconds, or of some model.

    Raises:
        BadInput: it is neither "full" nor "auto" nor a number of seconds, or more of them than the model's own.
    """
    if choice not in (FULL, AUTO):
        try:
            known = math.isfinite(float(choice)) and TAIL_S < float(choice) <= full_s
        except ValueError:
            known = False
        if not known:
            most = "" if full_s == math.inf else f" (a tail of silence is part of it), up to the model's own {full_s:g}"
            raise BadInput(f"--window {choice}: expected full, auto, or seconds over {TAIL_S:g}{most}")
    return choice


def windows_text(windows: EncoderWindows, sample_rate_hz: int) -> str:
    """The windows in words."""
    shortest, full = (f"{length / sample_rate_hz:g}" for length in (windows.lengths[0], windows.full))
    if len(windows.lengths) == 1:
        return f"full ({full} s)"
    return f"auto ({shortest} to {full} s)" if windows.choice == AUTO else f"{windows.choice} s (else {full} s)"


def _whole_steps(seconds: float, sample_rate_hz: int, step_samples: int) -> int:
    return math.ceil(round(seconds * sample_rate_hz, 6) / step_samples) * step_samples


def window_tokens(decoding: Decoding, window_s: float | None = None) -> int:
    """How many tokens a window of so many seconds generates, in proportion to its length; None: the model's own."""
    wanted = round(TOKENS_PER_MINUTE * (decoding.window_s if window_s is None else window_s) / 60)
    most = decoding.positions - len(transcribe_prompt(decoding))
    return min(max(wanted, FEWEST_TOKENS), most)


def transcribe_prompt(decoding: Decoding) -> list[int]:
    """What a transcript without timestamps starts from: the model's task, and its language, English or its first."""
    prompt = [decoding.start]
    if decoding.multilingual:
        languages = decoding.languages
        prompt.append(languages.get(decoding.default_language or "en", next(iter(languages.values()))))
        if decoding.task_token is not None:
            prompt.append(decoding.task_token)
    if decoding.no_timestamps is not None:
        prompt.append(decoding.no_timestamps)
    return prompt
