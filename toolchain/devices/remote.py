"""A bundle brought to a device over SSH, measured there, and its results brought home; or why not, as a status.

One connection does it all. A program that stays nowhere on the device (`leanear.benchmarks.device.receiver`) is sent
first; it holds the device's lock, takes what has changed, and runs the bundle's doctor, compile and bench. What arrived
stays, so the next run goes on where this one was cut short.
"""

import contextlib
import getpass
import json
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanear.benchmarks.device.bundled import BUNDLE_FILE, Bundle, read_bundle, unpacked_bytes
from leanear.benchmarks.device.doctor import lacks, read_report
from leanear.benchmarks.results import DeviceOutcome, read_results
from leanear.devices.bundle import device_folder_name
from leanear.devices.channel import CHUNK_BYTES, Channel, RemoteOptions, connection, whole_number
from leanear.devices.ssh import Stop, check_host, plain
from leanear.progress import Report, quiet
from leanear.runtimes.errors import BadInput, MeasurementFailed, ParityFailed, RuntimeUnavailable
from leanear.runtimes.records import as_json

CLOCK_LIMIT_S = 120.0
LATEST_S = 1e11  # since 1970: in the year 5138
LOG_LINES = 20
# Ends of a whole attempt.
FOUND_OUT = ("no numpy", "runtime absent", "compile failed", "check failed", "measurement failed")
COPIED, LOOKED, COMPILED = 0.3, 0.35, 0.4  # shares of the whole, for a progress bar


@dataclass
class _Story:
    """What is known of a delivery so far, whatever ends it."""

    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    notes: list[str] = field(default_factory=list)
    doctor: dict[str, Any] | None = None
    results: str | None = None


def deliver(
    host: str,
    bundle_folder: Path,
    results_folder: Path,
    options: RemoteOptions | None = None,
    progress: Report = quiet,
    clock: Callable[[], float] = time.time,
    stop: threading.Event | None = None,
) -> DeviceOutcome:
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
            raise Stop("damaged", str(error)) from None
        _deliver(host, bundle, results_folder, options, progress, clock, story, stop or threading.Event())
        status, reason = "ok", ""
    except Stop as stop:
        status, reason = stop.status, " ".join(stop.reason.split())
    return DeviceOutcome(
        host, status, reason, tuple(story.notes), tuple(story.log), results=story.results, doctor=story.doctor
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
    with connection(host, options, story.log, stop) as channel:
        greeting = channel.greet()
        _compare_clocks(greeting, clock(), story)
        progress("looking at what is there", 0.01)
        try:
            _copy(channel, bundle, options, progress, story)
            _examine(channel, bundle, progress, story)
            _compile(channel, progress)
            _bench(channel, bundle, results_folder, progress, story)
        except Stop as stopped:
            if stopped.status in FOUND_OUT:
                with contextlib.suppress(Stop):
                    channel.ask({"verb": "bye"}, "bye")
            raise
        channel.ask({"verb": "bye"}, "bye")


def _compare_clocks(greeting: dict[str, Any], now: float, story: _Story) -> None:
    told = greeting.get("time")
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not abs(told) < LATEST_S:
        story.notes.append("the device did not tell the time")
        return
    ahead_s = told - now
    if abs(ahead_s) > CLOCK_LIMIT_S:
        days, rest = divmod(round(abs(ahead_s)), 86400)
        length = (f"{days} day{'s' if days > 1 else ''} " if days else "") + f"{rest // 3600} h {rest % 3600 // 60} min"
        side = "ahead of" if ahead_s > 0 else "behind"
        story.notes.append(
            f"the device's clock is {length} {side} this machine's; the times of day in its results are its own, "
            "latencies are not affected"
        )


def _copy(channel: Channel, bundle: Bundle, options: RemoteOptions, progress: Report, story: _Story) -> None:
    """Bring what is missing, and let the device put the bundle together."""
    files = bundle.document.files
    opened = channel.ask(
        {
            "verb": "open",
            "base": options.folder,
            "name": device_folder_name(bundle.document.name),
            "from": _here(),
            "unpacked": unpacked_bytes(bundle.folder, files),
        },
        "opened",
        json.dumps(as_json(files)).encode(),
    )
    if opened.get("cut_short"):
        story.notes.append(
            f"the attempt before this one was cut short {plain(str(opened['cut_short']))}; this one went on"
        )
    paths = {facts.sha256: bundle.folder / name for name, facts in files.items()}
    sizes = {facts.sha256: facts.bytes for facts in files.values()}
    told = opened.get("missing")
    if not isinstance(told, dict) or not set(told) <= set(sizes):
        raise Stop("failed", "the device did not say which files it lacks")
    missing = {sha256: whole_number(told, sha256, 0, sizes[sha256]) for sha256 in told}
    total = sum(sizes[sha256] - offset for sha256, offset in missing.items())
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(f"copying {done / 1e6:.1f} of {total / 1e6:.1f} MB", COPIED * min(done / max(total, 1), 1.0))

    for sha256, offset in sorted(missing.items(), key=lambda item: sizes[item[0]]):
        if not _send_file(channel, paths[sha256], sha256, offset, count) and not _send_file(
            channel, paths[sha256], sha256, 0, count
        ):
            raise Stop("damaged", f"{paths[sha256].name}: it arrived twice with another sha256 than it was sent with")
    channel.ask({"verb": "install", "document": BUNDLE_FILE}, "installed", (bundle.folder / BUNDLE_FILE).read_bytes())


def _here() -> str:
    """Who is at work, for whoever finds the device busy."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        name = f"user {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _send_file(channel: Channel, path: Path, sha256: str, offset: int, count: Callable[[int], None]) -> bool:
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


def _examine(channel: Channel, bundle: Bundle, progress: Report, story: _Story) -> None:
    """Ask the device's doctor; the first thing that is missing is the status."""
    progress("doctor", COPIED)
    status, out = channel.run(["doctor", "--json"])
    try:
        document = read_report(out)
    except BadInput as error:
        raise Stop("failed", f"doctor ended with status {status}: {channel.last_error() or error}") from None
    story.doctor = document
    lacking = [finding["name"] for finding in document["findings"] if finding["ok"] is False]
    lines = lacks(document)
    for name, kind in (("numpy", "no numpy"), (bundle.runtime, "runtime absent")):
        if name in lacking:
            raise Stop(kind, plain("; ".join(lines)))
    if lacking or status != 0:
        raise Stop("failed", plain("; ".join(lines)) or f"doctor ended with status {status}: {channel.last_error()}")


def _compile(channel: Channel, progress: Report) -> None:
    progress("compiling", LOOKED)
    status, _ = channel.run(["compile"])
    if status != 0:
        raise Stop(_verdict(status, "compile failed", channel), channel.last_error() or _ended(status))


def _bench(channel: Channel, bundle: Bundle, folder: Path, progress: Report, story: _Story) -> None:
    """Measure, and bring the results home, also those of a measurement that failed in parts."""
    name = f"{bundle.runtime}-{bundle.precision}.json"

    def forward(text: str, fraction: float | None = None) -> None:
        progress(text, COMPILED + (1 - COMPILED) * (fraction or 0.0))

    status, _ = channel.run(["bench", "--out", f"results/{name}"], forward)
    reason = "" if status == 0 else channel.last_error() or _ended(status)
    if status in (0, ParityFailed.exit_status, MeasurementFailed.exit_status):
        path = folder / name
        if channel.fetch(f"results/{name}", path):
            try:
                read_results(path)
            except BadInput as error:
                raise Stop("damaged", f"the results that came back are not usable: {error}") from None
            story.results = str(path)
        elif status == 0:
            raise Stop("failed", "bench said that it was done, but there are no results")
    if status != 0:
        raise Stop(_verdict(status, "measurement failed", channel), reason)


def _verdict(status: int, otherwise: str, channel: Channel) -> str:
    """The status of a verb that ended with `status`."""
    said = channel.last_error()
    if status == ParityFailed.exit_status:
        return "check failed"
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
