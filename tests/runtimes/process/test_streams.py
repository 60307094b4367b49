"""Any text goes to any output: in ASCII, in an old code page, and where a name is no text at all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SAY = """
import sys
from leanear.runtimes.process.notes import take_any_text

take_any_text()
print({text!r})
print({text!r}, file=sys.stderr)
"""


def said(text: str, encoding: str) -> tuple[bytes, bytes]:
    code = SAY.format(text=text)
    command = [sys.executable, "-X", "utf8=0", "-c", code]
    ended = subprocess.run(command, env={"PYTHONIOENCODING": encoding, "PYTHONPATH": "."}, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.rstrip(b"\n"), ended.stderr.rstrip(b"\n")


@pytest.mark.parametrize(
    ("text", "encoding", "written"),
    [
        ("1.20× faster, −3 → 2 ± 1", "ascii", b"1.20x faster, -3 -> 2 +- 1"),
        ("Hörbuch", "ascii", b"H\\u00f6rbuch"),
        ("Hörbuch", "latin-1", b"H\xf6rbuch"),
        ("Hörbuch 1.20×, −3", "latin-1", b"H\xf6rbuch 1.20\xd7, -3"),
        ("今日は", "cp1252", b"\\u4eca\\u65e5\\u306f"),
        ("1.20× → 2", "utf-8", "1.20× → 2".encode()),
        ("name\udcff.wav", "utf-8", b"name\xff.wav"),
        ("name\udcff.wav×", "ascii", b"name\xff.wavx"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_another_way(text, encoding, written):
    assert said(text, encoding) == (written, written)


def test_json_stays_json():
    text = json.dumps({"text": "“ça” 😀 1×2"}, ensure_ascii=False)
    out, _ = said(text, "ascii")
    assert json.loads(out.decode("ascii")) == {"text": "“ça” 😀 1x2"}
