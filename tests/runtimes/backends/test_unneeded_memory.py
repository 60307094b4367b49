"""Pages of mapped files and freed heap that are given back."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from leanear.runtimes.backends.unneeded_memory import give_back_memory, give_back_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system has no /proc")


def own_bytes() -> int:
    """Of this process's memory, what no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def resident_bytes(path: Path) -> int:
    """By the system's own account of this process's mappings."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "-" in fields[0]:
            inside = len(fields) == 6 and fields[5] == str(path)
        elif inside and fields[0] == "Rss:":
            found += 1024 * int(fields[1])
    return found


def test_pages_are_given_back_and_read_again(tmp_path):
    path, content = tmp_path / "weights.bin", bytes(range(256)) * 4096
    path.write_bytes(content)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident_bytes(path) == len(content)
        assert give_back_pages(tmp_path) == len(content)
        assert resident_bytes(path) == 0
        assert mapped[:] == content


def test_what_may_be_written_to_or_lies_elsewhere_stays(tmp_path):
    path, content = tmp_path / "here" / "weights.bin", b"x" * 8192
    path.parent.mkdir()
    path.write_bytes(content)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"mine"
        assert give_back_pages(tmp_path / "here") == give_back_pages(tmp_path / "elsewhere") == 0
        assert mapped[:5] == b"minex"


def test_freed_heap_is_given_back(tmp_path):
    """Pieces under the size that the C library maps one by one stay in its heap when they are freed."""
    give_back_memory(tmp_path, tmp_path)  # what earlier tests freed, which would be taken again
    before = own_bytes()
    pieces = [np.ones(8_000) for _ in range(1_000)]
    del pieces[:-1]  # the last one keeps the heap's top where it is
    assert own_bytes() > before + 30e6
    give_back_memory(tmp_path, tmp_path)
    assert own_bytes() < before + 10e6
    assert pieces[0].sum() == 8_000
