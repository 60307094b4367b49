"""Words in rooms: reverberation, microphone tilt, background noise, position and level, on whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from leanear.studies.demo.speech import CLIP_SAMPLES, SAMPLE_RATE_HZ

NOISES = ("white", "pink", "hum", "babble")
RESPONSE_SAMPLES = 6_000
NOISE_SECONDS = 60
_FFT_SAMPLES = 24_576


@dataclass(frozen=True)
class Scene:
    """What a split's clips are mixed from."""

    words: torch.Tensor  # float32, all words end to end
    offsets: np.ndarray  # int64 (N + 1,), where each word begins
    labels: np.ndarray  # int64 (N,)
    responses: torch.Tensor  # complex64 (R, bins), spectra of the room responses; number 0 is no room
    response_rt60_s: np.ndarray  # float (R,)
    noises: torch.Tensor  # float32 (kinds, samples), mean square 1


@dataclass(frozen=True)
class Ranges:
    """From which ranges a clip's conditions are drawn."""

    snr_db: tuple[float, float]
    peak: tuple[float, float]
    speed: tuple[float, float] = (1.0, 1.0)
    room_share: float = 0.75
    odd_length_share: float = 0.2
    samples: tuple[int, int] = (14_400, 17_600)


@dataclass(frozen=True)
class Mixed:
    """A batch of clips with the conditions that each was made under."""

    waves: torch.Tensor  # float32 (B, samples), zero after a clip's own length
    lengths: np.ndarray  # int64 (B,), samples
    labels: np.ndarray
    words: np.ndarray  # int64 (B,), which word of the scene
    snr_db: np.ndarray  # the word's mean power over the noise's long-term mean power
    noise: np.ndarray  # int64 (B,), index into NOISES
    rt60_s: np.ndarray


def make_scene(samples: np.ndarray, offsets: np.ndarray, labels: np.ndarray, rooms: int, seed: int) -> Scene:
    """The scene of one split; its babble is made of its own words, so no voice crosses from another split."""
    rng = np.random.default_rng([seed, 77])
    responses, rt60_s = make_responses(rooms, rng)
    spectra = torch.fft.rfft(torch.from_numpy(responses), n=_FFT_SAMPLES)
    noises = torch.from_numpy(make_noises(samples, offsets, rng))
    words = torch.from_numpy(samples.astype(np.float32) / 32768)
    return Scene(words, offsets, labels, spectra, rt60_s, noises)


def make_responses(rooms: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Room responses, float32 (rooms, 6000) with a direct path at 0, and their RT60 in seconds; number 0 is a unit.

    Exponentially decaying noise behind a direct path and a few early echoes; a first-order tilt stands for the
    microphone.
    """
    responses = np.zeros((rooms, RESPONSE_SAMPLES), np.float32)
    responses[:, 0] = 1
    rt60_s = np.zeros(rooms)
    time_s = np.arange(RESPONSE_SAMPLES) / SAMPLE_RATE_HZ
    for room in range(1, rooms):
        rt60_s[room] = rng.uniform(0.1, 0.7)
        tail = rng.standard_normal(RESPONSE_SAMPLES) * 10 ** (-3 * time_s / rt60_s[room])
        tail[: int(rng.uniform(0.002, 0.012) * SAMPLE_RATE_HZ)] = 0
        echoes = rng.integers(16, 640, 6)
        tail /= np.sqrt(np.sum(tail**2))
        response = tail * 10 ** (-rng.uniform(-3, 12) / 20)
        response[echoes] += rng.uniform(-0.4, 0.4, 6)
        response[0] = 1
        tilt = rng.uniform(-0.6, 0.4)
        response[1:] -= tilt * response[:-1].copy()
        responses[room] = response / np.sqrt(np.sum(response**2))
    return responses, rt60_s


def make_noises(samples: np.ndarray, offsets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One minute of each kind in NOISES, float32 (kinds, samples), each of mean square 1."""
    count = NOISE_SECONDS * SAMPLE_RATE_HZ
    white = rng.standard_normal(count)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20 * NOISE_SECONDS)), n=count)
    time_s = np.arange(count) / SAMPLE_RATE_HZ
    hum = 0.15 * rng.standard_normal(count)
    for mains_hz, start in ((50, 0), (60, count // 2)):
        for harmonic in range(1, 16):
            wave = np.sin(2 * np.pi * mains_hz * harmonic * time_s + rng.uniform(0, 2 * np.pi)) / harmonic**0.7
            hum[start : start + count // 2] += wave[start : start + count // 2]
    babble = np.zeros(count)
    for _ in range(6):
        position = int(rng.integers(0, 8_000))
        while position < count:
            word = int(rng.integers(len(offsets) - 1))
            piece = samples[offsets[word] : offsets[word + 1]][: count - position].astype(np.float64)
            babble[position : position + len(piece)] += piece
            position += len(piece) + int(rng.integers(0, 4_000))
    kinds = np.stack([white, pink, hum, babble])
    return (kinds / np.sqrt(np.mean(kinds**2, axis=1, keepdims=True))).astype(np.float32)


def mix(scene: Scene, words: np.ndarray, ranges: Ranges, rng: np.random.Generator) -> Mixed:
    """One clip for each of `words` (indices into the scene), under conditions drawn from `ranges`."""
    batch, width = len(words), ranges.samples[1]
    odd = rng.random(batch) < ranges.odd_length_share
    lengths = np.where(odd, rng.integers(ranges.samples[0], ranges.samples[1] + 1, batch), CLIP_SAMPLES)
    speed = rng.uniform(*ranges.speed, batch)
    room = np.where(rng.random(batch) < ranges.room_share, rng.integers(1, len(scene.responses), batch), 0)
    noise = rng.integers(0, len(NOISES), batch)
    snr_db = rng.uniform(*ranges.snr_db, batch)
    peak = np.exp(rng.uniform(np.log(ranges.peak[0]), np.log(ranges.peak[1]), batch))
    noise_start = rng.integers(0, scene.noises.shape[1] - width, batch)
    placed = rng.random(batch)

    dry = torch.zeros(batch, CLIP_SAMPLES)
    spoken = np.zeros(batch, np.int64)
    for row, word in enumerate(words):
        wave = scene.words[scene.offsets[word] : scene.offsets[word + 1]]
        wave = _resampled(wave, speed[row])[:CLIP_SAMPLES]
        spoken[row] = len(wave)
        # The word lies inside the shorter of the clip and one second: a model's window may end there.
        start = int(placed[row] * max(0, min(lengths[row], CLIP_SAMPLES) - len(wave)))
        dry[row, start : start + len(wave)] = wave[: CLIP_SAMPLES - start]
    wet = torch.fft.irfft(torch.fft.rfft(dry, n=_FFT_SAMPLES) * scene.responses[room], n=_FFT_SAMPLES)[:, :width]
    power = wet.square().sum(1) / torch.from_numpy(spoken)
    level = torch.sqrt(power / torch.from_numpy(10 ** (snr_db / 10)).float())
    background = torch.stack([scene.noises[k, s : s + width] for k, s in zip(noise, noise_start, strict=True)])
    waves = wet + level[:, None] * background
    waves *= torch.arange(width)[None] < torch.from_numpy(lengths)[:, None]
    waves *= (torch.from_numpy(peak).float() / waves.abs().amax(1))[:, None]
    return Mixed(waves, lengths, scene.labels[words], words, snr_db, noise, scene.response_rt60_s[room])


def _resampled(wave: torch.Tensor, speed: float) -> torch.Tensor:
    """The wave played `speed` times as fast, by linear interpolation (pitch and formants move with it)."""
    if speed == 1.0:
        return wave
    return torch.nn.functional.interpolate(wave[None, None], size=int(len(wave) / speed), mode="linear")[0, 0]
