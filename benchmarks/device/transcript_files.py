"""One or several recordings: the files that are meant, where the transcript of each goes, and which are no use."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence, TypeVar

from leanear.runtimes.audio.piped_audio import STANDARD_INPUT
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.files import write_text
from leanear.runtimes.process.notes import files_below, note, plural
from leanear.runtimes.speech.subtitles import WRITERS, Lines
from leanear.runtimes.speech.transcript import Segment, Tally

Given = TypeVar("Given")
Made = TypeVar("Made")
PLAIN, TEXT = "plain", "txt"  # with times, to be looked at, and without
FORMATS = (TEXT, "srt", "vtt", "json")  # that files have, and are named by

Heard = Callable[[Path, Tally], Iterator[Segment]]
"""Gives the segments of a recording as they are found, and adds to the tally."""

Say = Callable[[str], None]
"""Takes one line for standard error."""


def clips_in(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or a folder's files of these suffixes, those in sub-folders too, in the order of their names.

    Raises:
        BadInput: a folder has none; of other files it is noted how many there are.
    """
    if not path.is_dir():
        return [path]
    files = [file for file in files_below(path) if file.is_file() and not file.name.startswith(".")]
    clips = [file for file in files if file.suffix.lower() in suffixes]
    if not clips:
        raise BadInput(f"{path}: no {', '.join(suffixes)} files in it")
    if len(clips) < len(files):
        note(f"{path}: files of other kinds are passed over: {len(files) - len(clips)}")
    return clips


def each_usable(
    given: Sequence[Given], work: Callable[[Given], Made], noun: str, done: str, *, several: bool
) -> Iterator[tuple[Given, Made]]:
    """Each that `work` can be done to, with what that gave; of several, one that cannot is a line on standard error.

    noun, done: what they are and what is done to them, as in "clip", "classified".

    Raises:
        LeanearError: the one is not usable; or, after all of several, how many of them were not.
    """
    refused = 0
    for each in given:
        try:
            made = work(each)
        except (BadInput, MeasurementFailed) as error:
            if not several:
                raise
            print(f"leanear: {error}", file=sys.stderr, flush=True)
            refused += 1
        else:
            yield each, made
    if refused:
        were = "was" if refused == 1 else "were"
        raise BadInput(f"{refused} of {plural(len(given), noun)} {were} not {done}")


@dataclass(frozen=True)
class Recorded:
    """A recording, and where its transcript goes in each form (names of WRITERS): nowhere, to print it."""

    audio: Path
    outputs: Mapping[str, Path]


def forms_of(formats: Sequence[str], folder: Path | None) -> list[str]:
    """The names of WRITERS for the formats asked for; folder: where transcripts go, None: they are printed."""
    return list(dict.fromkeys(formats)) or [PLAIN if folder is None else TEXT]


def recordings_of(
    given: Sequence[Path], suffixes: Sequence[str], forms: Sequence[str], folder: Path | None
) -> list[Recorded]:
    """The recordings of files and folders (see `clips_in`), and where in `folder` their transcripts go.

    A file's transcript has its name; those of a folder's files keep their sub-folders.

    Of several, a file that is not there is told when its turn comes, as one that cannot be heard.

    Raises:
        BadInput: the one file is not there, a folder has no audio, two transcripts would have the same name, or as
            `check_forms`.
    """
    check_forms(given, forms, folder)
    recordings: list[Recorded] = []
    owners: dict[Path, Path] = {}
    for path in given:
        for audio in [path] if path == STANDARD_INPUT else clips_in(path, suffixes):
            if audio != STANDARD_INPUT and not is_several(given) and not audio.is_file():
                raise BadInput(f"{audio}: no such file")
            name = Path("stdin") if audio == STANDARD_INPUT else Path(audio.name).with_suffix("")
            name = audio.relative_to(path).with_suffix("") if path.is_dir() else name
            if folder is not None and owners.setdefault(name, audio) != audio:
                raise BadInput(f"{audio}: its transcript would have the name of that of {owners[name]}; rename one")
            outputs = {} if folder is None else {form: folder / f"{name}.{form}" for form in forms}
            recordings.append(Recorded(audio, outputs))
    return recordings


def check_forms(given: Sequence[Path], forms: Sequence[str], folder: Path | None) -> None:
    """Nothing, where so many transcripts can be given in these forms, names of WRITERS.

    Raises:
        BadInput: several forms of one output, or several recordings in a form that holds one.
    """
    if folder is None and len(forms) > 1:
        raise BadInput(f"--output-format {forms[0]} and {forms[1]}: choose one, or name an --output-dir")
    if STANDARD_INPUT in given and len(given) > 1:
        raise BadInput("-: standard input is one recording; give no others beside it")
    if folder is None and is_several(given) and forms[0] not in (PLAIN, TEXT):
        raise BadInput(f"--output-format {forms[0]} of several recordings: say where with --output-dir")


def is_several(given: Sequence[Path]) -> bool:
    """Whether there may be more than one recording, whose names are told beside their words."""
    return len(given) > 1 or given[0].is_dir()


def write_transcripts(
    recordings: Sequence[Recorded],
    heard: Heard,
    forms: Sequence[str],
    say: Say,
    lines: Lines | None = None,
    *,
    several: bool,
) -> None:
    """Write or print the transcript of each recording, one after the other.

    forms: names of WRITERS; what is printed is in the first. say: takes what the tallies count and where transcripts
    were written; which of several recordings is not usable goes to standard error. lines: of subtitles.

    Raises:
        LeanearError: as `each_usable`.
    """

    def transcribed(recorded: Recorded) -> Tally:
        tally = Tally()
        segments = _counted(heard(recorded.audio, tally), tally)
        if recorded.outputs:
            _write(list(segments), recorded.outputs, tally, lines)
        else:
            _print(segments, forms[0], tally, lines, recorded.audio if several else None)
        return tally

    for recorded, tally in each_usable(recordings, transcribed, "recording", "transcribed", several=several):
        for path in recorded.outputs.values() if several else ():
            say(str(path))
        nothing = "" if tally.segments else f"no words were found{tally.taken_for}"
        if said := "; ".join(filter(None, (tally.sentence, nothing))):
            say(f"{recorded.audio}: {said}" if several else said)


def _counted(segments: Iterator[Segment], tally: Tally) -> Iterator[Segment]:
    for segment in segments:
        tally.segments += bool(segment.text.strip())
        yield segment


def _print(segments: Iterator[Segment], form: str, tally: Tally, lines: Lines | None, name: Path | None) -> None:
    head = "" if name is None else f"{name}\n"
    for piece in WRITERS[form](segments, tally, lines):
        sys.stdout.write(head + piece)
        sys.stdout.flush()
        head = ""
    sys.stdout.write(head)


def _write(segments: Sequence[Segment], outputs: Mapping[str, Path], tally: Tally, lines: Lines | None) -> None:
    for form, path in outputs.items():
        write_text(path, "".join(WRITERS[form](segments, tally, lines)))
