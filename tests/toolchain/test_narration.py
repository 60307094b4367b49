"""What is said while work goes on: never silence, how far and how long to go, and nothing or everything where asked."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time

import pytest
import soundfile
from rich.console import Console

from leanear import progress as narration
from leanear.benchmarks.formatting import duration
from leanear.benchmarks.under_way import Work
from leanear.cli.commands import cli, run
from leanear.progress import Narrator, counted, in_parts
from tests.conftest import tone, write_tones

SILENCE_S = 0.1


@pytest.fixture(autouse=True)
def short_silence(monkeypatch):
    monkeypatch.setattr(narration, "SILENCE_S", SILENCE_S)


class Timed(io.StringIO):
    """A stream that remembers when each line was written."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def write(self, text: str) -> int:
        self.at += [time.monotonic()] * text.count("\n")
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


def listened(voice="normal") -> tuple[Narrator, Timed]:
    narrator, stream = Narrator(voice), Timed()
    narrator.console = Console(file=stream, width=400, quiet=voice == "quiet")
    return narrator, stream


def until(happened, limit_s: float = 60.0) -> None:
    """Wait for what another thread does, which takes its time on a busy machine."""
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def told_so_far(stream: Timed) -> list[str]:
    return [line for line in stream.lines if "so far" in line]


def test_work_that_reports_nothing_is_spoken_of_again_and_again():
    narrator, stream = listened()
    with narrator.step("reading"):
        until(lambda: len(stream.lines) >= 4)
    assert stream.lines[0] == "  reading ..."
    assert stream.lines[-1].startswith("  reading: done in ")
    assert all(re.fullmatch(r"  reading, \d+ s so far", line) for line in stream.lines[1:-1])


def test_no_silence_is_longer_than_that(monkeypatch):
    """By a clock that goes on only while the narrator waits."""
    clock, waits = [100.0], iter(range(20))

    class Ended:
        def wait(self, seconds):
            clock[0] += seconds
            return next(waits, None) is None

    monkeypatch.setattr(narration, "SILENCE_S", 100.0)  # the narrator's own thread has nothing to say
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    narrator, stream = listened()
    with narrator.step("reading"):
        narrator._break_silence(Ended())
    gaps = [later - earlier for earlier, later in zip(stream.at, stream.at[1:])]
    assert len(gaps) == 21
    assert max(gaps) == 100.0


def test_a_line_says_what_how_far_and_how_long_to_go():
    narrator, stream = listened()
    with narrator.step("scoring") as report:
        for done in range(1, 5):
            counted(report, "clip ")(done, 8)
        already = len(stream.lines)
        until(lambda: len(stream.lines) > already)
    line = told_so_far(stream)[-1]
    assert re.fullmatch(r"  scoring: clip 4 of 8 \(50 %, about \d+ s to go\), \d+ s so far", line)


def test_nothing_comes_while_lines_come_anyway(monkeypatch):
    """A line comes in every one of the narrator's waits, shortly before it ends."""
    clock, narrator_waits = [100.0], iter(range(8))
    narrator, stream = listened()

    class Ended:
        def wait(self, seconds):
            clock[0] += 0.9 * seconds
            narrator.say("a line")
            clock[0] += 0.1 * seconds
            return next(narrator_waits, None) is None

    monkeypatch.setattr(narration, "SILENCE_S", 100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with narrator.step("a step"):
        narrator._break_silence(Ended())
    assert stream.lines.count("a line") == 9
    assert not told_so_far(stream)


def test_silence_is_no_fault_once_the_work_is_done():
    narrator, stream = listened()
    before = threading.active_count()
    with narrator.whole("leanear eval"), narrator.step("a step"):
        pass
    said = list(stream.lines)
    time.sleep(2.5 * SILENCE_S)
    assert stream.lines == said
    until(lambda: threading.active_count() <= before)


def test_of_a_command_without_a_step_under_way_the_whole_is_spoken_of():
    narrator, stream = listened()
    with narrator.whole("leanear eval") as whole:
        whole("5 s of audio", 0.5)
        until(lambda: told_so_far(stream))
        with narrator.step("a step"):
            until(lambda: any("a step, " in line for line in stream.lines))
    told = [line.partition(",")[0] for line in told_so_far(stream)]
    assert told[0] == "  leanear eval: 5 s of audio (50 %)"
    assert told.index("  a step") == len(told) - told.count("  a step")


def before_commas(stream: Timed) -> set[str]:
    return {line.partition(",")[0] for line in stream.lines}


def test_of_works_side_by_side_each_that_goes_on_is_spoken_of():
    narrator, stream = listened()
    with narrator.whole("leanear deploy"), narrator.side_by_side(["one", "two"]) as (report_of, done):
        report_of("one")("measuring", 0.25)
        report_of("two")("connecting", 0.0)
        until(lambda: {"  one: measuring (25 %)", "  two: connecting (0 %)"} <= before_commas(stream))
        done("two", "unreachable")
        at = stream.lines.index("  two: unreachable") + 1
        until(lambda: len(stream.lines) > at)
    first, second = stream.lines[:at], stream.lines[at:]
    assert first[:2] == ["  one ...", "  two ..."]
    assert all(line.startswith("  one: measuring") for line in second)


@pytest.mark.parametrize(
    ("reports", "now", "line"),
    [
        ([], 50.0, "work, 50 s so far"),
        ([(10.0, "a", None)], 50.0, "work: a, 50 s so far"),
        ([(0.0, "a", 0.0), (30.0, "b", 0.25)], 30.0, "work: b (25 %, about 1 min 30 s to go), 30 s so far"),
        ([(0.0, "a", 0.0), (30.0, "b", 0.25)], 60.0, "work: b (25 %, about 3 min 0 s to go), 1 min 0 s so far"),
        ([(0.0, "a", 0.0), (30.0, "b", 0.01)], 30.0, "work: b (1 %), 30 s so far"),
        ([(40.0, "a", 0.5), (50.0, "b", 0.75)], 50.0, "work: b (75 %, about 10 s to go), 50 s so far"),
        ([(0.0, "a", 0.0), (40.0, "b", 0.5), (50.0, "c", 0.0)], 50.0, "work: c (50 %, about 50 s to go), 50 s so far"),
        ([(0.0, "a", 0.0), (40.0, "b", 0.5), (50.0, "c", None)], 50.0, "work: c (50 %, about 50 s to go), 50 s so far"),
        ([(0.0, "a", None), (40.0, "b", 0.5)], 50.0, "work: b (50 %), 50 s so far"),
        ([(0.0, "a", 0.0), (40.0, "b", 1.0)], 70.0, "work: b (100 %), 1 min 10 s so far"),
    ],
)  # fmt: skip
def test_how_far_never_goes_back_and_the_time_to_go_is_by_all_of_it(monkeypatch, reports, now, line):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    work = Work("work")
    work.started = 0.0
    for clock[0], text, fraction in reports:
        work.report(text, fraction)
    assert work.line(now) == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7384, "2 h 3 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_quiet_says_nothing_and_verbose_every_report():
    for voice in ("quiet", "verbose"):
        narrator, stream = listened(voice)
        with narrator.step("a step") as report:
            report("one", 0.5)
            report("one", 0.5)
            report("two", None)
            time.sleep(1.5 * SILENCE_S)  # long enough for a voice that is not quiet
        if voice == "quiet":
            assert stream.lines == []
        else:
            assert stream.lines[:3] == ["  a step ...", "  a step: one (50 %)", "  a step: two (50 %)"]


def test_parts_of_a_step_are_shares_of_it():
    told = []
    part = in_parts(lambda text, fraction: told.append((text, fraction)), {"long": 3, "none": 0, "short": 1})
    for name, fraction in (("long", 0.0), ("long", 0.5), ("long", 1.0), ("none", 1.0), ("short", None), ("short", 1.0)):
        part(name)(name, fraction)
    assert [fraction for _, fraction in told] == [0.0, 0.375, 0.75, 0.75, 0.75, 1.0]
    nested = in_parts(part("short"), {"one": 1, "two": 1})
    nested("two")("two", 0.5)
    assert told[-1] == ("two", 0.75 + 0.25 * 0.75)


def test_a_reader_of_standard_error_that_is_gone_ends_no_work_and_loses_no_result():
    code = (
        "import time; from leanear import progress; progress.SILENCE_S = 0.05; narrator = progress.Narrator()\n"
        "with narrator.step('a step'): print('begun', flush=True); time.sleep(0.5)\n"
        "narrator.say('more'); print('result')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    process.stderr.close()
    assert process.stdout.read() == b"result\n"
    assert process.wait(timeout=600) == 0


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_can_be_quiet_and_verbose(name, capsys):
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"-q, --quiet +Print only results and errors\.", shown)
    assert re.search(r"-v, --verbose +Print every progress report on its own line\.", shown)


def test_quiet_and_verbose_are_opposites(capsys):
    assert run(["targets", "-q", "-v"]) == 2
    assert capsys.readouterr().err == "leanear: --quiet and --verbose are opposites; choose one\n"


def test_a_quiet_command_gives_its_result_alone(capfd, caplog, tiny_folder, tmp_path):
    soundfile.write(tmp_path / "long.wav", tone(300, 2.0), 16_000)  # of which the model hears a part: a note
    printed = {}
    capfd.readouterr()
    for flag in ("-q", "-v"):
        caplog.clear()
        assert run(["classify", str(tmp_path / "long.wav"), "--model", str(tiny_folder), "--json", flag]) == 0
        printed[flag] = capfd.readouterr()
        assert len(caplog.messages) == (0 if flag == "-q" else 1)
    assert printed["-q"].out == printed["-v"].out
    assert printed["-q"].err == ""


def test_a_step_is_at_its_end_when_all_of_it_is_done(capfd, tiny_folder, tmp_path):
    write_tones(tmp_path / "data", 6)
    of_both = [str(tiny_folder), "--data", str(tmp_path / "data"), "--calibration-clips", "4", "-v"]
    for command in (["eval", *of_both], ["explore", *of_both, "--out", str(tmp_path / "explored")]):
        assert run(command) == 0
        steps = {}
        for line in capfd.readouterr().err.splitlines():
            if found := re.fullmatch(r"  (scoring|evaluating [^:]+): (.+) \((\d+) %\)", line):
                steps.setdefault(found[1], []).append(int(found[3]))
        (shares,) = steps.values()
        assert shares == sorted(shares)
        assert [share < 100 for share in shares] == [True] * (len(shares) - 1) + [False]
        assert len(set(shares)) > 4, "what comes first is no end"
