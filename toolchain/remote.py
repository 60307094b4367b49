"""A bundle brought to a device over SSH, measured there, and its results brought home; or why not, as a status.

One connection does it all. A program that stays nowhere on the device (`benchmarks.receiver`) is sent first; it holds
the device's lock, takes what has changed, and runs the bundle's doctor, compile and bench. What arrived stays, so the
next run goes on where this one was cut short.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmarks.receiver
from benchmarks.bundled import BUNDLE_FILE, RUNNER_FILE, Bundle, read_bundle
from benchmarks.doctor import lacks, read_report
from benchmarks.processes import PROGRESS_MARK, PROGRESS_VARIABLE
from benchmarks.results import read_results
from runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable
from runtimes.files import replaced_file, sha256_file
from toolchain.bundle import device_folder_name
from toolchain.narration import Report, quiet
from toolchain.ssh import check_host, explain_failure, ssh_command

STATUSES = {
    "ok": "measured",
    # no connection
    "connection refused": "nothing listens at that address",
    "name unknown": "the name has no address",
    "unreachable": "no way to the address",
    "no answer": "the device did not answer in time",
    "host key changed": "it is not the device that was known by this name",
    "host key unknown": "its host key was never accepted",
    "authentication failed": "no key was accepted",
    "asks for a password": "no key was accepted, and there is no terminal to ask on",
    "ssh configuration": "the user's SSH configuration is not usable",
    "connection failed": "ssh says why",
    # a connection, but
    "no python": "there is no such Python",
    "python too old": "Python 3.9 or later is needed",
    "busy": "another deploy is at work there",
    "disk full": "there is no room",
    "not writable": "the device's folder cannot be written",
    "connection lost": "the device or the network went away",
    "stalled": "the device stopped talking",
    "damaged": "a file is not what its sha256 says",
    # all copied, but
    "no numpy": "numpy is missing",
    "runtime absent": "the runtime is missing",
    "compile failed": "ahead-of-time work failed",
    "measurement failed": "a part of the benchmark failed",
    "interrupted": "it was interrupted on this side",
    "failed": "anything else; the reason says what",
}
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
CLOCK_LIMIT_S = 120.0
LOG_LINES = 20
LINE_CHARACTERS = 500
COPIED, LOOKED, COMPILED = 0.3, 0.35, 0.4  # shares of the whole, for a progress bar


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
    standstill_limit_s: float = 1800.0


@dataclass(frozen=True)
class RemoteOutcome:
    """How one device's delivery ended.

    status: one of STATUSES; reason: one line, empty where the status is "ok"; log_tail: the last lines that the device
    or ssh wrote; results_path: the results here, also of a measurement that failed in parts; notes: what did not stop
    it but should be known; doctor: the device's facts and what it has and lacks.
    """

    host: str
    status: str
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    results_path: Path | None = None
    notes: tuple[str, ...] = ()
    doctor: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether there are results of which no part failed."""
        return self.status == "ok"


class _Stop(Exception):
    """The delivery ends here, with a status and one line."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class _Story:
    """What is known of a delivery so far, whatever ends it."""

    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    notes: list[str] = field(default_factory=list)
    doctor: dict[str, Any] | None = None
    results_path: Path | None = None


def deliver(
    host: str,
    bundle_folder: Path,
    results_folder: Path,
    options: RemoteOptions | None = None,
    progress: Report = quiet,
    clock: Callable[[], float] = time.time,
    stop: threading.Event | None = None,
) -> RemoteOutcome:
    """The outcome of bringing the bundle to `host`, measuring it there, and writing its results to `results_folder`.

    progress: called with a text and the share that is done. clock: this machine's time, in seconds since 1970.
    stop: the delivery ends soon after it is set.

    Raises:
        BadInput: `host` or an option is not usable at all.
        OSError: this machine's own disk failed.
    """
    check_host(host)
    options = options or RemoteOptions()
    story = _Story()
    try:
        try:
            bundle = read_bundle(bundle_folder)
        except BadInput as error:
            raise _Stop("damaged", str(error)) from None
        _deliver(host, bundle, results_folder, options, progress, clock, story, stop or threading.Event())
        status, reason = "ok", ""
    except _Stop as stop:
        status, reason = stop.status, " ".join(stop.reason.split())
    return RemoteOutcome(
        host=host,
        status=status,
        reason=reason,
        log_tail=tuple(story.log),
        results_path=story.results_path,
        notes=tuple(story.notes),
        doctor=story.doctor,
    )


def _deliver(
    host: str,
    bundle: Bundle,
    results_folder: Path,
    options: RemoteOptions,
    progress: Report,
    clock: Callable[[], float],
    story: _Story,
    stop: threading.Event,
) -> None:
    progress("connecting", 0.0)
    with _connection(host, options, story, stop) as channel:
        greeting = channel.greet()
        _compare_clocks(greeting, clock(), story)
        progress("looking at what is there", 0.01)
        _copy(channel, bundle, options, progress, story)
        _examine(channel, bundle, progress, story)
        _compile(channel, progress)
        _bench(channel, bundle, results_folder, progress, story)
        channel.ask({"verb": "bye"}, "bye")


def _compare_clocks(greeting: dict[str, Any], now: float, story: _Story) -> None:
    ahead_s = float(greeting.get("time", now)) - now
    if abs(ahead_s) > CLOCK_LIMIT_S:
        days, rest = divmod(round(abs(ahead_s)), 86400)
        length = (f"{days} day{'s' if days > 1 else ''} " if days else "") + f"{rest // 3600} h {rest % 3600 // 60} min"
        side = "ahead of" if ahead_s > 0 else "behind"
        story.notes.append(
            f"the device's clock is {length} {side} this machine's; the times of day in its results are its own, "
            "latencies are not affected"
        )


def _copy(channel: _Channel, bundle: Bundle, options: RemoteOptions, progress: Report, story: _Story) -> None:
    """Bring what is missing, and let the device put the bundle together."""
    files = bundle.document["files"]
    opened = channel.ask(
        {
            "verb": "open",
            "base": options.folder,
            "name": device_folder_name(bundle.document["name"]),
            "from": f"{getpass.getuser()}@{socket.gethostname()}",
        },
        "opened",
        json.dumps(files).encode(),
    )
    if opened.get("cut_short"):
        story.notes.append(
            f"the attempt before this one was cut short {_plain(str(opened['cut_short']))}; this one went on"
        )
    paths = {facts["sha256"]: bundle.folder / name for name, facts in files.items()}
    missing = {sha256: int(offset) for sha256, offset in opened["missing"].items() if sha256 in paths}
    total = sum(paths[sha256].stat().st_size - offset for sha256, offset in missing.items())
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(f"copying {done / 1e6:.1f} of {total / 1e6:.1f} MB", COPIED * min(done / max(total, 1), 1.0))

    for sha256, offset in sorted(missing.items(), key=lambda item: paths[item[0]].stat().st_size):
        if not _send_file(channel, paths[sha256], sha256, offset, count) and not _send_file(
            channel, paths[sha256], sha256, 0, count
        ):
            raise _Stop("damaged", f"{paths[sha256].name}: it arrived twice with another sha256 than it was sent with")
    channel.ask({"verb": "install", "document": BUNDLE_FILE}, "installed", (bundle.folder / BUNDLE_FILE).read_bytes())


def _send_file(channel: _Channel, path: Path, sha256: str, offset: int, count: Callable[[int], None]) -> bool:
    """Whether the device has the file now."""
    size = path.stat().st_size
    channel.send({"verb": "file", "sha256": sha256, "size": size, "offset": offset})
    with open(path, "rb") as stream:
        stream.seek(offset)
        while chunk := stream.read(CHUNK_BYTES):
            channel.send({"verb": "chunk"}, chunk)
            count(len(chunk))
    answer = channel.answer("have", "damaged")
    return bool(answer["say"] == "have")


def _examine(channel: _Channel, bundle: Bundle, progress: Report, story: _Story) -> None:
    """Ask the device's doctor; the first thing that is missing is the status."""
    progress("doctor", COPIED)
    status, out = channel.run(["doctor", "--json"])
    try:
        document = read_report(out)
    except BadInput as error:
        raise _Stop("failed", f"doctor ended with status {status}: {channel.last_error() or error}") from None
    story.doctor = document
    lacking = [finding["name"] for finding in document["findings"] if finding["ok"] is False]
    lines = lacks(document)
    for name, kind in (("numpy", "no numpy"), (bundle.runtime, "runtime absent")):
        if name in lacking:
            raise _Stop(kind, _plain("; ".join(lines)))
    if lacking or status != 0:
        raise _Stop("failed", _plain("; ".join(lines)) or f"doctor ended with status {status}: {channel.last_error()}")


def _compile(channel: _Channel, progress: Report) -> None:
    progress("compiling", LOOKED)
    status, _ = channel.run(["compile"])
    if status != 0:
        raise _Stop(_verdict(status, "compile failed", channel), channel.last_error() or _ended(status))


def _bench(channel: _Channel, bundle: Bundle, folder: Path, progress: Report, story: _Story) -> None:
    """Measure, and bring the results home, also those of a measurement that failed in parts."""
    name = f"{bundle.runtime}-{bundle.precision}.json"

    def forward(text: str, fraction: float | None = None) -> None:
        progress(text, COMPILED + (1 - COMPILED) * (fraction or 0.0))

    status, _ = channel.run(["bench", "--out", f"results/{name}"], forward)
    reason = "" if status == 0 else channel.last_error() or _ended(status)
    if status in (0, MeasurementFailed.exit_status):
        path = folder / name
        if channel.fetch(f"results/{name}", path):
            try:
                read_results(path)
            except BadInput as error:
                raise _Stop("damaged", f"the results that came back are not usable: {error}") from None
            story.results_path = path
        elif status == 0:
            raise _Stop("failed", "bench said that it was done, but there are no results")
    if status != 0:
        raise _Stop(_verdict(status, "measurement failed", channel), reason)


def _verdict(status: int, otherwise: str, channel: _Channel) -> str:
    """The status of a verb that ended with `status`."""
    said = channel.last_error()
    if status == RuntimeUnavailable.exit_status:
        return "runtime absent"
    if status == BadInput.exit_status and BUNDLE_FILE in said:
        return "damaged"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return "disk full"
    return otherwise


def _ended(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-status).name
        return f"it was ended by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    return f"it was ended by signal {-status}"


@contextlib.contextmanager
def _connection(host: str, options: RemoteOptions, story: _Story, stop: threading.Event) -> Iterator[_Channel]:
    """A channel to the device's Python; ssh is ended with the block."""
    batch = not has_terminal() if options.batch is None else options.batch
    command = ssh_command(host, options.python, BOOTSTRAP, batch=batch)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except FileNotFoundError:
        raise BadInput(f"{command[0]}: there is no such program; install an OpenSSH client") from None
    channel = _Channel(process, options, batch, story, stop)
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


class _Patience:
    """Seconds in which this process could have listened; while it was stopped itself, nobody else was silent."""

    def __init__(self) -> None:
        self._seconds, self._looked = 0.0, time.monotonic()

    def now(self) -> float:
        """The seconds so far; to be asked at least every LONGEST_STEP_S."""
        moment = time.monotonic()
        self._seconds += min(moment - self._looked, LONGEST_STEP_S)
        self._looked = moment
        return self._seconds


class _Channel:
    """Frames to and from the receiver through one ssh process, which never blocks us: a silent device is given up."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        options: RemoteOptions,
        batch: bool,
        story: _Story,
        stop: threading.Event,
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._options, self._batch, self._story, self._stop = process, options, batch, story, stop
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        self._pending = bytearray()
        self._heard = bytearray()
        self._said = bytearray()
        self._frames: deque[tuple[dict[str, Any], bytes]] = deque()
        self._greeted = False
        self._errors: list[str] = []
        self._patience = _Patience()
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
        program = Path(benchmarks.receiver.__file__).read_bytes()
        self._queue(f"{len(program)}\n".encode() + program)
        limit_s = self._options.connect_limit_s * (1 if self._batch else PATIENCE_WITH_PEOPLE)
        deadline = self._patience.now() + limit_s
        while not self._frames:
            if self._patience.now() > deadline:
                raise _Stop(
                    "no answer",
                    f"the device did not answer within {limit_s:g} s{self._last_said()}",
                )
            self._turn(min(1.0, max(deadline - self._patience.now(), 0.0) + 0.01))
            if len(self._heard) > MOST_NOISE_BYTES:
                raise _Stop("failed", "the device's login shell prints without end")
        frame, _ = self._frames.popleft()
        return frame

    def send(self, frame: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame; returns when little of it is left to be sent.

        Raises:
            _Stop: the device refused what it is being sent, or is gone.
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
                return int(frame["status"]), "".join(out)
            text = payload.decode("utf-8", "replace")
            mark, _, rest = text.partition(" ")
            if mark == PROGRESS_MARK:
                fraction, _, said = rest.partition(" ")
                with contextlib.suppress(ValueError):
                    progress(_plain(said), min(max(float(fraction), 0.0), 1.0))
                continue
            if frame.get("stream") == "out":
                out.append(text)
                heard += len(text)
                if heard > MOST_OUTPUT_CHARACTERS:
                    raise _Stop("failed", f"{arguments[0]} prints without end")
            else:
                self._errors.append(_plain(text))
            if "--json" not in arguments:
                self._story.log.append(_plain(text))

    def last_error(self) -> str:
        """The last line that the runner wrote to standard error."""
        return self._errors[-1].removeprefix("leanear: ") if self._errors else ""

    def fetch(self, path: str, target: Path) -> bool:
        """Write a file of the device's to `target`, whole and verified; False where the device has no such file."""
        self.send({"verb": "fetch", "path": path})
        frame = self.answer("content", "absent")
        if frame["say"] == "absent":
            return False
        size, got = int(frame["size"]), 0
        if not 0 <= size <= MOST_RESULTS_BYTES:
            raise _Stop("damaged", f"{path}: the device wants to send {size} bytes")
        with replaced_file(target) as part:
            with open(part, "wb") as stream:
                while got < size:
                    _, payload = self._answer("chunk")
                    stream.write(payload)
                    got += len(payload)
            if sha256_file(part) != frame["sha256"]:
                raise _Stop("damaged", f"{path}: it arrived with another sha256 than it was sent with")
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
            raise _Stop(
                "failed", f"the device said {_plain(str(frame['say']))!r} where {' or '.join(wanted)} was wanted"
            )
        return frame, payload

    def _progressed(self) -> None:
        self._last_progress = self._patience.now()

    def _watch(self) -> None:
        """Gives up on a device that is silent, or alive but at a standstill."""
        now = self._patience.now()
        if now - self._last_heard > self._options.silence_limit_s:
            raise _Stop("stalled", f"no sign of life from the device for {self._options.silence_limit_s:g} s")
        if now - self._last_progress > self._options.standstill_limit_s:
            raise _Stop("stalled", f"the device has done nothing for {self._options.standstill_limit_s:g} s")

    def _queue(self, data: bytes) -> None:
        if not self._pending:
            self._selector.register(self._in, selectors.EVENT_WRITE)
        self._pending += data

    def _turn(self, limit_s: float) -> None:
        """Write and read what can be written and read now, waiting `limit_s` at most for the first of it."""
        if self._stop.is_set():
            raise _Stop("interrupted", "it was interrupted here; the same command goes on from there")
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
                self._greeted = frame is not None and frame.get("say") == benchmarks.receiver.GREETING
                del self._heard[: end + 1]
                if frame is not None and self._greeted:
                    self._frames.append((frame, b""))
                continue
            if frame is None:
                raise _Stop("failed", "the device said something that is no frame")
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
                self._story.log.append(_plain(line))
        if self._greeted:
            last = self._last_said()
            raise _Stop(
                "connection lost",
                f"the connection to the device ended{last}; run the same command again, it goes on from there",
            )
        failure = explain_failure(-1 if status is None else status, said, self._options.python, self._batch)
        raise _Stop(failure.status, _plain(failure.reason))

    def _last_said(self) -> str:
        lines = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        return f" ({_plain(lines[-1])})" if lines else ""


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


def _refused(frame: dict[str, Any]) -> _Stop:
    status = str(frame.get("status"))
    return _Stop(status if status in STATUSES else "failed", _plain(str(frame.get("reason"))))


def _plain(text: str) -> str:
    """One line of printable characters: what a device says must not move a cursor or end a line."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(kept.split())[:LINE_CHARACTERS]
