"""Spoken sentences: espeak-ng says them, each in a room of its own; kept as one long row of samples and a table."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.signal import fftconvolve

from leanear.runtimes.files import replaced_folder
from leanear.studies.demo.acoustics import make_responses
from leanear.studies.demo.sentences import draw_sentences
from leanear.studies.demo.speech import SAMPLE_RATE_HZ, as_int16, trimmed
from leanear.studies.demo.words import ACCENTS, VOICES

LONGEST_SECONDS = 4.6
ROOM_SHARE = 0.75
# Played faster or slower, pitch and formants move along: more voices than espeak-ng has. In training only.
TRAIN_SPEED = (0.88, 1.14)
_TAIL_SAMPLES = 4_800  # of reverberation, kept behind the last sound
_MARKS = re.compile(r"[',%=#2-]")


@dataclass(frozen=True)
class Utterance:
    """One sentence as one voice says it in one room."""

    text: str
    voice: str
    accent: str
    words_per_minute: int
    pitch: int
    speed: float
    room: int  # number of the split's room responses; 0 is no room


@dataclass(frozen=True)
class Speech:
    """A split's utterances and their sound."""

    utterances: list[Utterance]
    phonemes: list[list[str]]  # of each utterance, as espeak-ng spells them, without stress
    samples: np.ndarray  # int16, all utterances end to end, each with its room and peak 0.7
    offsets: np.ndarray  # int64 (N + 1,), where each begins
    dry_samples: np.ndarray  # int64 (N,), how long each is without its room's tail
    response_rt60_s: np.ndarray  # float (rooms,)


def plan_utterances(split: str, count: int, rooms: int, seed: int) -> list[Utterance]:
    """`count` utterances of one split's sentences; its voices take turns, the rest is drawn."""
    rng = np.random.default_rng([seed, 33, *split.encode()])
    voices, plan = VOICES[split], []
    for number, text in enumerate(draw_sentences(split, count, seed)):
        plan.append(
            Utterance(
                text=text,
                voice=voices[number % len(voices)],
                accent=ACCENTS[int(rng.integers(len(ACCENTS)))],
                words_per_minute=int(rng.integers(150, 226)),
                pitch=int(rng.integers(15, 91)),
                speed=round(float(rng.uniform(*TRAIN_SPEED)), 3) if split == "train" else 1.0,
                room=int(rng.integers(1, rooms)) if rng.random() < ROOM_SHARE else 0,
            )
        )
    return plan


def speak(utterance: Utterance) -> tuple[np.ndarray, list[str]]:
    """One utterance with no room, float32 at 16 kHz with its silence trimmed, and its phonemes."""
    command = ["espeak-ng", "-v", f"{utterance.accent}+{utterance.voice}", "-s", str(utterance.words_per_minute)]
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as spelling:
        command += ["-p", str(utterance.pitch), "-x", "--sep=_", f"--phonout={spelling.name}", "--stdout"]
        command += ["--", utterance.text]
        wave = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        spelt = spelling.read()
    samples, rate_hz = soundfile.read(io.BytesIO(wave), dtype="float32")
    phonemes = [_MARKS.sub("", mark) for mark in re.split(r"[_\s]+", spelt)]
    return trimmed(soxr.resample(samples, rate_hz * utterance.speed, SAMPLE_RATE_HZ)), [p for p in phonemes if p]


def in_room(dry: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The utterance as int16 with its room's response and 0.3 s of the tail."""
    return as_int16(fftconvolve(dry, response)[: len(dry) + _TAIL_SAMPLES])


def make_speech(
    folder: Path, split: str, count: int, rooms: int, seed: int, workers: int, advance: Callable[[], None]
) -> None:
    """Writes a split's speech to `folder`; an utterance longer than 4.6 s is left out."""
    plan = plan_utterances(split, count, rooms, seed)
    responses, rt60_s = make_responses(rooms, np.random.default_rng([seed, 35, *split.encode()]))

    def made(utterance: Utterance) -> tuple[np.ndarray, int, list[str]]:
        dry, phonemes = speak(utterance)
        return in_room(dry, responses[utterance.room]), len(dry), phonemes

    kept, lengths, dry_samples = [], [], []
    with replaced_folder(folder) as fresh:
        # Threads suffice: most of the time goes to the espeak-ng processes.
        with ThreadPoolExecutor(workers) as pool, (fresh / "samples.int16").open("wb") as sound:
            remaining = iter(plan)
            while part := list(islice(remaining, 256)):
                for utterance, (samples, dry, phonemes) in zip(part, pool.map(made, part), strict=True):
                    if dry <= LONGEST_SECONDS * SAMPLE_RATE_HZ:
                        sound.write(samples.tobytes())
                        kept.append({**asdict(utterance), "phonemes": phonemes})
                        lengths.append(len(samples))
                        dry_samples.append(dry)
                    advance()
        table = {"utterances": kept, "samples": lengths, "dry_samples": dry_samples, "rt60_s": rt60_s.tolist()}
        (fresh / "table.json").write_text(json.dumps(table), encoding="utf-8")


def read_speech(folder: Path) -> Speech:
    """What `make_speech` wrote."""
    table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    phonemes = [row.pop("phonemes") for row in table["utterances"]]
    return Speech(
        utterances=[Utterance(**row) for row in table["utterances"]],
        phonemes=phonemes,
        samples=np.fromfile(folder / "samples.int16", np.int16),
        offsets=np.concatenate([[0], np.cumsum(table["samples"])]).astype(np.int64),
        dry_samples=np.array(table["dry_samples"], np.int64),
        response_rt60_s=np.array(table["rt60_s"]),
    )
