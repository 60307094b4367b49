"""Segments as text, JSON, SRT or WebVTT, piece by piece: what is known of a talk can be read before it has ended.

A writer takes the segments and, where there is one, the tally that is added to as they come, which JSON ends with. Of
segments that have words with times, subtitles take them from the words, in lines that the writer is told of: so many
letters a line, a few lines a cue.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.transcript import Segment, Tally
from leanear.runtimes.speech.words import Word

MOST_LINES = 2
TRANSCRIPT_SCHEMA = "leanear-transcript-1"
SHORTEST_CUE_S = 0.001  # players refuse a cue that ends when it begins


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


def plain(segments: Iterable[Segment], _tally: Tally | None = None, _lines: Lines | None = None) -> Iterator[str]:
    """One line per segment, or per word where words have times: its times and its text."""
    for segment in segments:
        for timed in (segment,) if segment.words is None else segment.words:
            times = f"[{_clock(timed.start_s, '.', short=True)} --> {_clock(timed.end_s, '.', short=True)}]"
            yield f"{times}  {one_line(timed.text)}\n"


def words_alone(segments: Iterable[Segment], _tally: Tally | None = None, _lines: Lines | None = None) -> Iterator[str]:
    """One line per segment: its text."""
    for segment in segments:
        yield f"{one_line(segment.text)}\n"


def as_json(segments: Iterable[Segment], tally: Tally | None = None, _lines: Lines | None = None) -> Iterator[str]:
    """One JSON object: schema, the segments (one a line), the language, what the tally counted, and the whole text."""
    texts: list[str] = []
    language = None
    segments = _begun(segments)
    yield f'{{"schema": {json.dumps(TRANSCRIPT_SCHEMA)}, "segments": ['
    for number, segment in enumerate(segments):
        texts.append(segment.text)
        language = language or segment.language
        yield ("," if number else "") + "\n" + json.dumps(_known(segment), ensure_ascii=False, allow_nan=False)
    closing = {"language": language, **({} if tally is None else _counted(tally)), "text": "".join(texts).strip()}
    yield "],\n" + json.dumps(closing, ensure_ascii=False)[1:] + "\n"


def srt(segments: Iterable[Segment], _tally: Tally | None = None, lines: Lines | None = None) -> Iterator[str]:
    """SubRip: numbered cues; an arrow within the text becomes `->`, because it would be read as times."""
    for number, cue in enumerate(cues_of(segments, lines), start=1):
        yield f"{number}\n{_cue_times(cue, ',')}\n{cue.text.replace('-->', '->')}\n\n"


def vtt(segments: Iterable[Segment], _tally: Tally | None = None, lines: Lines | None = None) -> Iterator[str]:
    """WebVTT; `&`, `<` and `>` are escaped, as its text is markup."""
    segments = _begun(segments)
    yield "WEBVTT\n\n"
    for cue in cues_of(segments, lines):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_cue_times(cue, '.')}\n{text}\n\n"


WRITERS: Mapping[str, Callable[..., Iterator[str]]] = {
    "plain": plain,
    "txt": words_alone,
    "json": as_json,
    "srt": srt,
    "vtt": vtt,
}


def _known(segment: Segment) -> dict[str, object]:
    known = asdict(segment)
    if segment.words is None:
        del known["words"]
    return known


def _counted(tally: Tally) -> dict[str, object]:
    counted = {"decoded": tally.windows, "short": tally.short, "second_tries": tally.heard_again}
    counted["repeats_left_out"] = tally.repeats
    kept = None if tally.voice is None else {name: round(value, 3) for name, value in asdict(tally.voice).items()}
    return {"windows": {**counted, "second_tries_because": tally.second_tries}, "voice_activity": kept}


def _begun(segments: Iterable[Segment]) -> Iterable[Segment]:
    """The same segments, the first one asked for already: where there can be none at all, no opening is written."""
    rest = iter(segments)
    return chain(list(islice(rest, 1)), rest)


def _cue_times(cue: Cue, decimal: str) -> str:
    start_s = round(cue.start_s, 3)  # before it is compared: half a millisecond goes to the even one
    return f"{_clock(start_s, decimal)} --> {_clock(max(round(cue.end_s, 3), start_s + SHORTEST_CUE_S), decimal)}"


def _clock(seconds: float, decimal: str, short: bool = False) -> str:
    """`seconds` as 01:02:03.456, rounded to milliseconds; short: hundredths, and hours only where there are any."""
    units = 100 if short else 1000
    whole, part = divmod(round(seconds * units), units)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{minutes:02d}:{whole:02d}{decimal}{part:0{2 if short else 3}d}"
    return clock if short and hours == 0 else f"{hours:02d}:{clock}"
