"""A process that lives on and answers one request at a time, in any environment: both ends, stdlib only.

Requests and answers are JSON objects, one a line. A worker that fails says why by dying: its reason is the last line
that it wrote, so that no failure is taken for an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Sequence

from leanear.runtimes.process.isolation import isolated_environment, module_command

ROOT = Path(__file__).resolve().parents[2]
LONGEST_ANSWER_S = 900.0
CLOSING_S = 10.0
TAIL_LINES = 20

Handler = Callable[[dict], dict]


class WorkerFailed(Exception):
    """A worker died or fell silent; the text is one line that says how, log_tail what it wrote last."""

    def __init__(self, reason: str, log_tail: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.log_tail = tuple(log_tail)


class LastingWorker:
    """The asking end. It holds a process from its first request to `close`."""

    def __init__(self, python: Path, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._command = module_command(module, str(python))
        self._environment = {**isolated_environment(), **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask(self, request: dict[str, Any], limit_s: float = LONGEST_ANSWER_S) -> dict[str, Any]:
        """The answer to `request`; the process starts with the first one.

        Raises:
            WorkerFailed: the process cannot start, died, said something else, or said nothing for `limit_s`.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise self._failure() from None
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self._process.kill()
            self._process.wait()
            raise WorkerFailed(f"said nothing for {limit_s:g} s and was ended", self._tail()) from None
        if line is None:  # it has closed its output, which is how it dies
            raise self._failure()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkerFailed(f"answered something that is not a JSON object: {line.strip()[:80]!r}", self._tail())
        return answer

    def close(self) -> None:
        """End the process, which ends by itself when nobody can ask it any more; idempotent."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it is dead already
                self._process.stdin.close()
            try:
                self._process.wait(timeout=CLOSING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile(prefix="leanear-")  # noqa: SIM115 - closed by `close`
        self._lines = queue.Queue()
        try:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            )  # fmt: skip
        except OSError as error:
            raise WorkerFailed(f"{self._command[0]}: {error.strerror}") from None
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()

    def _failure(self) -> WorkerFailed:
        assert self._process is not None
        try:
            status = self._process.wait(timeout=CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        tail = self._tail()
        last = tail[-1].strip() if tail else "nothing on stderr"
        how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return WorkerFailed(f"{how}: {last}", tail)

    def _tail(self) -> list[str]:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-TAIL_LINES:]


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def answer_requests(handlers: Mapping[str, Handler]) -> None:
    """The answering end: request["do"] names the handler. It ends when the asking end is gone.

    Whatever a library prints goes to stderr, which is the log.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            answer = handlers[request["do"]](request)
            answers.write(json.dumps(answer, allow_nan=False) + "\n")
            answers.flush()
