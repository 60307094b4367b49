"""Damaged audio, settings and tables: one line and a right exit status, no traceback, no long wait.

The short run is the first inputs of the long one (-m slow), so that what the long one finds can be made again.
"""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from leanear.cli.commands import run
from leanear.data.audio import AudioFile, read_waveform
from leanear.runtimes.errors import BadInput
from tests.conftest import TINY_LABELS, tone, write_tiny
from tests.recordings import read_recording
from tests.toolchain.data.test_readers_agree import streamed
from tests.toolchain.mutations import Mutator
from tests.toolchain.speech_folder import sound
from tests.whisper_models import write_whisper

SHORT, LONG = 60, 2_000
LONGEST_S, LONGEST_WAIT_S = 10, 120  # of work, and by the clock, which other processes share
RATE_HZ = 16_000
REFUSED, NO_NUMBER = 2, 5
WAVS = {
    "pcm16": {"subtype": "PCM_16"}, "pcm8": {"subtype": "PCM_U8"}, "pcm24": {"subtype": "PCM_24"},
    "float": {"subtype": "FLOAT"}, "wavex": {"format": "WAVEX", "subtype": "PCM_16"}, "mulaw": {"subtype": "ULAW"},
    "adpcm": {"subtype": "IMA_ADPCM"}, "gsm": {"subtype": "GSM610"},
}  # fmt: skip
OTHERS = {
    "flac": {"format": "FLAC"}, "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus.ogg": {"format": "OGG", "subtype": "OPUS"},
}  # fmt: skip
SETTINGS = (
    ("ast", "config.json"), ("ast", "preprocessor_config.json"),
    ("whisper", "config.json"), ("whisper", "preprocessor_config.json"), ("whisper", "generation_config.json"),
)  # fmt: skip
TABLES = (
    ("ast", "metadata.csv"),
    ("ast", "metadata.jsonl"),
    ("whisper", "metadata.csv"),
    ("whisper", "metadata.jsonl"),
)
KINDS = ("wav", "other", "settings", "wav", "other", "table", "wav", "settings", "other", "table")


class TooLong(BaseException):
    """An input took longer than it may; nothing but this test stops it."""


@pytest.fixture
def field(tmp_path_factory):
    """Whole files of every kind, of which damaged ones are made."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_tiny(folder / "ast")
    write_whisper(folder / "whisper")
    (folder / "audio").mkdir()
    for name, how in WAVS.items():
        soundfile.write(folder / "audio" / f"{name}.wav", tone(440, 0.3), RATE_HZ, **{"format": "WAV", **how})
    stereo = np.stack([tone(440, 0.3, 8_000), tone(300, 0.3, 8_000)], axis=1)
    soundfile.write(folder / "audio" / "stereo.wav", stereo, 8_000)
    for name, how in OTHERS.items():
        soundfile.write(folder / "audio" / name, tone(440, 0.3), RATE_HZ, **how)
    (folder / "data").mkdir()
    for number in range(6):
        soundfile.write(folder / "data" / f"{number}.wav", sound(number, 0.2), RATE_HZ)
    return folder


def rows_of(model: str) -> list[tuple[str, str]]:
    """File names with a label, or with a transcript."""
    said = TINY_LABELS if model == "ast" else ("an and", "the", "on", "a", "in the")
    return [(f"{number}.wav", said[number // 2]) for number in range(6)]


class Case:
    """One damaged input: the command that reads it, and what has to be so."""

    def __init__(self, number: int, field: Path, folder: Path) -> None:
        self._mutator, self.folder = Mutator(number), folder
        kind = KINDS[number % len(KINDS)]
        turn = number // len(KINDS)
        self.sure_to_be_refused = False
        self.readers: tuple = ()
        getattr(self, f"_{kind}")(field, turn)

    def _wav(self, field: Path, turn: int) -> None:
        names = [*(f"{name}.wav" for name in WAVS), "stereo.wav"]
        self._audio(field, names[turn % len(names)])
        self.readers = (read_waveform, streamed, read_recording)

    def _other(self, field: Path, turn: int) -> None:
        self._audio(field, list(OTHERS)[turn % len(OTHERS)])
        self.readers = (read_waveform, streamed)
        try:
            soundfile.SoundFile(self.damaged).close()
        except soundfile.LibsndfileError:
            self.sure_to_be_refused = True

    def _audio(self, field: Path, name: str) -> None:
        self.damaged = self.folder / name
        self.damaged.write_bytes(self._mutator.bytes_of((field / "audio" / name).read_bytes()))
        self.model = field / "ast"
        self.command = ["classify", str(self.damaged), "--model", str(self.model)]

    def _settings(self, field: Path, turn: int) -> None:
        model, name = SETTINGS[turn % len(SETTINGS)]
        self.model = shutil.copytree(field / model, self.folder / model)
        self.damaged = self.model / name
        content = self._mutator.json_of(self.damaged.read_text())
        self.damaged.write_bytes(content)
        self.sure_to_be_refused = not is_json(content)
        clip = str(field / "data" / "0.wav")
        command = "classify" if model == "ast" else "transcribe"
        self.command = [command, clip, "--model", str(self.model)]
        if model == "whisper":
            self.command += ["--temperatures", "0", "--threads", "1"]

    def _table(self, field: Path, turn: int) -> None:
        model, name = TABLES[turn % len(TABLES)]
        shutil.copytree(field / "data", self.folder / "data")
        column = "label" if model == "ast" else "text"
        rows = [("file_name", column), *rows_of(model)]
        lines = [",".join(row) for row in rows]
        if name.endswith("l"):
            lines = [json.dumps(dict(zip(rows[0], row))) for row in rows[1:]]
        self.damaged = self.folder / "data" / name
        content = self._mutator.table_of(lines, "," if name.endswith("v") else '"')
        self.damaged.write_bytes(content)
        self.sure_to_be_refused = not is_text(content)
        self.model = field / model
        self.command = ["eval", str(self.model), "--data", str(self.folder / "data"), "--threads", "1"]


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode())
    except ValueError:
        return False
    return True


def check(case: Case, capsys: pytest.CaptureFixture[str]) -> int:
    """The status that the command ended with, which has to suit what it said."""
    status = within_time(lambda: run(case.command))
    printed = capsys.readouterr()
    complaints = [line for line in printed.err.splitlines() if line.startswith("leanear: ")]
    assert "Traceback" not in printed.err
    if status == 0:
        assert complaints == []
        assert not case.sure_to_be_refused
        assert printed.out or case.command[0] == "transcribe"
    else:
        assert status in (REFUSED, NO_NUMBER)
        assert len(complaints) == 1
        assert complaints == printed.err.splitlines()[-1:]
        named = (case.damaged, case.damaged.parent, *([case.model] if status == NO_NUMBER else ()))
        assert any(str(path) in complaints[0] for path in named), complaints
        assert printed.out == ""
    if case.readers:
        within_time(lambda: compare_readers(case, status))
    return status


def compare_readers(case: Case, status: int) -> None:
    """The readers hear the same, or all refuse; a device may refuse what needs an audio library, by name."""
    heard, said = {}, []
    for reader in case.readers:
        try:
            samples = reader(case.damaged, RATE_HZ, lambda _note: None)
        except BadInput as error:
            said.append(str(error))
            if reader is read_recording and "ffmpeg" in said[-1]:
                continue
            samples = np.zeros(0)
        heard[reader] = samples
    whole = heard[read_waveform]
    assert (status == REFUSED) == (len(whole) == 0)
    if len(whole) == 0:
        assert all(len(samples) == 0 for samples in heard.values()), said
        return
    with AudioFile(case.damaged, lambda _note: None) as audio:
        own_rate = audio.sample_rate_hz == RATE_HZ
    for reader, samples in heard.items():
        assert abs(len(samples) - len(whole)) <= (0 if own_rate else 1), (reader, said)
        if own_rate:
            np.testing.assert_allclose(samples, whole, atol=1e-6)


def within_time(work):
    def stop(number, _frame):
        raise TooLong(f"more than {LONGEST_S if number == signal.SIGPROF else LONGEST_WAIT_S} s")

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, LONGEST_S), (signal.SIGALRM, signal.ITIMER_REAL, LONGEST_WAIT_S))
    before = [signal.signal(number, stop) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        return work()
    finally:
        for (number, timer, _), earlier in zip(limits, before):
            signal.setitimer(timer, 0)
            signal.signal(number, earlier)


def damaged_inputs(numbers: range, field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was wrong, input by input; statuses of both kinds have to come up."""
    wrong, statuses = [], set()
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        case = Case(number, field, folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                statuses.add(check(case, capsys))
        except (Exception, TooLong) as error:  # noqa: BLE001
            wrong.append(f"{number} ({case.damaged.name}, {case.command[0]}): {type(error).__name__}: {error}")
            capsys.readouterr()
        else:
            shutil.rmtree(folder)
    assert {0, REFUSED} <= statuses
    return wrong


def test_damaged_inputs(field, tmp_path, capsys):
    assert damaged_inputs(range(SHORT), field, tmp_path, capsys) == []


@pytest.mark.slow
def test_many_damaged_inputs(field, tmp_path, capsys):
    assert damaged_inputs(range(LONG), field, tmp_path, capsys) == []


def test_whole_inputs_pass(field, tmp_path, capsys):
    """What is damaged elsewhere is whole here, so that a refusal there is the damage's."""
    for path in sorted((field / "audio").iterdir()):
        assert run(["classify", str(path), "--model", str(field / "ast")]) == 0
    for model in ("ast", "whisper"):
        table = "\n".join(["file_name," + ("label" if model == "ast" else "text"), *map(",".join, rows_of(model))])
        (field / "data" / "metadata.csv").write_text(table)
        assert run(["eval", str(field / model), "--data", str(field / "data"), "--threads", "1"]) == 0
    assert "leanear: " not in capsys.readouterr().err
