"""The device's side of one delivery: greet the workstation, take files, install, run, fetch."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from typing import BinaryIO, Callable

from leanear.benchmarks.device.receiver.child import END_PATIENCE_S, Child
from leanear.benchmarks.device.receiver.place import (
    FULL,
    Place,
    boot_id,
    explained,
    free_bytes,
    hold,
    link_or_copy,
    remove,
    sha256_of,
)
from leanear.benchmarks.device.receiver.wire import BLOCK_BYTES, Frame, Refusal, Wire

GREETING = "leanear-receiver-1"
GONE = "gone"
ALIVE_EVERY_S = 4.0
SPARE_BYTES = 16 << 20  # left free on the disk: what a benchmark itself writes


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
        needed = sum(wanted[sha256] - offset for sha256, offset in missing.items())
        free = free_bytes(place.root)
        spare = frame["unpacked"] + SPARE_BYTES
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


def main() -> None:
    """Greet, and serve the workstation at the other end of standard input and output."""
    source, sink = os.dup(0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    wire, child = Wire(source, sink), Child()
    for number in (signal.SIGHUP, signal.SIGTERM):  # in a thread: the main one may hold what `leave` waits for
        signal.signal(number, lambda *_: threading.Thread(target=leave, args=(child,)).start())
    frames: queue.Queue[tuple[Frame, bytes]] = queue.Queue(maxsize=4)
    greet(wire)
    threading.Thread(target=listen, args=(wire, child, frames), daemon=True).start()
    threading.Thread(target=breathe, args=(wire,), daemon=True).start()

    def next_frame() -> tuple[Frame, bytes]:
        frame, payload = frames.get()
        if frame.get("verb") == GONE:
            raise BrokenPipeError
        return frame, payload

    try:
        Receiver(wire, next_frame, child).serve()
    except OSError:
        leave(child)
    os._exit(0)


def leave(child: Child) -> None:
    """End this process and all that it started."""
    child.end(for_good=True)
    os._exit(1)


def greet(wire: Wire) -> None:
    """Say first of all what this device is."""
    facts = {
        "say": GREETING,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "time": time.time(),
        "user": os.path.expanduser("~"),
        "machine": os.uname().machine,
    }
    wire.say(facts)


def listen(wire: Wire, child: Child, frames: queue.Queue[tuple[Frame, bytes]]) -> None:
    """Queue what the workstation sends; once it is gone or silent, end the program that runs and leave."""
    while True:
        heard = wire.hear()
        if heard is None:
            child.end(for_good=True)
            frames.put(({"verb": GONE}, b""))  # after what has arrived, which is kept
            time.sleep(END_PATIENCE_S)
            leave(child)
        elif heard[0].get("verb") != "alive":
            frames.put(heard)


def breathe(wire: Wire) -> None:
    """Give a sign of life between answers."""
    while True:
        time.sleep(ALIVE_EVERY_S)
        try:
            wire.say({"say": "alive"})
        except OSError:
            return  # the end of the input says it, too


if __name__ == "__main__":
    main()
