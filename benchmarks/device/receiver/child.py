"""The one program that runs on the device at a time; it ends with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import Any

from leanear.benchmarks.device.receiver.wire import LINE_BYTES, Wire

END_PATIENCE_S = 5.0


class Child:
    """The one program that runs on the device at a time, in a process group of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._over = False

    def run(self, arguments: list[str], folder: str, environment: dict[str, str], wire: Wire) -> int:
        """The exit status of a program whose lines are sent as they come."""
        with self._lock:
            if self._over:
                return -signal.SIGTERM
            self._process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        readers = []
        for stream, name in ((self._process.stdout, "out"), (self._process.stderr, "err")):
            assert stream is not None
            readers.append(threading.Thread(target=forward, args=(stream, name, wire), daemon=True))
            readers[-1].start()
        status = self._process.wait()
        for reader in readers:
            reader.join(END_PATIENCE_S)
        self.end()  # what the program left behind in its group
        return status

    def end(self, for_good: bool = False) -> None:
        """End the program and all that it started; `for_good`: nothing is started any more."""
        with self._lock:
            self._over = self._over or for_good
            if self._process is None:
                return
            for number, patience_s in ((signal.SIGTERM, END_PATIENCE_S), (signal.SIGKILL, 0.0)):
                try:
                    os.killpg(self._process.pid, number)
                except (ProcessLookupError, PermissionError):
                    break
                wait_until_gone(self._process.pid, patience_s, self._process)
            self._process = None if self._process.poll() is not None else self._process


def wait_until_gone(group: int, limit_s: float, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process group is empty, `limit_s` at most."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        process.poll()  # so that the leader, once dead, is no longer a member
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.05)


def forward(stream: Any, name: str, wire: Wire) -> None:
    """Send a program's lines, each cut at LINE_BYTES / 4."""
    while True:
        line = stream.readline(LINE_BYTES // 4)
        if not line:
            return
        try:
            wire.say({"say": "line", "stream": name}, line)
        except OSError:
            return
