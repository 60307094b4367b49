"""One window of speech as it is measured: what it starts from, and how many tokens it generates."""

from __future__ import annotations

from leanear.runtimes.manifest import Decoding

TOKENS_PER_MINUTE = 200.0  # 100 tokens of a 30 s window: brisk speech in Whisper's English vocabulary
FEWEST_TOKENS = 4


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
