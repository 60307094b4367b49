"""Files that are complete or absent: written to a temporary name and renamed, read strictly, known by sha256."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

from leanear.runtimes.errors import BadInput

LOCK_FILE = ".leanear-lock"


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """What the system cannot read of `path` is no usable input: BadInput in place of an OSError."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise BadInput(f"{path}: {'no such file' if missing else error.strerror or error}") from None


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value's canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends well and deleted when it does not.

    Of a symbolic link it is what it leads to that is replaced.

    Raises:
        BadInput: as `file_place`.
    """
    path = file_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    os.chmod(name, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
    try:
        with _named(path):
            yield Path(name)
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def file_place(path: Path) -> Path:
    """Where a file of this name is written: behind links.

    Raises:
        BadInput: there is a folder, a device or a pipe, or a process's own end of something, such as /dev/stdout.
    """
    if path.is_symlink() and Path(os.readlink(path)).parts[1:2] == ("proc",):
        raise BadInput(f"{path}: it leads to what a process has open, and cannot be replaced; it is left alone")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise BadInput(f"{path}: it is {what}, not a file; it is left alone")
    return path.resolve() if path.is_symlink() else path


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well and is deleted when it does not.

    A folder that was at `path` is removed only after the new one is complete, and put back where that is interrupted.
    Of a symbolic link it is what it leads to that is replaced.
    """
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    os.chmod(fresh, 0o777 & ~_umask())
    try:
        with _named(path):
            yield fresh
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                try:
                    os.replace(path, old / path.name)
                    os.replace(fresh, path)
                finally:
                    if not path.exists():
                        os.replace(old / path.name, path)
                    shutil.rmtree(old)
            else:
                os.replace(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError that names no file, or a temporary one, names `path` instead.

    numpy's carries no errno either when fewer bytes were written than it asked for: then the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and ".part" not in str(error.filename):
            raise
        full = error.errno is None and "requested and" in str(error)
        number = errno.ENOSPC if full else error.errno or 0
        reason = os.strerror(number) if full else error.strerror or str(error)
        raise OSError(number, reason, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def only_here(folder: Path, own_names: Sequence[str]) -> Iterator[None]:
    """Hold `folder` for this process; what a killed run left half-written of `own_names` in it is deleted.

    own_names: of files and folders, which may be patterns and lie in folders of it.

    Raises:
        BadInput: another process holds it.
    """
    with open(folder / LOCK_FILE, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock.fileno()).st_nlink:  # whoever held it has just deleted it
                raise BlockingIOError
        except BlockingIOError:
            raise BadInput(f"{folder}: another leanear is at work in this folder; wait, or choose another") from None
        for name, ending in itertools.product(map(Path, own_names), ("part", "old")):
            for litter in folder.glob((name.parent / f".{name.name}.*.{ending}").as_posix()):
                shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        yield


def link_or_copy(source: Path, out: Path) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    try:
        os.link(source.resolve(), out)
    except OSError:
        shutil.copyfile(source, out)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with replaced_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON with a final newline, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        BadInput: the file is missing, or is not JSON, or not an object.
    """
    value = _read_value(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not an object")
    return value


def _read_value(path: Path) -> Any:
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are no text, text that is no JSON, an endless number
        raise BadInput(f"{path}: not JSON ({error})") from None


def read_json(path: Path, schema: str, required: Iterable[str] = (), *, older: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object in `path`, whose key "schema" is `schema` or one of `older`, and which has all of `required`.

    Raises:
        BadInput: the file is missing, is not JSON, is of another schema, or lacks a key.
    """
    value = _read_value(path)
    if not isinstance(value, dict) or value.get("schema") not in (schema, *older):
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise BadInput(f"{path}: expected schema {schema!r}, found {found!r}")
    missing = [key for key in required if key not in value]
    if missing:
        raise BadInput(f"{path}: missing key {missing[0]!r}")
    return value
