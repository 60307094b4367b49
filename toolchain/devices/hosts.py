"""Several devices side by side: whose turn takes long, or never comes, holds nobody up."""

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from leanear.benchmarks.results import DeviceOutcome
from leanear.devices.remote import RemoteOptions, deliver
from leanear.devices.ssh import check_host, unresolved
from leanear.progress import Report
from leanear.runtimes.errors import BadInput, DeviceFailed
from leanear.runtimes.files import sha256_json
from leanear.runtimes.process.notes import note_first

MOST_HOSTS = 64


def read_hosts(path: Path) -> tuple[str, ...]:
    """The hosts in a file, one a line; blank lines and what follows a "#" are passed over.

    Raises:
        BadInput: the file cannot be read, has no host or one twice, or a line is not a host; the text has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else error})") from None
    hosts: list[str] = []
    for number, line in enumerate(lines, 1):
        host = line.partition("#")[0].strip()
        if not host:
            continue
        try:
            check_host(host)
        except BadInput as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        if host in hosts:
            raise BadInput(f"{path}, line {number}: HOST {host!r} was named before")
        hosts.append(host)
    if not hosts:
        raise BadInput(f"{path}: no host in it; one [user@]name a line is wanted")
    if len(hosts) > MOST_HOSTS:
        raise BadInput(f"{path}: {len(hosts)} hosts; {MOST_HOSTS} at most")
    return tuple(hosts)


def check_names(hosts: Sequence[str]) -> None:
    """See that some host has an address, before any work; of those that have none, where others do, say so.

    Raises:
        DeviceFailed: none has one.
        BadInput: there is no ssh.
    """
    with ThreadPoolExecutor(len(hosts) or 1) as pool:
        reasons = {host: why for host, why in zip(hosts, pool.map(unresolved, hosts), strict=True) if why}
    if hosts and len(reasons) == len(hosts):
        raise DeviceFailed("; ".join(f"{host}: name unknown: {why}" for host, why in reasons.items()))
    note_first([f"{host}: {why}" for host, why in reasons.items()], "host")


def host_folder_name(host: str) -> str:
    """A folder name for what came from `host`: plain, and another for every other host."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", host.removeprefix("ssh://")).strip("-.").lower() or "device"
    changed = plain != host
    return f"{plain[:48]}-{sha256_json(host)[:8]}" if changed or len(plain) > 48 else plain


def deliver_to_all(
    hosts: Sequence[str],
    bundle: Path,
    results: Path,
    options: RemoteOptions,
    progress_of: Callable[[str], Report],
    done: Callable[[DeviceOutcome], None] = lambda _outcome: None,
) -> tuple[DeviceOutcome, ...]:
    """The outcome of each host, in their order; all are worked on at once.

    results: each host's own go into a folder of its own in it; progress_of: the Report of one host; done: called with
    each outcome when it is there. Of several hosts none may ask for a password: questions would run into each other.

    Raises:
        BadInput, OSError: as `deliver`, after every host is done.
    """
    if len(hosts) > 1:
        options = replace(options, batch=True)
    speaking, stop = threading.Lock(), threading.Event()

    def one(host: str) -> DeviceOutcome:
        outcome = deliver(host, bundle, results / host_folder_name(host), options, progress_of(host), stop=stop)
        with speaking:
            done(outcome)
        return outcome

    if len(hosts) == 1:
        return (one(hosts[0]),)
    with ThreadPoolExecutor(len(hosts), thread_name_prefix="deliver") as pool:
        futures = [pool.submit(one, host) for host in hosts]
        try:
            wait(futures)
        except BaseException:  # ctrl-C, or an order to end: the others are not waited for
            stop.set()
            raise
    return tuple(future.result() for future in futures)
