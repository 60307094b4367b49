"""Steps of making a demo: each leaves a result, is skipped where that is there, and says how long it took."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leanear.runtimes.errors import BadInput, LeanearError
from leanear.runtimes.files import replaced_file

Advance = Callable[[int, str], None]
AnySchedule = TypeVar("AnySchedule")


@dataclass(frozen=True)
class Job(Generic[AnySchedule]):
    """What was asked for."""

    out: Path
    work: Path
    schedule: AnySchedule
    threads: int


def run_maker(
    module: str,
    description: str,
    out: str,
    schedule: Callable[..., AnySchedule],
    make: Callable[[Job[AnySchedule], Console], None],
    arguments: list[str] | None,
) -> int:
    """The exit status of `python -m leanear.studies.demo.MODULE`; out: the default of --out.

    schedule(steps=, seed=): of a training, with `steps` as its default number of them.
    """
    parser = argparse.ArgumentParser(prog=f"python -m leanear.studies.demo.{module}", description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help=f"default: {out}")
    parser.add_argument("--seed", type=int, default=0)
    steps = getattr(schedule, "steps")  # noqa: B009, a class's default
    parser.add_argument("--steps", type=int, default=steps, help="training steps (fewer: quicker and worse)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    asked = schedule(steps=options.steps, seed=options.seed)
    try:
        make(Job(options.out, options.out / "work", asked, options.threads), console)
    except LeanearError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_status
    except KeyboardInterrupt:
        console.print("stopped; the same command continues from here", markup=False)
        return 130
    return 0


def claim(work: Path, asked: dict[str, Any]) -> None:
    """Writes down what this folder's work is made of, or refuses to mix it with another seed's or schedule's.

    Raises:
        BadInput: `work` holds what was begun with other settings.
    """
    file = work / "schedule.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != asked:
            raise BadInput(f"{file}: begun with another --seed or --steps; choose another --out or delete that folder")
        return
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(asked, indent=1), encoding="utf-8")


@contextmanager
def step(
    console: Console, work: Path, title: str, result: Path, total: int | None = None
) -> Iterator[tuple[Advance, bool]]:
    """A bar's advance function (how far, note) and whether `result` is still to be made; says how long it took."""
    if result.exists():
        console.print(f"  {title}: already done", markup=False)
        yield _ignore, False
        return
    started = time.perf_counter()
    text, times = TextColumn("  {task.description}", markup=False), (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (text, BarColumn(bar_width=30), MofNCompleteColumn(), *times)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int, note: str) -> None:
            bar.update(task, completed=done, description=f"{title}: {note}" if note else title)

        try:
            yield advance, True
        finally:
            seconds = _add_seconds(work, title, time.perf_counter() - started)
    console.print(f"  {title}: done, {seconds:.0f} s in all", markup=False)


def counter(advance: Advance) -> Callable[[], None]:
    """A function that moves the bar by one each time it is called."""
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        advance(done, "")

    return one_more


def _ignore(done: int, note: str) -> None:
    """An Advance with nothing to show."""


def _add_seconds(work: Path, title: str, seconds: float) -> float:
    """The seconds that a step has taken over all runs, this one included."""
    file = work / "seconds.json"
    spent = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    spent[title] = round(spent.get(title, 0.0) + seconds, 1)
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(spent, indent=1), encoding="utf-8")
    return spent[title]
