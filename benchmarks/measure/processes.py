"""A measurement in a process of its own: asked by a JSON file, answered by a JSON file, its log kept if it fails."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable

from leanear.runtimes.errors import BadInput, LeanearError, RuntimeUnavailable
from leanear.runtimes.files import write_json
from leanear.runtimes.process.isolation import isolated_environment, module_command

Progress = Callable[[str, float], None]

PROGRESS_MARK = "progress"
PROGRESS_VARIABLE = "LEANEAR_PROGRESS"  # set by who reads a command's standard output: progress as lines of it
ERROR_MARK = "leanear: "
LOG_TAIL_LINES = 20
SILENCE_LIMIT_S = 900.0
TURN_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its answer, or None with a one-line reason and the end of what it wrote to stderr."""

    answer: dict[str, Any] | None
    reason: str = ""
    log_tail: tuple[str, ...] = ()


def run_fresh(
    module: str, request: dict[str, Any], progress: Progress, *, silence_limit_s: float = SILENCE_LIMIT_S
) -> Outcome:
    """What `python -m module` answers to `request` in a fresh process.

    The process starts in an empty folder and imports nothing from the user's; paths in the request must be absolute. A
    process that says nothing for `silence_limit_s` is ended.

    Raises:
        BadInput, RuntimeUnavailable: the process found that it was asked for something that cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="leanear-") as name:
        folder = Path(name)
        write_json(folder / "request.json", request)
        command = [*module_command(module), str(folder / "request.json"), str(folder / "answer.json")]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=isolated_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                silent = _follow(process, progress, silence_limit_s)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        lines = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        if silent:
            return Outcome(None, f"said nothing for {silence_limit_s:g} s and was ended", _tail(lines))
        if process.returncode != 0:
            return _failure(process.returncode, lines)
        return Outcome(json.loads((folder / "answer.json").read_text(encoding="utf-8")))


def answer_request(measure: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """The other end of `run_fresh`: read the request, measure, write the answer; a named error becomes one line."""
    request_path, answer_path = (Path(argument) for argument in sys.argv[1:3])
    try:
        answer = measure(json.loads(request_path.read_text(encoding="utf-8")), _say)
    except LeanearError as error:
        print(f"{ERROR_MARK}{error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    write_json(answer_path, answer)


def _say(text: str, fraction: float) -> None:
    print(f"{PROGRESS_MARK} {fraction:.4f} {text}", flush=True)


def _follow(process: subprocess.Popen[str], progress: Progress, silence_limit_s: float) -> bool:
    """True when the process fell silent, False when it closed its output."""
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
    turn_s = min(TURN_S, silence_limit_s)
    silent_turns = 0
    while True:
        try:
            line = lines.get(timeout=turn_s)
        except queue.Empty:
            silent_turns += 1  # and not the clock, which goes on while both processes are stopped or asleep
            if silent_turns * turn_s >= silence_limit_s:
                return True
            continue
        silent_turns = 0
        if line is None:
            process.wait()
            return False
        mark, _, rest = line.partition(" ")
        if mark == PROGRESS_MARK:
            fraction, _, text = rest.partition(" ")
            progress(text.strip(), float(fraction))


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _failure(status: int, lines: list[str]) -> Outcome:
    said = [line[len(ERROR_MARK) :] for line in lines if line.startswith(ERROR_MARK)]
    for error in (BadInput, RuntimeUnavailable):
        if said and status == error.exit_status:
            raise error(said[-1])
    if said:
        return Outcome(None, said[-1], _tail(lines))
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (often: out of memory)" if -status == signal.SIGKILL else ""
        return Outcome(None, f"the process was ended by {name}{hint}", _tail(lines))
    last = lines[-1].strip() if lines else "nothing on stderr"
    return Outcome(None, f"the process ended with status {status}: {last}", _tail(lines))


def _tail(lines: list[str]) -> tuple[str, ...]:
    return tuple(lines[-LOG_TAIL_LINES:])


def free_of_noise(text: str, fraction: float) -> None:
    """A progress that shows nothing."""


def part_of(progress: Progress, start: float, end: float, prefix: str = "") -> Progress:
    """A progress whose 0 to 1 fills `start` to `end` of another, its text put after `prefix`."""

    def forward(text: str, fraction: float) -> None:
        progress(f"{prefix}{text}", start + (end - start) * min(max(fraction, 0.0), 1.0))

    return forward


def absolute(path: os.PathLike[str] | str) -> str:
    """`path` as a request can carry it to a process that starts in another folder."""
    return os.path.abspath(path)
