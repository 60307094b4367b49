"""A real OpenSSH server on loopback, with keys and a client configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HOST = "device"


def sshd_path() -> str | None:
    """The server's program, which is not on every user's path, or None."""
    return shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd",) if os.access(path, os.X_OK)), None)


def require_sshd() -> None:
    """Skips the test where there is no OpenSSH server and client."""
    if sshd_path() is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("there is no OpenSSH server here; on Debian: apt-get install openssh-server openssh-client")


def descendants(process: int) -> list[tuple[int, str]]:
    """Number and name of every process that was started by `process`, or by one of those."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            parents.setdefault(int(rest[1]), []).append((int(entry.name), name))
    found, look = [], [process]
    while look:
        for number, name in parents.get(look.pop(), []):
            found.append((number, name))
            look.append(number)
    return found


@dataclass
class SshServer:
    """A server that lets one key in. `command`: what LEANEAR_SSH should be, for the host called "device"."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    options: tuple[str, ...] = ()
    command: str = field(init=False)

    def __post_init__(self) -> None:
        self.command = f"ssh -F {self.folder / 'config'}"

    def configure(self, *lines: str, name: str = "config", host: str = HOST, port: int | None = None) -> str:
        """Write a client configuration with these lines first; the command that uses it."""
        text = "\n".join(
            [
                f"Host {host}",
                *(f"  {line}" for line in lines),
                "  HostName 127.0.0.1",
                f"  Port {port or self.port}",
                f"  User {getpass.getuser()}",
                f"  IdentityFile {self.folder / 'key'}",
                "  IdentitiesOnly yes",
                "  IdentityAgent none",
                f"  UserKnownHostsFile {self.folder / 'known_hosts'}",
                "  GlobalKnownHostsFile none",
                "",
            ]
        )
        (self.folder / name).write_text(text)
        return f"ssh -F {self.folder / name}"

    def know(self, key: Path | None = None) -> None:
        """Let the client know the server by its host key, or by another one."""
        public = (key or self.folder / "host_key").with_suffix(".pub").read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")

    def sessions(self) -> list[tuple[int, str]]:
        """What runs for connections: servers' own processes, shells, programs."""
        return descendants(self.process.pid)

    def cut(self, everything: bool = False) -> None:
        """End every connection as a lost network does; `everything`: and what ran in them, as a restart does."""
        for number, name in self.sessions():
            if everything or name.startswith("sshd"):
                kill(number, signal.SIGKILL)

    def freeze(self, stop: bool = True) -> None:
        """Stop every process of every connection, or let them go on."""
        for number, _ in self.sessions():
            kill(number, signal.SIGSTOP if stop else signal.SIGCONT)

    def wait_until_idle(self, limit_s: float = 60.0) -> None:
        """Wait until nothing of any connection runs."""
        deadline = time.monotonic() + limit_s
        while self.sessions() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.sessions(), self.sessions()

    def stop(self) -> None:
        """End the server and its connections."""
        self.freeze(stop=False)
        self.cut(everything=True)
        self.process.terminate()
        self.process.wait()


def kill(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def make_key(path: Path) -> Path:
    """A key pair without a passphrase; the public one is beside it with .pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    """A port on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(folder: Path, *lines: str) -> SshServer:
    """A server that lets in the key it made, with these lines first in its configuration."""
    require_sshd()
    for name in ("host_key", "key"):
        make_key(folder / name)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    for _ in range(3):  # somebody else may take a free port first
        server = _started(folder, free_port(), lines)
        if server is not None:
            server.configure()
            server.know()
            return server
    pytest.fail(f"sshd did not start: {(folder / 'sshd.log').read_text()}")


def _started(folder: Path, port: int, lines: tuple[str, ...]) -> SshServer | None:
    """A server that listens on the port, None if it ended."""
    pid_file = folder / "sshd.pid"
    (folder / "sshd_config").write_text(
        "\n".join(
            [
                *lines,
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {folder / 'host_key'}",
                f"AuthorizedKeysFile {folder / 'key.pub'}",
                f"AllowUsers {getpass.getuser()}",
                "PermitRootLogin prohibit-password",
                "StrictModes no",
                "UsePAM no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                f"PidFile {pid_file}",
                "",
            ]
        )
    )
    program = sshd_path()
    assert program is not None
    process = subprocess.Popen(
        [program, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")], stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:  # it ends where it cannot listen
        if pid_file.exists() and pid_file.read_text().strip() == str(process.pid):
            return SshServer(folder, port, process)
        time.sleep(0.02)
    process.kill()
    process.wait()
    return None


def remote_python(folder: Path, program: str) -> str:
    """The path of a shell script that stands for the device's Python; `program` ends in starting this one, or not."""
    path = folder / f"python-{len(list(folder.glob('python-*')))}"
    path.write_text(f"#!/bin/sh\n{program.replace('PYTHON', sys.executable)}\n")
    path.chmod(0o755)
    return str(path)
