"""Bytes from a pipe, read on while others are worked on: a recorder does not wait, it drops what nobody takes."""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

from leanear.runtimes.errors import BadInput

NAME, STANDARD_INPUT = "standard input", Path("-")
BLOCK_BYTES = 2**14
MOST_BLOCKS = 256  # 4 MB: two minutes of 16-bit audio at 16 kHz


class PipeReader:
    """What comes through a file descriptor, in order.

    A thread takes it as it comes, and waits while MOST_BLOCKS are not yet asked for; so does whoever writes, then.

    Raises:
        BadInput: it is a terminal.
    """

    def __init__(self, descriptor: int) -> None:
        if os.isatty(descriptor):
            raise BadInput(
                f"{NAME}: a terminal; pipe audio into it, as in: arecord -f S16_LE -r 16000 -c 1 | leanear transcribe -"
            )
        self._blocks: queue.Queue[bytes | OSError] = queue.Queue(MOST_BLOCKS)
        self._rest, self._ended = b"", False
        threading.Thread(target=self._take, args=(descriptor,), daemon=True).start()

    def read(self, size: int) -> bytes:
        """The next bytes, fewer where the pipe was closed; waits for them.

        Raises:
            OSError: the system could not read.
        """
        parts, held = [self._rest], len(self._rest)
        while held < size and not self._ended:
            block = self._blocks.get()
            if isinstance(block, OSError):
                raise block
            self._ended = not block
            parts.append(block)
            held += len(block)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]

    def peek(self, size: int) -> bytes:
        """The next bytes, as `read` gives them, which stay to be read."""
        self._rest = self.read(size) + self._rest
        return self._rest[:size]

    def _take(self, descriptor: int) -> None:
        try:
            while True:
                block = os.read(descriptor, BLOCK_BYTES)
                self._blocks.put(block)
                if not block:
                    return
        except OSError as error:
            self._blocks.put(error)


def read_standard_input() -> PipeReader:
    """Standard input, read from now on: a recorder does not wait until a model is loaded.

    Raises:
        BadInput: there is none, or it is a terminal.
    """
    try:
        return PipeReader(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        raise BadInput(f"{NAME}: there is none") from None
