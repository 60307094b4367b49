"""What a user sees while work is going on: a line per finished step, and how far the step under way is.

On a terminal a bar moves. Elsewhere, in a pipe, a file or CI, a line comes whenever nothing was said for a while, so
that long work is never silent for 20 s: what is being done, how far it is, and how long it may still take.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from leanear.benchmarks.under_way import SILENCE_S, Work
from leanear.runtimes.process.notes import leave_closed_error

Report = Callable[[str, float | None], None]
"""Takes what is being done and how much of it is done, 0 to 1, or None where that is not known."""

Voice = Literal["quiet", "normal", "verbose"]
"""Results and errors alone; steps and how far they are; or every report as a line."""


def quiet(text: str, fraction: float | None = None) -> None:
    """A Report that says nothing."""


def counted(report: Report, text: str = "") -> Callable[[int, int], None]:
    """A report that takes how many of how many are done."""
    return lambda done, total: report(f"{text}{done} of {total}", done / total)


def in_parts(report: Report, shares: Mapping[str, float]) -> Callable[[str], Report]:
    """Gives the report of each part of a step; a part's fraction becomes one of the step.

    shares: what each part, in the order in which they come, takes of the step; only their ratios matter.
    """
    whole = sum(shares.values())
    begins = dict(zip(shares, itertools.accumulate(shares.values(), initial=0.0), strict=False))

    def part(name: str) -> Report:
        def of_part(text: str, fraction: float | None = None) -> None:
            done = 0.0 if fraction is None else fraction * shares[name]
            report(text, (begins[name] + done) / whole)

        return of_part

    return part


class StandardError(Console):
    """A console on standard error, which falls silent when nobody reads it any more: results still have a reader."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(stderr=True, highlight=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Go on without a word, where rich would end the process."""
        self.quiet = True
        leave_closed_error()


class Narrator:
    """Speaks on standard error, so that standard output holds results alone; or not at all."""

    def __init__(self, voice: Voice = "normal") -> None:
        self.console: Console = StandardError(quiet=voice == "quiet")
        self._verbose = voice == "verbose"
        self._under_way: list[Work] = []
        self._last_said, self._ended = time.monotonic(), threading.Event()

    @contextlib.contextmanager
    def step(self, title: str, *, if_reported: bool = False) -> Iterator[Report]:
        """A bar while the block runs; afterwards a line with the title and the seconds that it took.

        if_reported: nothing is said of a block that reports nothing, because it found its work done.
        """
        work, announced = Work(title), False

        def announce() -> None:
            nonlocal announced
            if not announced and not self.console.is_terminal:
                self.say(f"  {title} ...")
            announced = True

        work.announce = announce
        with self._bars() as bar, self._working(work):
            bar.start()
            task = bar.add_task(title, total=None)

            def report(text: str, fraction: float | None = None) -> None:
                announce()
                self._take(work, text, fraction)
                bar.update(task, description=work.said, total=1.0, completed=work.fraction or 0.0)

            if not if_reported:
                announce()
            yield report
        if announced:
            self.say(f"  {title}: done in {time.monotonic() - work.started:.1f} s")

    @contextlib.contextmanager
    def side_by_side(
        self, titles: Sequence[str]
    ) -> Iterator[tuple[Callable[[str], Report], Callable[[str, str], None]]]:
        """A bar for each of several works at once; gives the Report of a title, and what to call with a title and a
        line when that work is done.

        No bar is drawn before a report asks for it by another text than "connecting": ssh may ask for a password.
        """
        works = {title: Work(title) for title in titles}
        drawing, drawn = threading.Lock(), False
        with self._bars() as bars, contextlib.ExitStack() as all_of_them:
            ends = {title: all_of_them.enter_context(contextlib.ExitStack()) for title in titles}
            tasks = {title: bars.add_task(title, total=1.0) for title in titles}

            def report_of(title: str) -> Report:
                def report(text: str, fraction: float | None = None) -> None:
                    nonlocal drawn
                    with drawing:
                        if not drawn and (len(titles) > 1 or text != "connecting"):
                            bars.start()
                            drawn = True
                    self._take(works[title], text, fraction)
                    bars.update(tasks[title], description=works[title].said, completed=works[title].fraction or 0.0)

                return report

            def done(title: str, line: str) -> None:
                ends[title].close()
                self.say(f"  {title}: {line}")

            for title in titles:
                self.say(f"  {title} ...")
                ends[title].enter_context(self._working(works[title]))
            yield report_of, done

    @contextlib.contextmanager
    def whole(self, title: str) -> Iterator[Report]:
        """All that a command does: spoken of where it has no step under way, without a bar and without an end."""
        work = Work(title, as_a_whole=True)

        def report(text: str, fraction: float | None = None) -> None:
            self._take(work, text, fraction)

        with self._working(work):
            yield report

    def hush(self) -> None:
        """Say nothing from now on; for all but one of several processes that do the same."""
        self.console.quiet = True

    def say(self, text: str) -> None:
        """One line, as it is: square brackets in a name are not markup."""
        self._last_said = time.monotonic()
        self.console.print(text, markup=False, soft_wrap=True)

    def _take(self, work: Work, text: str, fraction: float | None) -> None:
        before = (work.text, work.fraction)
        work.report(text, fraction)
        if self._verbose and (work.text, work.fraction) != before:
            self.say(f"  {work.said}" + ("" if work.fraction is None else f" ({100 * work.fraction:.0f} %)"))

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
        """Bars that are drawn on a terminal once they are started, and gone afterwards."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        try:
            yield bars
        finally:
            bars.stop()

    @contextlib.contextmanager
    def _working(self, work: Work) -> Iterator[None]:
        """Have the work spoken of when nothing else was said for a while, until the block ends."""
        if not self._under_way and not self.console.is_terminal:
            self._last_said, self._ended = time.monotonic(), threading.Event()
            threading.Thread(target=self._break_silence, args=(self._ended,), daemon=True).start()
        self._under_way.append(work)
        try:
            yield
        finally:
            self._under_way.remove(work)
            if not self._under_way:
                self._ended.set()

    def _break_silence(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.01, self._last_said + SILENCE_S - time.monotonic())):
            now = time.monotonic()
            if now - self._last_said < SILENCE_S:
                continue
            steps = [work for work in self._under_way if not work.as_a_whole]
            for work in steps or self._under_way[-1:]:
                work.announce()
                self.say(f"  {work.line(now)}")
