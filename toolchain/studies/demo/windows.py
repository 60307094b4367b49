"""What one window of the demo Whisper holds: utterances on a timeline, noise under them, and the tokens to be said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import WhisperTokenizer

from leanear.studies.demo.acoustics import NOISES
from leanear.studies.demo.speech import SAMPLE_RATE_HZ
from leanear.studies.demo.tokens import TIMESTAMP_SECONDS, WINDOW_SECONDS, timestamp
from leanear.studies.demo.utterances import Speech

POSITION_SAMPLES = round(TIMESTAMP_SECONDS * SAMPLE_RATE_HZ)  # of one encoder position
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE_HZ
IGNORED = -100
_LEAST_HEARD = 2_400  # samples, of an utterance that the window's end cuts


@dataclass(frozen=True)
class Timeline:
    """What is where in one window; the last utterance may run beyond its end."""

    utterances: tuple[int, ...]
    starts: tuple[int, ...]  # samples
    samples: int  # of the window
    heard: int  # samples with noise; after them, digital silence
    cut: bool = False  # the last utterance is cut by the window's end


@dataclass(frozen=True)
class Shares:
    """How often a full window holds what; the rest holds one utterance."""

    two: float = 0.25
    cut: float = 0.12
    lone_cut: float = 0.02
    none: float = 0.12


@dataclass(frozen=True)
class Conditions:
    """From which ranges a window's conditions are drawn."""

    snr_db: tuple[float, float]
    peak: tuple[float, float]


@dataclass(frozen=True)
class Windows:
    """A batch of windows with the conditions that each was made under."""

    waves: torch.Tensor  # float32 (B, samples)
    snr_db: np.ndarray
    noise: np.ndarray  # int64 (B,), index into NOISES


def snug_timeline(speech: Speech, rng: np.random.Generator, two_share: float) -> Timeline:
    """One utterance, or two short ones, in a window no longer than they need."""
    first = int(rng.integers(len(speech.utterances)))
    start = int(rng.uniform(0, 0.4) * SAMPLE_RATE_HZ)
    end = start + int(speech.dry_samples[first])
    utterances, starts = [first], [start]
    if rng.random() < two_share:
        second, gap = int(rng.integers(len(speech.utterances))), int(rng.uniform(0.1, 0.8) * SAMPLE_RATE_HZ)
        if end + gap + speech.dry_samples[second] < WINDOW_SAMPLES - 800:
            utterances, starts = [first, second], [start, end + gap]
            end += gap + int(speech.dry_samples[second])
    samples = min(WINDOW_SAMPLES, end + int(rng.uniform(0.05, 0.35) * SAMPLE_RATE_HZ))
    samples = -(-samples // POSITION_SAMPLES) * POSITION_SAMPLES
    return Timeline(tuple(utterances), tuple(starts), samples, samples)


def full_timeline(speech: Speech, rng: np.random.Generator, shares: Shares) -> Timeline:
    """A window of 6 s with one utterance or two anywhere in it, with one that its end cuts, or with none."""
    kind = rng.random()
    if kind < shares.none:
        heard = WINDOW_SAMPLES if rng.random() < 0.5 else int(rng.uniform(0, WINDOW_SAMPLES))
        return Timeline((), (), WINDOW_SAMPLES, heard)
    kind -= shares.none
    if kind < shares.lone_cut:
        only = int(rng.integers(len(speech.utterances)))
        part = int(rng.uniform(_LEAST_HEARD, 0.8 * speech.dry_samples[only]))
        return Timeline((only,), (WINDOW_SAMPLES - part,), WINDOW_SAMPLES, WINDOW_SAMPLES, cut=True)
    if kind - shares.lone_cut < shares.cut:
        return _cut_timeline(speech, rng)
    snug = snug_timeline(speech, rng, two_share=shares.two)
    shift, heard = 0, snug.samples
    if rng.random() < 0.5:
        shift = int(rng.uniform(0, WINDOW_SAMPLES - snug.samples))
    if rng.random() < 0.5:
        heard = WINDOW_SAMPLES - shift
    starts = tuple(start + shift for start in snug.starts)
    return Timeline(snug.utterances, starts, WINDOW_SAMPLES, heard + shift)


def _cut_timeline(speech: Speech, rng: np.random.Generator) -> Timeline:
    """A whole utterance and behind it one that the window's end cuts."""
    first, second = (int(number) for number in rng.integers(len(speech.utterances), size=2))
    gap = int(rng.uniform(0.1, 0.8) * SAMPLE_RATE_HZ)
    latest = WINDOW_SAMPLES - _LEAST_HEARD - gap - int(speech.dry_samples[first])
    earliest = WINDOW_SAMPLES - int(speech.dry_samples[second]) + 1_600 - gap - int(speech.dry_samples[first])
    start = int(rng.uniform(min(max(0, earliest), latest), latest))
    starts = (start, start + int(speech.dry_samples[first]) + gap)
    cut = starts[1] + int(speech.dry_samples[second]) > WINDOW_SAMPLES
    return Timeline((first, second), starts, WINDOW_SAMPLES, WINDOW_SAMPLES, cut)


def mix_windows(
    speech: Speech, noises: torch.Tensor, timelines: list[Timeline], conditions: Conditions, rng: np.random.Generator
) -> Windows:
    """The sound of a batch; shorter windows are silent after their end. `noises` is float32 (kinds, samples)."""
    batch, width = len(timelines), max(timeline.samples for timeline in timelines)
    snr_db = rng.uniform(*conditions.snr_db, batch)
    peak = np.exp(rng.uniform(np.log(conditions.peak[0]), np.log(conditions.peak[1]), batch))
    noise = rng.integers(0, len(NOISES), batch)
    noise_start = rng.integers(0, noises.shape[1] - WINDOW_SAMPLES, batch)
    softer = 10 ** (-rng.uniform(0, 6, (batch, 2)) / 20)
    waves = torch.zeros(batch, width)
    for row, timeline in enumerate(timelines):
        wave, spoken = waves[row, : timeline.samples], 0
        for turn, (number, start) in enumerate(zip(timeline.utterances, timeline.starts, strict=True)):
            sound = np.asarray(speech.samples[speech.offsets[number] : speech.offsets[number + 1]], np.float32)
            sound = sound[: timeline.samples - start]
            wave[start : start + len(sound)] += torch.from_numpy(sound) * float(softer[row, turn])
            spoken += len(sound)
        power = wave.square().sum() / spoken if spoken else torch.tensor(1.0)
        background = noises[noise[row], noise_start[row] : noise_start[row] + timeline.heard]
        wave[: timeline.heard] += torch.sqrt(power / 10 ** (snr_db[row] / 10)) * background
    waves *= (torch.from_numpy(peak).float() / waves.abs().amax(1).clamp(min=1e-6))[:, None]
    return Windows(waves, snr_db, noise)


@dataclass(frozen=True)
class Script:
    """Tokens and phonemes of a split's utterances, and the numbers of the tokens around them."""

    texts: list[list[int]]
    phonemes: list[list[int]]  # 1 and up; 0 is CTC's blank
    start: tuple[int, int, int]  # <|startoftranscript|>, <|en|>, <|transcribe|>
    end: int
    no_timestamps: int
    no_speech: int
    timestamp_zero: int


def make_script(speech: Speech, tokenizer: WhisperTokenizer, units: tuple[str, ...]) -> Script:
    """The script of a split; `units` are the phonemes that CTC tells apart."""
    number = tokenizer.convert_tokens_to_ids
    texts = tokenizer([f" {one.text}" for one in speech.utterances], add_special_tokens=False)["input_ids"]
    unit_number = {unit: 1 + place for place, unit in enumerate(units)}
    return Script(
        texts=texts,
        phonemes=[[unit_number[phoneme] for phoneme in row if phoneme in unit_number] for row in speech.phonemes],
        start=(number("<|startoftranscript|>"), number("<|en|>"), number("<|transcribe|>")),
        end=number("<|endoftext|>"),
        no_timestamps=number("<|notimestamps|>"),
        no_speech=number("<|nospeech|>"),
        timestamp_zero=number(timestamp(0)),
    )


def tokens_of(script: Script, speech: Speech, timeline: Timeline, timestamps: bool) -> tuple[list[int], list[int]]:
    """What the decoder is given and what it should say next at each place (`IGNORED`: anything), as Whisper is taught.

    A cut utterance gets its start and no text. An empty window's first target is `<|nospeech|>`, and after the prompt
    its transcript ends at once.
    """
    ids = [*script.start] if timestamps else [*script.start, script.no_timestamps]
    whole = len(timeline.utterances) - timeline.cut
    for place, (number, start) in enumerate(zip(timeline.utterances, timeline.starts, strict=True)):
        begin = script.timestamp_zero + round(start / POSITION_SAMPLES)
        finish = script.timestamp_zero + round((start + int(speech.dry_samples[number])) / POSITION_SAMPLES)
        if place == whole:
            ids += [begin] if timestamps else []
        else:
            ids += [begin, *script.texts[number], finish] if timestamps else script.texts[number]
    if not timeline.utterances and timestamps:
        ids.append(script.timestamp_zero)
    given, wanted = ids, [*ids[1:], script.end]
    if not timeline.utterances:
        wanted[:2] = [script.no_speech, IGNORED]
    if not timestamps:
        wanted[2] = IGNORED
    return given, wanted


def token_batch(
    script: Script, speech: Speech, timelines: list[Timeline], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder inputs and targets, int64 (B, tokens); half of the windows with timestamps, and every cut one."""
    rows = [tokens_of(script, speech, one, one.cut or rng.random() < 0.5) for one in timelines]
    length = max(len(given) for given, _ in rows)
    given = torch.full((len(rows), length), script.end)
    wanted = torch.full((len(rows), length), IGNORED)
    for row, (inputs, targets) in enumerate(rows):
        given[row, : len(inputs)] = torch.tensor(inputs)
        wanted[row, : len(targets)] = torch.tensor(targets)
    return given, wanted
