"""What a device runs while a bundle is brought to it: Python 3.9 and nothing else.

The text of this one file is sent over SSH and executed; it stays nowhere on the device. Both sides speak in frames: one
line of JSON, then as many bytes as its "bytes" says. The device answers every frame that is not a "chunk"; between
answers it says "alive", so that silence means that it is gone, and it ends when it hears nothing itself. Whatever it
started ends with it, and so does its hold on the lock.

Files arrive under their sha256 in `incoming/` and are verified there. Only when all are there, a new `bundle/` is put
together beside the old one and takes its place; a run that is cut short at any point leaves one that is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO, Callable

Frame = dict[str, Any]

GREETING = "leanear-receiver-1"
GONE = "gone"
ALIVE_EVERY_S = 4.0
HOST_SILENCE_LIMIT_S = 120.0
TURN_S = 1.0
END_PATIENCE_S = 5.0
LOCK_PATIENCE_S = 15.0  # an attempt that was just cut short may take so long to end
BLOCK_BYTES = 1 << 20
LINE_BYTES = 1 << 16
SPARE_BYTES = 16 << 20  # left free on the disk: what a benchmark itself writes
MOST_FRAME_BYTES = 16 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


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


class Place:
    """One deployment's folder on the device: `bundle/`, what is arriving, results, and what is temporary."""

    def __init__(self, base: str, name: str) -> None:
        self.base = os.path.abspath(os.path.expanduser(base))
        self.root = os.path.join(self.base, name)
        self.bundle = os.path.join(self.root, "bundle")
        self.fresh = os.path.join(self.root, "bundle.new")
        self.old = os.path.join(self.root, "bundle.old")
        self.incoming = os.path.join(self.root, "incoming")
        self.attempt = os.path.join(self.root, "attempt.json")
        self.temporary = os.path.join(self.root, "tmp")

    def prepare(self) -> None:
        """Make the folders, empty what is temporary; where an exchange was cut short, put the whole bundle back."""
        os.makedirs(self.incoming, exist_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        os.makedirs(self.temporary, exist_ok=True)
        if not os.path.isdir(self.bundle) and os.path.isdir(self.old):
            os.rename(self.old, self.bundle)

    def partial(self, sha256: str) -> str:
        """Where a file that is arriving lies until it is whole."""
        return os.path.join(self.incoming, sha256 + ".part")

    def whole(self, sha256: str) -> str:
        """Where a file that has arrived lies until it is in the bundle."""
        return os.path.join(self.incoming, sha256)

    def find(self, wanted: dict[str, int]) -> dict[str, str]:
        """Path by sha256 of those of `wanted` (sizes by sha256) that are here, by their contents, not their names."""
        sizes = set(wanted.values())
        found: dict[str, str] = {}
        for folder in (self.bundle, self.incoming, self.fresh, self.old):
            for parent, _, names in os.walk(folder):
                for name in names:
                    path = os.path.join(parent, name)
                    if name.endswith(".part") or not os.path.isfile(path) or os.path.islink(path):
                        continue
                    if os.path.getsize(path) in sizes:
                        sha256 = sha256_of(path)
                        if wanted.get(sha256) == os.path.getsize(path):
                            found.setdefault(sha256, path)
        return found


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


def sha256_of(path: str) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


class Receiver:
    """The device's side of one delivery."""

    def __init__(self, wire: Wire, frames: Callable[[], tuple[Frame, bytes]], child: Child) -> None:
        self._wire, self._frames, self._child = wire, frames, child
        self._place: Place | None = None
        self._files: dict[str, Frame] = {}
        self._found: dict[str, str] = {}
        self._lock: BinaryIO | None = None

    def serve(self) -> None:
        """Answer frames until "bye"."""
        verbs = {
            "open": self._open,
            "file": self._file,
            "install": self._install,
            "run": self._run,
            "fetch": self._fetch,
        }
        while True:
            frame, payload = self._frames()
            verb = frame.get("verb")
            if verb == "bye":
                if self._place is not None:
                    remove(self._place.attempt)
                    shutil.rmtree(self._place.temporary, ignore_errors=True)
                self._wire.say({"say": "bye"})
                return
            if verb not in verbs:  # "chunk" of a file that was refused, or "alive"
                continue
            try:
                verbs[verb](frame, payload)
            except Refusal as refusal:
                self._wire.say({"say": "refused", "status": refusal.status, "reason": refusal.reason})
            except BrokenPipeError:  # the workstation is gone
                raise
            except OSError as error:
                self._wire.say({"say": "refused", **explained(error)})

    def _open(self, frame: Frame, payload: bytes) -> None:
        place = Place(frame["base"], frame["name"])
        os.makedirs(place.base, exist_ok=True)
        self._lock = hold(os.path.join(place.base, "lock"), frame["from"])
        place.prepare()
        self._place = place
        self._files = json.loads(payload)
        cut_short = self._earlier_attempt(place)
        wanted = {facts["sha256"]: facts["bytes"] for facts in self._files.values()}
        self._found = place.find(wanted)
        for name in os.listdir(place.incoming):  # of earlier bundles
            if name.partition(".")[0] not in wanted:
                remove(os.path.join(place.incoming, name))
        missing = {}
        for sha256, size in wanted.items():
            if sha256 not in self._found:
                partial = place.partial(sha256)
                missing[sha256] = min(os.path.getsize(partial), size) if os.path.isfile(partial) else 0
        needed, spare = (
            sum(wanted[sha256] - offset for sha256, offset in missing.items()),
            frame["unpacked"] + SPARE_BYTES,
        )
        free = free_bytes(place.root)
        if missing and needed + spare > free:
            raise Refusal(
                "disk full",
                f"{place.root}: {needed / 1e6:.1f} MB are to be copied and {spare / 1e6:.0f} MB must stay free, "
                f"but {free / 1e6:.1f} MB are free",
            )
        self._wire.say(
            {"say": "opened", "missing": missing, "folder": place.root, "free": free, "cut_short": cut_short}
        )

    def _earlier_attempt(self, place: Place) -> str:
        """How the attempt before this one ended, if it did not end well; and leaves a note of this one."""
        now = boot_id()
        try:
            with open(place.attempt, encoding="ascii") as stream:
                earlier = json.load(stream).get("boot")
        except (OSError, ValueError):
            cut_short = ""
        else:
            cut_short = "by a restart of the device" if earlier != now else "before its end"
        with open(place.attempt, "w", encoding="ascii") as stream:
            json.dump({"boot": now}, stream)
        return cut_short

    def _file(self, frame: Frame, _payload: bytes) -> None:
        """Take the rest of one file from the chunks that follow; one that does not become what it should is dropped."""
        place, sha256, size, offset = self._need_place(), frame["sha256"], frame["size"], frame["offset"]
        partial = place.partial(sha256)
        try:
            with open(partial, "r+b" if offset else "wb") as stream:
                stream.seek(offset)
                stream.truncate()
                while offset < size:
                    chunk, data = self._frames()
                    if chunk.get("verb") == "chunk":
                        stream.write(data)
                        offset += len(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in FULL:
                raise
            remove(partial)
            raise Refusal(
                "disk full",
                f"{place.root}: {os.strerror(error.errno)} after {offset / 1e6:.1f} of {size / 1e6:.1f} MB of a file; "
                "what arrived whole is kept",
            ) from None
        if os.path.getsize(partial) != size or sha256_of(partial) != sha256:
            remove(partial)
            self._wire.say({"say": "damaged", "sha256": sha256})
            return
        os.rename(partial, place.whole(sha256))
        self._found[sha256] = place.whole(sha256)
        self._wire.say({"say": "have", "sha256": sha256})

    def _install(self, frame: Frame, payload: bytes) -> None:
        """Put the new bundle together and let it take the old one's place; `bundle.json` is the payload."""
        place = self._need_place()
        kept = {sha256: path for sha256, path in self._found.items() if not path.startswith(place.fresh + os.sep)}
        for sha256, path in self._found.items():
            if sha256 not in kept:  # lies in a folder that is about to be emptied
                os.replace(path, place.whole(sha256))
                kept[sha256] = place.whole(sha256)
        shutil.rmtree(place.fresh, ignore_errors=True)
        for name, facts in self._files.items():
            target = os.path.join(place.fresh, *name.split("/"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            link_or_copy(kept[facts["sha256"]], target)
        with open(os.path.join(place.fresh, frame["document"]), "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(place.old, ignore_errors=True)
        if os.path.isdir(place.bundle):
            os.rename(place.bundle, place.old)
        os.rename(place.fresh, place.bundle)
        shutil.rmtree(place.old, ignore_errors=True)
        shutil.rmtree(place.incoming, ignore_errors=True)
        os.makedirs(place.incoming, exist_ok=True)
        self._found = {}
        self._wire.say({"say": "installed", "folder": place.bundle})

    def _run(self, frame: Frame, _payload: bytes) -> None:
        """Run the bundle's runner with this Python; its lines go out as they come, and at last its exit status."""
        place = self._need_place()
        runner = os.path.join(place.bundle, frame["runner"])
        arguments = [sys.executable, "-u", runner, *frame["arguments"]]
        # All that is written on the device lies in the one folder, also what a killed program left behind.
        own = {"LEANEAR_CACHE": os.path.join(place.base, "cache"), **os.environ, "TMPDIR": place.temporary}
        status = self._child.run(arguments, place.root, {**own, **frame["environment"]}, self._wire)
        self._wire.say({"say": "ended", "status": status})

    def _fetch(self, frame: Frame, _payload: bytes) -> None:
        """Send one file of the deployment's folder."""
        place = self._need_place()
        path = os.path.join(place.root, *frame["path"].split("/"))
        if not os.path.isfile(path):
            self._wire.say({"say": "absent"})
            return
        size, sent = os.path.getsize(path), 0
        self._wire.say({"say": "content", "size": size, "sha256": sha256_of(path)})
        with open(path, "rb") as stream:
            while sent < size:
                block = stream.read(BLOCK_BYTES)
                if not block:
                    raise Refusal("damaged", f"{path}: it became shorter while it was read")
                self._wire.say({"say": "chunk"}, block)
                sent += len(block)

    def _need_place(self) -> Place:
        if self._place is None:
            raise Refusal("failed", "nothing was opened")
        return self._place


def explained(error: OSError) -> Frame:
    """The status and the one line of an error of the device's file system."""
    where = error.filename or "the device's disk"
    if error.errno in FULL:
        return {"status": "disk full", "reason": f"{where}: {os.strerror(error.errno)}"}
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return {"status": "not writable", "reason": f"{where}: {error.strerror}"}
    return {"status": "failed", "reason": f"{where}: {error.strerror or error}"}


def hold(path: str, holder: str) -> BinaryIO:
    """An open file whose lock this process holds until it ends.

    Raises:
        Refusal: another process holds it; the text says which.
    """
    lock = open(path, "a+b")  # noqa: SIM115, held until this process ends
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
        lock.seek(0)
        other = lock.read(512).decode("utf-8", "replace").strip() or "unknown"
        raise Refusal("busy", f"another deploy is at work on this device ({other}); it is left in peace")
    lock.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    lock.write(f"from {holder}, since {since} UTC by the device's clock, process {os.getpid()}".encode())
    lock.flush()
    return lock


def boot_id() -> str:
    """What tells this start of the system from every other."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return "unknown"


def free_bytes(path: str) -> int:
    """Bytes that this user may still write at `path`."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def link_or_copy(source: str, target: str) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in FULL:
            raise
        shutil.copyfile(source, target)


def remove(path: str) -> None:
    """Delete a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def main() -> None:
    """Greet, and serve the workstation at the other end of standard input and output."""
    source, sink = os.dup(0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    wire, child = Wire(source, sink), Child()

    def leave() -> None:
        child.end(for_good=True)
        os._exit(1)

    for number in (signal.SIGHUP, signal.SIGTERM):  # in a thread: the main one may hold what `leave` waits for
        signal.signal(number, lambda *_: threading.Thread(target=leave).start())
    frames: queue.Queue[tuple[Frame, bytes]] = queue.Queue(maxsize=4)

    def listen() -> None:
        while True:
            heard = wire.hear()
            if heard is None:
                child.end(for_good=True)
                frames.put(({"verb": GONE}, b""))  # after what has arrived, which is kept
                time.sleep(END_PATIENCE_S)
                leave()
            elif heard[0].get("verb") != "alive":
                frames.put(heard)

    def breathe() -> None:
        while True:
            time.sleep(ALIVE_EVERY_S)
            try:
                wire.say({"say": "alive"})
            except OSError:
                return  # the end of the input says it, too

    def next_frame() -> tuple[Frame, bytes]:
        frame, payload = frames.get()
        if frame.get("verb") == GONE:
            raise BrokenPipeError
        return frame, payload

    facts = {
        "say": GREETING,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "time": time.time(),
        "user": os.path.expanduser("~"),
        "machine": os.uname().machine,
    }
    wire.say(facts)
    for work in (listen, breathe):
        threading.Thread(target=work, daemon=True).start()
    try:
        Receiver(wire, next_frame, child).serve()
    except OSError:
        leave()
    os._exit(0)


if __name__ == "__main__":
    main()
