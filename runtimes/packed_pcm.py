"""16-bit samples in about as few bytes as FLAC takes, by numpy alone, without loss.

As FLAC's fixed predictors do it: a frame of samples is what a polynomial through the few samples before each leaves, of
the order that leaves least; and as its residuals are written (Rice 1979): the low bits as they are, as many as suits
the stretch, and the rest as so many zeros and a one. Both are of a form that numpy reads without a loop over samples.
"""

from __future__ import annotations

from typing import Dict, Tuple

import numpy as np

FULL_SCALE = np.float32(32768.0)
FRAME, STRETCH = 4096, 512  # samples that have one order, and those that have one number of low bits
ORDERS, MOST_LOW_BITS = 4, 15
FRAMES_AT_ONCE = 128  # what is in memory at a time
STREAMS = ("sizes", "orders", "low_bits", "low", "high")


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
