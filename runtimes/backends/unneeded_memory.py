"""Memory that a library holds and does not need, given back to the system: pages of mapped files, freed heap.

A runtime that has arranged a graph's weights in memory of its own may keep the file mapped that they came from, and
what it has read of it counts as memory of the process. Pages that are given back are read again where they are needed.
So does its own code that read and arranged the graph. What it allocated on the way and freed stays with the C library
until that is asked for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
DONT_NEED = 4  # MADV_DONTNEED, linux/mman.h
# How mappings are described: of data, and of code. Other read-only pages of a library were written to as it was loaded.
DATA, CODE = "r--", "r-x"


def give_back_memory(data: Path, code: Path) -> None:
    """Give back pages of files in the folder `data`, of libraries' code in `code`, and what is free of the heap."""
    give_back_pages(data, DATA)
    give_back_pages(code, CODE)
    give_back_heap()


def give_back_heap() -> None:
    """Give back what is free of the heap, between what is not as well."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:  # glibc has it
        trim(0)


def give_back_pages(folder: Path, access: str = DATA) -> int:
    """Bytes of mappings of the files in `folder` whose pages were given back; 0 where the system is another.

    access: DATA, of files that nobody has written to since they were mapped, or CODE. The system then drops copies of
    what is in the files, and nothing else.
    """
    if not sys.platform.startswith("linux") or not MAPS.is_file():
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    inside, given = os.fspath(folder.resolve()) + os.sep, 0
    lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    for fields in (line.split(maxsplit=5) for line in lines if inside in line):
        if fields[1].startswith(access) and fields[5].startswith(inside):
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            if advise(begin, end - begin, DONT_NEED) == 0:
                given += end - begin
    return given
