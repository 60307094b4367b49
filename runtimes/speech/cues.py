"""Subtitles' cues: whole segments or, of words with times, lines of so many letters, a few lines a cue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, Sequence

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.transcript import Segment
from leanear.runtimes.speech.words import Word

MOST_LINES = 2


@dataclass(frozen=True)
class Lines:
    """How wide lines may be, in letters, and how many a cue may have."""

    width: int
    count: int = MOST_LINES


@dataclass(frozen=True)
class Cue:
    """What is shown from one time to another; text: of one or more lines."""

    start_s: float
    end_s: float
    text: str


def chosen_lines(forms: Sequence[str], word_timestamps: bool, width: int | None, count: int | None) -> Lines | None:
    """The lines that a user asked for, None where there was nothing said of them; forms: of the transcript.

    Raises:
        BadInput: lines are for something that has none, or without times of words, or there is no room in them.
    """
    if word_timestamps and "txt" in forms:
        raise BadInput("--word-timestamps: --output-format txt is the text alone, without times; choose another")
    if width is None:
        if count is not None:
            raise BadInput("--max-line-count: lines are cut where --max-line-width says; give that, too")
        return None
    if not {"srt", "vtt"} & set(forms):
        raise BadInput("--max-line-width: it is for the formats srt and vtt")
    if not word_timestamps:
        raise BadInput("--max-line-width: a cut line needs to know when its words are said; add --word-timestamps")
    for flag, number in (("--max-line-width", width), ("--max-line-count", count)):
        if number is not None and number < 1:
            raise BadInput(f"{flag}: {number} is not a positive whole number")
    return Lines(width) if count is None else Lines(width, count)


def cues_of(segments: Iterable[Segment], lines: Lines | None) -> Iterator[Cue]:
    """The cues of segments, as these come: one each, or as many as it takes in such lines.

    A cue ends with its segment; a word that is wider than a line has one of its own. Of no letters there is no cue.
    """
    for segment in segments:
        if not one_line(segment.text).strip("\u200c\u200d"):
            continue
        if not segment.words:
            yield Cue(segment.start_s, segment.end_s, one_line(segment.text))
        elif lines is None:
            yield _cue([segment.words])
        else:
            broken = list(_in_lines(segment.words, lines.width))
            for first in range(0, len(broken), lines.count):
                yield _cue(broken[first : first + lines.count])


def _in_lines(words: Sequence[Word], width: int) -> Iterator[list[Word]]:
    line: list[Word] = []
    for word in words:
        if line and len(_text([*line, word])) > width:
            yield line
            line = []
        line.append(word)
    yield line


def _cue(lines: Sequence[Sequence[Word]]) -> Cue:
    return Cue(lines[0][0].start_s, lines[-1][-1].end_s, "\n".join(_text(line) for line in lines))


def _text(words: Sequence[Word]) -> str:
    return one_line("".join(word.text for word in words))


def one_line(text: str) -> str:
    """`text` without line breaks and other runs of white space, which would end a cue, and without control letters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable() or letter in "\u200c\u200d")
