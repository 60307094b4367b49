"""One deployment's folder on the device, and what is asked of its disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from typing import BinaryIO

from leanear.benchmarks.device.receiver.wire import BLOCK_BYTES, Frame, Refusal

LOCK_PATIENCE_S = 15.0  # an attempt that was just cut short may take so long to end
FULL = (errno.ENOSPC, errno.EDQUOT)


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


def sha256_of(path: str) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


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
