"""Labelled or transcribed waveforms in one plain file, for a device: no audio decoder is needed to read them.

16-bit samples take about as few bytes there as in FLAC, by numpy alone, without loss. As FLAC's fixed predictors do it:
a frame of samples is what a polynomial through the few samples before each leaves, of the order that leaves least; and
as its residuals are written (Rice 1979): the low bits as they are, as many as suits the stretch, and the rest as so
many zeros and a one. Both are of a form that numpy reads without a loop over samples.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError  # of a damaged header, by numpy
from typing import Any, Dict, Tuple

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file

FULL_SCALE = np.float32(32768.0)
FRAME, STRETCH = 4096, 512  # samples that have one order, and those that have one number of low bits
ORDERS, MOST_LOW_BITS = 4, 15
FRAMES_AT_ONCE = 128  # what is in memory at a time
STREAMS = ("sizes", "orders", "low_bits", "low", "high")
ARRAYS = ("offsets", "label_ids", "names", "labels", "sample_rate_hz")


def in_16_bits(waveform: np.ndarray) -> np.ndarray:
    """int16 (samples,): the nearest 16-bit value of each float sample, those beyond full scale cut to it."""
    scaled = np.rint(np.asarray(waveform, np.float32) * FULL_SCALE)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def as_floats(pcm: np.ndarray) -> np.ndarray:
    """float32 samples in [-1, 1) of int16 ones, exactly."""
    return pcm.astype(np.float32) / FULL_SCALE


def is_16_bit(waveform: np.ndarray) -> bool:
    """Whether every sample is a 16-bit value already, so that nothing is lost."""
    return bool((as_floats(in_16_bits(waveform)) == waveform).all())


def pack(pcm: np.ndarray) -> Dict[str, np.ndarray]:
    """Arrays by the names of STREAMS, of int16 samples."""
    frames = np.zeros((-(-len(pcm) // FRAME), FRAME), np.int16)
    frames.reshape(-1)[: len(pcm)] = pcm
    blocks = [_packed(frames[n : n + FRAMES_AT_ONCE]) for n in range(0, len(frames), FRAMES_AT_ONCE)]
    orders, low_bits, low, high = ([block[part] for block in blocks] for part in range(4))
    none = [np.zeros(0, np.uint8)]
    return {
        "sizes": np.array([len(pcm), *(size for pair in zip(low, high) for size in map(len, pair))], np.int64),
        "orders": np.concatenate(orders or none),
        "low_bits": np.concatenate(low_bits or none),
        "low": np.concatenate(low or none),
        "high": np.concatenate(high or none),
    }


def unpack(
    sizes: np.ndarray, orders: np.ndarray, low_bits: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The int16 samples that `pack` was given.

    Raises:
        ValueError: the arrays are not of one packing.
    """
    ends = np.cumsum(sizes[1:].reshape(-1, 2), axis=0)
    frames = np.empty((len(orders), FRAME), np.int16)
    for number, (start, end) in enumerate(zip(np.concatenate([[[0, 0]], ends[:-1]]), ends)):
        first = number * FRAMES_AT_ONCE
        block = slice(first, first + FRAMES_AT_ONCE)
        frames[block] = _unpacked(orders[block], low_bits[block], low[start[0] : end[0]], high[start[1] : end[1]])
    return frames.reshape(-1)[: sizes[0]]


def _packed(frames: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Orders (frames,), numbers of low bits (frames, stretches), and the bytes of low bits and of the rest."""
    folded = np.stack([_folded(frames, order) for order in range(ORDERS)])
    stretches = folded.reshape(ORDERS, len(frames), -1, STRETCH)
    cost = np.stack(
        [(stretches >> bits).sum(axis=3, dtype=np.int64) + bits * STRETCH for bits in range(MOST_LOW_BITS + 1)]
    )
    orders = cost.min(axis=0).sum(axis=2).argmin(axis=0)
    each = np.arange(len(frames))
    low_bits, chosen = cost[:, orders, each].argmin(axis=0), stretches[orders, each]
    low = [_bits_of(chosen[low_bits == bits], bits) for bits in range(1, MOST_LOW_BITS + 1)]
    ones = np.cumsum((chosen >> low_bits[..., None]).reshape(-1).astype(np.int64) + 1) - 1
    high = np.zeros(ones[-1] + 1, np.uint8)
    high[ones] = 1
    return orders.astype(np.uint8), low_bits.astype(np.uint8), np.concatenate(low), np.packbits(high)


def _unpacked(orders: np.ndarray, low_bits: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The frames of one block."""
    zeros = np.diff(np.flatnonzero(np.unpackbits(high)), prepend=-1) - 1
    folded = zeros.astype(np.uint16).reshape(*low_bits.shape, STRETCH) << low_bits[..., None].astype(np.uint16)
    place = 0
    for bits in range(1, MOST_LOW_BITS + 1):
        stretches = low_bits == bits
        size = int(stretches.sum()) * STRETCH * bits // 8
        folded[stretches] |= _from_bits(low[place : place + size], bits)
        place += size
    return _unfolded(folded.reshape(len(orders), FRAME), orders)


def _folded(frames: np.ndarray, order: int) -> np.ndarray:
    """uint16: what is left of each sample, modulo 2**16, with its sign in the lowest bit."""
    left = frames
    for _ in range(order):
        left = np.diff(left, axis=1, prepend=np.int16(0))
    return ((left << 1) ^ (left >> 15)).view(np.uint16)


def _unfolded(folded: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The samples whose rest that is."""
    left = (folded >> 1).view(np.int16) ^ -(folded & 1).view(np.int16)
    for order in range(1, ORDERS):
        rows = orders >= order
        left[rows] = np.cumsum(left[rows], axis=1, dtype=np.int16)
    return left


def _bits_of(stretches: np.ndarray, bits: int) -> np.ndarray:
    """The low bits of each value, one after another, as bytes."""
    return np.packbits((stretches[..., None] >> np.arange(bits, dtype=np.uint16) & 1).astype(np.uint8))


def _from_bits(data: np.ndarray, bits: int) -> np.ndarray:
    """uint16 (stretches, STRETCH) of those bytes."""
    digits = np.unpackbits(data).reshape(-1, STRETCH, bits)
    values = np.zeros(digits.shape[:2], np.uint16)
    for place in range(bits):
        values |= digits[..., place].astype(np.uint16) << np.uint16(place)
    return values


@dataclass(frozen=True)
class Clips:
    """Mono clips of one sample rate.

    waveforms: float32 (samples,) each, in [-1, 1]; label_ids: index into `labels` per clip; names: file names;
    labels: the model's label names in the order of its logits; texts: what is said in each clip, or None where clips
    are labelled; tags: bool (clips, labels), which labels each clip has, where it may have any number of them, else
    None. Only clips of one label each have label_ids, and transcribed clips have no labels either.
    """

    waveforms: tuple[np.ndarray, ...]
    label_ids: np.ndarray
    names: tuple[str, ...]
    labels: tuple[str, ...]
    sample_rate_hz: int
    texts: tuple[str, ...] | None = None
    tags: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, part: slice) -> Clips:
        """Some of the clips, one after another."""
        return replace(
            self,
            waveforms=self.waveforms[part],
            label_ids=self.label_ids[part],
            names=self.names[part],
            texts=None if self.texts is None else self.texts[part],
            tags=None if self.tags is None else self.tags[part],
        )


def clips_in_16_bits(clips: Clips) -> tuple[Clips, int]:
    """The clips as a device gets them, in 16-bit values, and how many of them were finer and had to be rounded."""
    finer = [not is_16_bit(waveform) for waveform in clips.waveforms]
    rounded = tuple(
        as_floats(in_16_bits(waveform)) if fine else waveform for waveform, fine in zip(clips.waveforms, finer)
    )
    return replace(clips, waveforms=rounded), sum(finer)


def write_clips(path: Path, clips: Clips) -> None:
    """Write clips as an .npz of plain arrays, whole or not at all.

    Samples that are all 16-bit values are packed (`leanear.runtimes.clips`), others stay float32 as they are; both
    are read as they were.
    """
    samples = (np.concatenate(clips.waveforms) if clips.waveforms else np.zeros(0)).astype(np.float32)
    kept = pack(in_16_bits(samples)) if is_16_bit(samples) else {"samples": samples}
    with replaced_file(Path(path)) as part, open(part, "wb") as stream:
        arrays: Any = {**kept, **_described(clips)}
        np.savez(stream, **arrays)


def clips_sha256(clips: Clips) -> str:
    """Hex sha256 of what the clips are, whatever file they are in."""
    digest = hashlib.sha256()
    for waveform in clips.waveforms:
        digest.update(np.ascontiguousarray(waveform, "<f4").tobytes())
    for name, array in sorted(_described(clips).items()):
        digest.update(name.encode() + (repr(array.tolist())).encode())
    return digest.hexdigest()


def _described(clips: Clips) -> Dict[str, np.ndarray]:
    """All arrays of a file but the samples."""
    arrays: Dict[str, np.ndarray] = {
        "offsets": np.cumsum([0] + [len(waveform) for waveform in clips.waveforms]).astype(np.int64),
        "label_ids": clips.label_ids.astype(np.int64),
        "names": np.array(clips.names, dtype=np.str_),
        "labels": np.array(clips.labels, dtype=np.str_),
        "sample_rate_hz": np.array(clips.sample_rate_hz, dtype=np.int64),
    }
    if clips.texts is not None:
        arrays["texts"] = np.array(clips.texts, dtype=np.str_)
    if clips.tags is not None:
        arrays["tags"] = np.asarray(clips.tags, dtype=np.bool_)
    return arrays


def read_clips(path: Path) -> Clips:
    """The clips in a file that `write_clips` wrote.

    Raises:
        BadInput: the file is missing, truncated or of another kind.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            is_packed = STREAMS[0] in arrays
            samples = as_floats(unpack(*(arrays[key] for key in STREAMS))) if is_packed else arrays["samples"]
            offsets, label_ids, names, labels, rate = (arrays[key] for key in ARRAYS)
            texts = tuple(str(text) for text in arrays["texts"]) if "texts" in arrays else None
            tags = np.asarray(arrays["tags"], np.bool_) if "tags" in arrays else None
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (KeyError, ValueError, OSError, EOFError, IndexError, zipfile.BadZipFile, TokenError) as error:
        raise BadInput(f"{path}: not a clips file ({error})") from None
    return Clips(
        waveforms=tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:])),
        label_ids=label_ids,
        names=tuple(str(name) for name in names),
        labels=tuple(str(label) for label in labels),
        sample_rate_hz=int(rate),
        texts=texts,
        tags=tags,
    )
