"""What one inference of a Whisper is where its milliseconds are a goal: a clip, its window, and tokens."""

from dataclasses import dataclass
from typing import Any

from leanear.export.whisper.graph import FRAMES_PER_POSITION
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import FULL, Decoding
from leanear.runtimes.speech.encoder_windows import choose_windows, transcribe_prompt, window_tokens

LONGEST_CLIP_S = 3600.0


@dataclass(frozen=True)
class SpeechWork:
    """clip_s: seconds of audio, None: the model's window; tokens: that are decoded, None: 200 a minute of the clip;
    window: which windows the encoder takes, "full", "auto" or seconds.
    """

    clip_s: float | None = None
    tokens: int | None = None
    window: str = FULL

    def __post_init__(self) -> None:
        if self.clip_s is not None and not 0.0 < self.clip_s <= LONGEST_CLIP_S:
            raise BadInput(f"--clip-seconds is {self.clip_s:g}; it must be above 0 and within the model's window")
        if self.tokens is not None and self.tokens < 2:
            raise BadInput(f"--tokens is {self.tokens}; at least 2 are decoded")


@dataclass(frozen=True)
class SizedWork:
    """The work of a given model: samples of the clip, of the window that holds it and of the full one, seconds of the
    clip, the tokens that the decoder starts from, and how many it generates; any_window: the encoder takes several.
    """

    clip_samples: int
    window_samples: int
    full_samples: int
    clip_s: float
    prompt: tuple[int, ...]
    tokens: int
    any_window: bool


def sized_work(work: SpeechWork, decoding: Decoding, extractor: Any) -> SizedWork:
    """The work of a model with these `decoding` settings, as a manifest has them, and this front end.

    Raises:
        BadInput: the clip is longer than the model's window, or its tokens are more than the decoder has positions.
    """
    rate_hz, full = int(extractor.sampling_rate), int(extractor.n_samples)
    windows = choose_windows(work.window, full, rate_hz, FRAMES_PER_POSITION * int(extractor.hop_length))
    clip_s = full / rate_hz if work.clip_s is None else work.clip_s
    samples = round(clip_s * rate_hz)
    if not 0 < samples <= full:
        raise BadInput(f"--clip-seconds {clip_s:g}: the model's window is {full / rate_hz:g} s")
    prompt = tuple(transcribe_prompt(decoding))
    most = decoding.positions - len(prompt)
    tokens = window_tokens(decoding, clip_s) if work.tokens is None else work.tokens
    if tokens > most:
        raise BadInput(f"--tokens {tokens}: behind the prompt the model's decoder has {most} positions")
    return SizedWork(samples, windows.holding(samples), full, clip_s, prompt, tokens, len(windows.lengths) > 1)
