"""Standard output and error that take any text, whatever encoding the terminal, the locale or a pipe has."""

from __future__ import annotations

import codecs
import io
import json
import sys
from typing import Tuple, Union

# How our own signs are written where there is nothing but ASCII, or an old code page.
PLAIN = {"×": "x", "−": "-", "–": "-", "→": "->", "±": "+-", "‖": "||", "…": "..."}
ERRORS = "leanear-plain"
LOW_SURROGATES = range(0xDC80, 0xDD00)  # how Python holds bytes of a file's name that are no text


def take_any_text() -> None:
    """From now on nothing that is written to standard output or error is an error because of its letters."""
    codecs.register_error(ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _plain(error: UnicodeError) -> Tuple[Union[str, bytes], int]:
    """One letter that the encoding lacks: as in PLAIN, as the byte that it stands for, or by its number as in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if ord(letter) in LOW_SURROGATES:
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return PLAIN.get(letter) or json.dumps(letter)[1:-1], error.start + 1
