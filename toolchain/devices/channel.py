"""Frames to and from a device's Python through the user's ssh, which never block this side.

The program at the other end, `leanear.benchmarks.device.receiver`, is sent first. A device that is silent is given up.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanear.benchmarks.device.bundled import RUNNER_FILE
from leanear.benchmarks.device.receiver.serve import GREETING
from leanear.benchmarks.measure.processes import PROGRESS_MARK, PROGRESS_VARIABLE
from leanear.devices.ssh import STATUSES, Stop, explain_failure, plain, receiver_program, ssh_command
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file, sha256_file

BOOTSTRAP = (
    "import sys; sys.version_info < (3, 9) and sys.exit("
    '"leanear: this is Python %d.%d; leanear needs Python 3.9 or later on the device" % sys.version_info[:2]); '
    'b = sys.stdin.buffer; exec(compile(b.read(int(b.readline())), "leanear-receiver", "exec"))'
)
CHUNK_BYTES = 1 << 18
MOST_NOISE_BYTES = 1 << 20
MOST_FRAME_BYTES = 4 << 20
MOST_RESULTS_BYTES = 1 << 28
MOST_OUTPUT_CHARACTERS = 1 << 24
ALIVE_EVERY_S = 10.0
LONGEST_STEP_S = 5.0  # a longer one is this machine's own pause: a lid that was closed, a process that was stopped
PATIENCE_WITH_PEOPLE = 5  # times as long may it take to connect where ssh can ask for a password


@dataclass(frozen=True)
class RemoteOptions:
    """How a device is reached.

    python: the Python to run there; folder: where leanear keeps things there; batch: nothing is asked on a terminal
    (None: unless there is one). A device that has not greeted after `connect_limit_s`, has sent no sign of life for
    `silence_limit_s`, or none of progress for `standstill_limit_s`, is given up.
    """

    python: str = "python3"
    folder: str = "~/.leanear"
    batch: bool | None = None
    connect_limit_s: float = 60.0
    silence_limit_s: float = 60.0
    standstill_limit_s: float = 7200.0  # an engine may be built for long without a word


@contextlib.contextmanager
def connection(host: str, options: RemoteOptions, log: deque[str], stop: threading.Event) -> Iterator[Channel]:
    """A channel to the device's Python; ssh is ended with the block. log: gets the lines that it and ssh write."""
    batch = not has_terminal() if options.batch is None else options.batch
    command = ssh_command(host, options.python, BOOTSTRAP, batch=batch)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except FileNotFoundError:
        raise BadInput(f"{command[0]}: there is no such program; install an OpenSSH client") from None
    channel = Channel(process, options, batch, log, stop)
    try:
        yield channel
    finally:
        channel.close()


def has_terminal() -> bool:
    """Whether ssh can ask the user for something."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return os.isatty(2)


class Patience:
    """Seconds in which this process could have listened; while it was stopped itself, nobody else was silent."""

    def __init__(self) -> None:
        self._seconds, self._looked = 0.0, time.monotonic()

    def now(self) -> float:
        """The seconds so far; to be asked at least every LONGEST_STEP_S."""
        moment = time.monotonic()
        self._seconds += min(moment - self._looked, LONGEST_STEP_S)
        self._looked = moment
        return self._seconds


class Channel:
    """Frames to and from the receiver through one ssh process, which never blocks us: a silent device is given up."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        options: RemoteOptions,
        batch: bool,
        log: deque[str],
        stop: threading.Event,
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._options, self._batch, self._log, self._stop = process, options, batch, log, stop
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        self._pending = bytearray()
        self._heard = bytearray()
        self._said = bytearray()
        self._frames: deque[tuple[dict[str, Any], bytes]] = deque()
        self._greeted = False
        self._errors: list[str] = []
        self._patience = Patience()
        self._last_heard = self._last_sent = self._last_progress = self._patience.now()
        self._selector = selectors.DefaultSelector()
        for stream, events in (
            (self._in, selectors.EVENT_WRITE),
            (self._out, selectors.EVENT_READ),
            (self._err, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, events)
        self._selector.unregister(self._in)

    def greet(self) -> dict[str, Any]:
        """Send the receiver; what it says first. Whatever a login shell prints before that is passed over."""
        program = receiver_program().encode()
        self._queue(f"{len(program)}\n".encode() + program)
        limit_s = self._options.connect_limit_s * (1 if self._batch else PATIENCE_WITH_PEOPLE)
        deadline = self._patience.now() + limit_s
        while not self._frames:
            if self._patience.now() > deadline:
                raise Stop("no answer", f"the device did not answer within {limit_s:g} s{self._last_said()}")
            self._turn(min(1.0, max(deadline - self._patience.now(), 0.0) + 0.01))
            if len(self._heard) > MOST_NOISE_BYTES:
                raise Stop("failed", "the device's login shell prints without end")
        frame, _ = self._frames.popleft()
        return frame

    def send(self, frame: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame; returns when little of it is left to be sent.

        Raises:
            Stop: the device refused what it is being sent, or is gone.
        """
        self._queue(json.dumps({**frame, "bytes": len(payload)}).encode("ascii") + b"\n" + payload)
        while len(self._pending) > CHUNK_BYTES:
            self._turn(1.0)
            self._watch()
        self._progressed()
        for heard, _ in self._frames:
            if heard["say"] == "refused":
                raise _refused(heard)

    def ask(self, frame: dict[str, Any], wanted: str, payload: bytes = b"") -> dict[str, Any]:
        """The answer to one frame."""
        self.send(frame, payload)
        return self.answer(wanted)

    def answer(self, *wanted: str) -> dict[str, Any]:
        """The next frame, which says one of `wanted`."""
        return self._answer(*wanted)[0]

    def run(self, arguments: list[str], progress: Report = quiet) -> tuple[int, str]:
        """Exit status and standard output of the bundle's runner; its progress is passed on, its log kept."""
        self._errors = []
        self.send(
            {"verb": "run", "runner": RUNNER_FILE, "arguments": arguments, "environment": {PROGRESS_VARIABLE: "1"}}
        )
        out: list[str] = []
        heard = 0
        while True:
            frame, payload = self._answer("line", "ended")
            if frame["say"] == "ended":
                return whole_number(frame, "status", -256, 255), "".join(out)
            text = payload.decode("utf-8", "replace")
            mark, _, rest = text.partition(" ")
            if mark == PROGRESS_MARK:
                fraction, _, said = rest.partition(" ")
                with contextlib.suppress(ValueError):
                    progress(plain(said), min(max(float(fraction), 0.0), 1.0))
                continue
            if frame.get("stream") == "out":
                out.append(text)
                heard += len(text)
                if heard > MOST_OUTPUT_CHARACTERS:
                    raise Stop("failed", f"{arguments[0]} prints without end")
            else:
                self._errors.append(plain(text))
            if "--json" not in arguments:
                self._log.append(plain(text))

    def last_error(self) -> str:
        """The last line that the runner wrote to standard error."""
        return self._errors[-1].removeprefix("leanear: ") if self._errors else ""

    def fetch(self, path: str, target: Path) -> bool:
        """Write a file of the device's to `target`, whole and verified; False where the device has no such file."""
        self.send({"verb": "fetch", "path": path})
        frame = self.answer("content", "absent")
        if frame["say"] == "absent":
            return False
        size, got = whole_number(frame, "size", 0, MOST_RESULTS_BYTES), 0
        with replaced_file(target) as part:
            with open(part, "wb") as stream:
                while got < size:
                    _, payload = self._answer("chunk")
                    stream.write(payload)
                    got += len(payload)
            if got != size or sha256_file(part) != frame.get("sha256"):
                raise Stop("damaged", f"{path}: it arrived with another sha256 than it was sent with")
        return True

    def close(self) -> None:
        """End ssh; the receiver ends when its input does."""
        self._selector.close()
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._err.close()

    def _answer(self, *wanted: str) -> tuple[dict[str, Any], bytes]:
        while not self._frames:
            self._turn(1.0)
            self._watch()
        frame, payload = self._frames.popleft()
        self._progressed()
        if frame["say"] == "refused":
            raise _refused(frame)
        if frame["say"] not in wanted:
            raise Stop("failed", f"the device said {plain(str(frame['say']))!r} where {' or '.join(wanted)} was wanted")
        return frame, payload

    def _progressed(self) -> None:
        self._last_progress = self._patience.now()

    def _watch(self) -> None:
        """Gives up on a device that is silent, or alive but at a standstill."""
        now = self._patience.now()
        if now - self._last_heard > self._options.silence_limit_s:
            raise Stop("stalled", f"no sign of life from the device for {self._options.silence_limit_s:g} s")
        if now - self._last_progress > self._options.standstill_limit_s:
            raise Stop("stalled", f"the device has done nothing for {self._options.standstill_limit_s:g} s")

    def _queue(self, data: bytes) -> None:
        if not self._pending:
            self._selector.register(self._in, selectors.EVENT_WRITE)
        self._pending += data

    def _turn(self, limit_s: float) -> None:
        """Write and read what can be written and read now, waiting `limit_s` at most for the first of it."""
        if self._stop.is_set():
            raise Stop("interrupted", "it was interrupted here; the same command goes on from there")
        if self._greeted and not self._pending and self._patience.now() - self._last_sent > ALIVE_EVERY_S:
            self._queue(b'{"verb": "alive", "bytes": 0}\n')
        over = False
        for key, _ in self._selector.select(limit_s):
            if key.fileobj is self._in:
                self._write()
            elif key.fileobj is self._out:
                over = not self._read(self._out, self._heard) or over
            elif not self._read(self._err, self._said):
                self._selector.unregister(self._err)
        self._take_frames()
        if over and not self._frames:
            self._over()

    def _write(self) -> None:
        try:
            written = os.write(self._in.fileno(), self._pending[: 1 << 16])
        except BlockingIOError:
            return
        except BrokenPipeError:  # the end of standard output says it
            written = len(self._pending)
        del self._pending[:written]
        self._last_sent = self._patience.now()
        if not self._pending:
            self._selector.unregister(self._in)

    def _read(self, stream: Any, buffer: bytearray) -> bool:
        try:
            block = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        buffer += block
        if buffer is self._said and len(buffer) > 4 * MOST_NOISE_BYTES:
            del buffer[:-MOST_NOISE_BYTES]
        self._last_heard = self._patience.now()
        return bool(block)

    def _take_frames(self) -> None:
        """Move whole frames from what was read to the queue; before the greeting, whatever is none is dropped."""
        while b"\n" in self._heard:
            end = self._heard.index(b"\n")
            frame = _frame(bytes(self._heard[:end]))
            if not self._greeted:
                self._greeted = frame is not None and frame.get("say") == GREETING
                del self._heard[: end + 1]
                if frame is not None and self._greeted:
                    self._frames.append((frame, b""))
                continue
            if frame is None:
                raise Stop("failed", "the device said something that is no frame")
            if len(self._heard) < end + 1 + frame["bytes"]:
                return
            payload = bytes(self._heard[end + 1 : end + 1 + frame["bytes"]])
            del self._heard[: end + 1 + frame["bytes"]]
            if frame["say"] != "alive":
                self._frames.append((frame, payload))

    def _over(self) -> None:
        """Standard output has ended: say why."""
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            status = None
        while True:
            with contextlib.suppress(BlockingIOError, OSError):
                block = os.read(self._err.fileno(), 1 << 16)
                if block:
                    self._said += block
                    continue
            break
        said = self._said.decode("utf-8", "replace")
        for line in said.splitlines():
            if line.strip():
                self._log.append(plain(line))
        if self._greeted:
            last = self._last_said()
            raise Stop(
                "connection lost",
                f"the connection to the device ended{last}; run the same command again, it goes on from there",
            )
        failure = explain_failure(-1 if status is None else status, said, self._options.python, self._batch)
        raise Stop(failure.status, plain(failure.reason))

    def _last_said(self) -> str:
        lines = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        return f" ({plain(lines[-1])})" if lines else ""


def _frame(line: bytes) -> dict[str, Any] | None:
    """The frame in a line, if it is one."""
    try:
        frame = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(frame, dict) or not isinstance(frame.get("say"), str):
        return None
    size = frame.get("bytes")
    return frame if isinstance(size, int) and 0 <= size <= MOST_FRAME_BYTES else None


def whole_number(values: dict[str, Any], key: str, least: int, most: int) -> int:
    """What a device says under `key`.

    Raises:
        Stop: it is no whole number, or beyond `least` or `most`.
    """
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Stop("failed", plain(f"the device said {value!r} for {key}"))
    return value


def _refused(frame: dict[str, Any]) -> Stop:
    status = str(frame.get("status"))
    return Stop(status if status in STATUSES else "failed", plain(str(frame.get("reason"))))
