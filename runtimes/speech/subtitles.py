"""Segments as text, JSON, SRT or WebVTT, piece by piece: what is known of a talk can be read before it has ended.

A writer takes the segments and, where there is one, the tally that is added to as they come, which JSON ends with. Of
segments that have words with times, subtitles take them from the words, in lines that the writer is told of.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain, islice
from typing import Callable, Iterable, Iterator, Mapping

from leanear.runtimes.speech.cues import Cue, Lines, cues_of, one_line
from leanear.runtimes.speech.transcript import Segment, Tally

TRANSCRIPT_SCHEMA = "leanear-transcript-1"
SHORTEST_CUE_S = 0.001  # players refuse a cue that ends when it begins


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
