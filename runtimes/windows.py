"""One window of speech as it is measured: what it starts from, and how many tokens it generates."""

from __future__ import annotations

from typing import Any

TOKENS_PER_MINUTE = 200.0  # 100 tokens of a 30 s window: brisk speech in Whisper's English vocabulary
FEWEST_TOKENS = 4


def window_tokens(decoding: dict[str, Any]) -> int:
    """How many tokens a window generates, in proportion to its length; decoding: as in a manifest."""
    wanted = round(TOKENS_PER_MINUTE * decoding["window_s"] / 60)
    most = decoding["positions"] - len(transcribe_prompt(decoding))
    return int(min(max(wanted, FEWEST_TOKENS), most))


def transcribe_prompt(decoding: dict[str, Any]) -> list[int]:
    """What a transcript without timestamps starts from: the model's task, and its language, English or its first."""
    prompt = [decoding["start"]]
    if decoding["multilingual"]:
        languages = decoding["languages"]
        prompt.append(languages.get(decoding["default_language"] or "en", next(iter(languages.values()))))
        prompt.append(decoding[decoding.get("default_task", "transcribe")])
    if decoding["no_timestamps"] is not None:
        prompt.append(decoding["no_timestamps"])
    return [int(token) for token in prompt]
