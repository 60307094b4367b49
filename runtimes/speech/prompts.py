"""What the decoder is shown before it writes: a prompt in front of the first words, hot words in front of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.tokens.text_tokens import text_tokens
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Prompts:
    """Tokens that are shown as if they had been said before.

    first: until something was said; every: in front of every window; most: how many tokens a window is shown, the
    start of earlier text not counted.
    """

    first: tuple[int, ...]
    every: tuple[int, ...]
    most: int

    def shown(self, before: Sequence[int]) -> list[int]:
        """What a window is shown: the words for every window, and the latest of `before` that there is room for."""
        room = self.most - len(self.every)
        return [*self.every, *(before[-room:] if room else ())]


def read_prompts(vocabulary: Vocabulary, tokens: Decoding, options: DecodeOptions) -> Prompts:
    """The tokens of `options.prompt` and `options.hotwords`, each after a space, as Whisper's are.

    Raises:
        BadInput: the model has no token to show earlier text with, or the texts are longer than it can be shown.
    """
    most = max(tokens.positions // 2 - 1, 0)
    texts = {"prompt": options.prompt.strip(), "hotwords": ", ".join(options.hotwords)}
    shown = {}
    for what, text in texts.items():
        if text and tokens.previous is None:
            raise BadInput(f"{what}: this model has no token to show earlier text with")
        shown[what] = text_tokens(vocabulary, f" {text}", what) if text else ()
        if len(shown[what]) > most:
            raise BadInput(f"{what}: {len(shown[what])} tokens; this model can be shown {most}")
    if len(shown["prompt"]) + len(shown["hotwords"]) > most:
        counts = " and ".join(str(len(each)) for each in shown.values())
        raise BadInput(f"prompt and hotwords: {counts} tokens; this model can be shown {most}")
    return Prompts(shown["prompt"], shown["hotwords"], most)


def hotwords_of(text: str | None) -> tuple[str, ...]:
    """The words in a text with commas between them, None: no words.

    Raises:
        BadInput: there is none in it.
    """
    words = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    if text is not None and not words:
        raise BadInput(f"--hotwords is {text!r}; words with commas between are wanted")
    return words
