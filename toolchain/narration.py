"""What a user sees while work is going on: one line per finished step, a bar for the step under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Report = Callable[[str, float | None], None]
"""Takes what is being done and how much of it is done, 0 to 1, or None where that is not known."""


def quiet(text: str, fraction: float | None = None) -> None:
    """A Report that says nothing."""


class Narrator:
    """Speaks on standard error, so that standard output holds results alone; or, of several processes, not at all."""

    def __init__(self, silent: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=silent)

    @contextlib.contextmanager
    def step(self, title: str, *, if_reported: bool = False) -> Iterator[Report]:
        """A bar while the block runs; afterwards a line with the title and the seconds that it took.

        if_reported: nothing is said of a block that reports nothing, because it found its work done.
        """
        started, announced = time.perf_counter(), False

        def announce() -> None:
            nonlocal announced
            if not announced and not self.console.is_terminal:
                self.say(f"  {title} ...")
            announced = True

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, total=None)

            def report(text: str, fraction: float | None = None) -> None:
                announce()
                bar.update(
                    task, description=f"{title}: {text}" if text else title, total=1.0, completed=fraction or 0.0
                )

            if not if_reported:
                announce()
            yield report
        if announced:
            self.say(f"  {title}: done in {time.perf_counter() - started:.1f} s")

    def say(self, text: str) -> None:
        """One line, as it is: square brackets in a name are not markup."""
        self.console.print(text, markup=False, soft_wrap=True)
