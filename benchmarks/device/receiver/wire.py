"""Frames over two pipes: one line of JSON, then as many bytes as its "bytes" says; silence ends it."""

from __future__ import annotations

import json
import os
import select
import threading
from typing import Any, BinaryIO

Frame = dict[str, Any]
HOST_SILENCE_LIMIT_S = 120.0
TURN_S = 1.0
BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 16
MOST_FRAME_BYTES = 16 << 20


class Refusal(Exception):
    """Why something was not done: a status that the workstation knows, and one line."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Wire:
    """Frames over two pipes; written by several threads, read by one."""

    def __init__(self, source: int, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._lock = threading.Lock()
        self._buffer = b""

    def say(self, frame: Frame, payload: bytes = b"") -> None:
        """Send one frame."""
        line = json.dumps({**frame, "bytes": len(payload)}).encode("ascii") + b"\n"
        with self._lock:
            self._sink.write(line + payload)
            self._sink.flush()

    def hear(self) -> tuple[Frame, bytes] | None:
        """The next frame and its bytes, or None when the workstation is gone or silent."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > LINE_BYTES or not self._more():
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        frame = json.loads(line)
        size = int(frame.get("bytes", 0))
        if not 0 <= size <= MOST_FRAME_BYTES:
            return None
        while len(self._buffer) < size:
            if not self._more():
                return None
        payload, self._buffer = self._buffer[:size], self._buffer[size:]
        return frame, payload

    def _more(self) -> bool:
        """Whether more arrived. A device that was asleep or stopped itself has not waited, so turns are counted."""
        for _ in range(max(1, round(HOST_SILENCE_LIMIT_S / TURN_S))):
            ready, _, _ = select.select([self._source], [], [], min(TURN_S, HOST_SILENCE_LIMIT_S))
            if ready:
                block = os.read(self._source, BLOCK_BYTES)
                self._buffer += block
                return bool(block)
        return False
