"""The system's own OpenSSH client: how it is started, what a HOST may look like, and what its failures mean.

The user's configuration, keys, agent and jump hosts apply. Host keys are always checked. No text of a user's reaches
the shell of a device except the path of a Python, quoted. The program that a device is sent is the receiver's files as
one text, which needs Python 3.9 and no folder. A delivery can end in a few ways, each with one line that says why.
"""

import ast
import os
import re
import shlex
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from leanear.benchmarks.device.receiver import child, place, serve, wire
from leanear.benchmarks.results import Results
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import printable

SSH_VARIABLE = "LEANEAR_SSH"  # the command in place of "ssh", as a shell would split it: "ssh -F other-config"
HOST = re.compile(
    r"(?P<scheme>ssh://)?"
    r"(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+\\%-]*)@)?"
    r"(?P<name>\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9_.][A-Za-z0-9_.:%-]*?)"
    r"(?(scheme)(?::(?P<port>[0-9]{1,5}))?/?)"
)
MOST_HOST_CHARACTERS = 512
OWN_OPTIONS = (
    "-T",
    # What a user's file may ask for and what would be in the way of a program that speaks over the connection.
    *("-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no", "-o", "ForwardX11=no"),
    # Without this the client says nothing of why it failed where a user's file has set it to QUIET.
    *("-o", "LogLevel=INFO"),
    # An open master connection of the user's is used; a new one would outlive us and keep our pipes open.
    *("-o", "ControlMaster=no"),
)
FAILED = 255
NOT_EXECUTABLE, NOT_FOUND = 126, 127
CONFIG_LIMIT_S = 20.0
FUTURE = "from __future__ import annotations\n"
PARSING = threading.Lock()  # devices are greeted at once, and ast.parse of Python 3.11 is not for threads
LINE_CHARACTERS = 500
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
    "check failed": "an engine does not answer there as the checkpoint does, so nothing was measured",
    "measurement failed": "a part of the benchmark failed",
    "interrupted": "it was interrupted on this side",
    "failed": "anything else; the reason says what",
}


@dataclass(frozen=True)
class Failure:
    """Why a connection did not come about: one of `leanear.devices.ssh.STATUSES`, and one line."""

    status: str
    reason: str


def check_host(host: str) -> str:
    """`host` as it was given: [user@]name, or ssh://[user@]name[:port].

    Raises:
        BadInput: it is anything else, or begins with "-", which a program would take for a flag.
    """
    found = HOST.fullmatch(host) if len(host) <= MOST_HOST_CHARACTERS else None
    if found is None:
        why = "it begins with '-'" if host.startswith("-") else "wanted is [user@]name or ssh://[user@]name:port"
        raise BadInput(f"HOST {host[:80]!r}: not the name of a device; {why}")
    return host


def ssh_command(host: str, python: str, program: str, *, batch: bool) -> list[str]:
    """The command that runs `python -c program` on `host`.

    batch: nothing is asked on a terminal; whatever would have to be asked is a failure.

    Raises:
        BadInput: `host` is not usable, or the command in LEANEAR_SSH cannot be split.
    """
    check_host(host)
    client = _client()
    options = [*OWN_OPTIONS, "-o", f"BatchMode={'yes' if batch else 'no'}"]
    if _keys_unchecked(client, host):
        options += ["-o", "StrictHostKeyChecking=yes"]
    return [*client, *options, "--", host, f"{quoted_python(python)} -I -c {shlex.quote(program)}"]


def quoted_python(python: str) -> str:
    """The path of a Python as one word of the device's shell; a leading "~/" is the home folder there."""
    if not python or "\0" in python or "\n" in python or python.startswith("-"):
        raise BadInput(f"the device's Python {python!r}: not a path or a name of a program")
    if python.startswith("~/"):
        return '"$HOME"/' + shlex.quote(python[2:])
    return shlex.quote(python)


def explain_failure(exit_status: int, said: str, python: str, batch: bool) -> Failure:
    """Why ssh ended with `exit_status` before the device had said a word; said: what it wrote to standard error."""
    lines = [" ".join(line.strip("@ \t\r").split()) for line in said.splitlines() if line.strip("@ \t\r")]
    for status, pattern, text in FAILURES:
        for line in lines:
            if re.search(pattern, line):
                return Failure(status, f"{text} ({line})" if text else line.removeprefix("leanear: "))
    denied = next((line for line in lines if "Permission denied (" in line), None)
    if denied is not None:
        methods = denied.partition("Permission denied (")[2].partition(")")[0]
        if batch and ("password" in methods or "keyboard-interactive" in methods):
            text = "no key was accepted, and a password cannot be asked for here; use ssh-copy-id or an agent"
            return Failure("asks for a password", f"{text} ({denied})")
        return Failure("authentication failed", f"no key or password was accepted ({denied})")
    last = lines[-1] if lines else "it said nothing"
    if exit_status in (NOT_FOUND, NOT_EXECUTABLE):
        return Failure("no python", f"{python}: the device cannot run it ({last})")
    if exit_status == FAILED:
        return Failure("connection failed", f"ssh: {last}")
    return Failure("no python", f"{python} on the device ended with status {exit_status} ({last})")


# Looked for in this order in what ssh says; its texts are the same in every language.
FAILURES = (
    (
        "host key changed",
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the device is not the one that was known by this name; if it was set up anew: ssh-keygen -R NAME",
    ),
    ("host key unknown", r"No \S+ host key is known for", "connect once by hand and compare its fingerprint: ssh HOST"),
    (
        "host key unknown",
        r"Host key verification failed",
        "its host key was not accepted; connect once by hand: ssh HOST",
    ),
    ("name unknown", r"Could not resolve hostname", "no device has this name"),
    ("name unknown", r"hostname contains invalid characters", "no device has this name"),
    ("connection refused", r"Connection refused", "nothing listens there: is the device on, and sshd running?"),
    ("no answer", r"(Connection|Operation) timed out", "the device does not answer"),
    ("unreachable", r"No route to host|Network is unreachable|Host is down", "there is no way to it"),
    (
        "authentication failed",
        r"Too many authentication failures",
        "too many keys were tried; name one with IdentityFile",
    ),
    ("ssh configuration", r"Bad configuration option|Bad owner or permissions|Can't open user config", ""),
    ("ssh configuration", r"terminating, \d+ bad configuration options", ""),
    ("python too old", r"needs Python 3\.9", ""),
    ("python too old", r"Unknown option: -I", "that Python is older than 3.4; Python 3.9 or later is needed"),
    (
        "connection lost",
        r"Connection (closed|reset) by|Broken pipe|closed by remote host",
        "the device closed the connection",
    ),
)


def _client() -> list[str]:
    text = os.environ.get(SSH_VARIABLE, "ssh")
    try:
        client = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"{SSH_VARIABLE}: {text!r} cannot be split ({error})") from None
    if not client:
        raise BadInput(f"{SSH_VARIABLE}: it is empty")
    return client


def unresolved(host: str) -> str:
    """Why there is no address for `host`, as far as that can be told without connecting; "" where there is one.

    Behind a jump host or a proxy the name is looked up elsewhere, and an open master connection needs no look-up.

    Raises:
        BadInput: there is no ssh.
    """
    settings = _settings(_client(), check_host(host)) or {}
    elsewhere = any(settings.get(key, "none") != "none" for key in ("proxyjump", "proxycommand", "controlpath"))
    if elsewhere or "hostname" not in settings:
        return ""
    try:
        socket.getaddrinfo(settings["hostname"], None)
    except (OSError, UnicodeError) as error:
        return f"no device has this name ({settings['hostname']}: {getattr(error, 'strerror', None) or error})"
    return ""


def _keys_unchecked(client: list[str], host: str) -> bool:
    """Whether the user's configuration would accept any host key from `host`."""
    settings = _settings(client, host)
    return settings is None or settings.get("stricthostkeychecking") in ("no", "off", "false")


def _settings(client: list[str], host: str) -> dict[str, str] | None:
    """What the user's configuration says of `host`, by keys in small letters; None where the client does not answer."""
    try:
        asked = subprocess.run(
            [*client, "-G", "--", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONFIG_LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise BadInput(f"{client[0]}: there is no such program; install an OpenSSH client") from None
    except subprocess.TimeoutExpired:
        return None
    return dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)


def receiver_program() -> str:
    """The files, each after those whose names it uses, without what they import from each other."""
    paths = [Path(str(module.__file__)) for module in (wire, child, place, serve)]
    return FUTURE + "".join(_without_own_imports(path.read_text(encoding="utf-8")) for path in paths)


def _without_own_imports(text: str) -> str:
    with PARSING:
        body = ast.parse(text).body
    own = [
        node
        for node in body
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("leanear", "__future__")
    ]
    dropped = {number for node in own for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return "".join(line for number, line in enumerate(text.splitlines(True), 1) if number not in dropped)


class Stop(Exception):
    """The delivery ends here, with one of STATUSES and one line."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def results_status(results: Results) -> tuple[str, str]:
    """The status of a device that gave results, and the reason where it is not "ok"."""
    failures = results.failures()
    if not failures:
        return "ok", ""
    part, reason = next(iter(failures.items()))
    return ("check failed" if results.is_wrong else "measurement failed"), f"{part}: {reason}"


def plain(text: str) -> str:
    """One line of printable characters: what a device says must not move a cursor or end a line."""
    return " ".join(printable(text).split())[:LINE_CHARACTERS]
