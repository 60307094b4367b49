"""Keys and values of the tokens that a decoder was fed, in buffers with room for more.

Dimension letters: R rows (hypotheses), N new tokens of each, C positions that there is room for, H heads, K per-head
query/key width, V per-head value/output width.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np

from leanear.runtimes.errors import MeasurementFailed

ROOMS = (64, 128, 256)  # positions; then as many as the model has
ALIGNMENT_BYTES = 64  # a cache line, and a vector of AVX-512
FORBIDDEN = np.float32(-1e30)  # added to a score: nothing is left of it after softmax, and it never overflows


def aligned_zeros(shape: Sequence[int], dtype: type = np.float32) -> np.ndarray:
    """An array of zeros that begins on a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[begin : begin + size].view(dtype).reshape(shape)


class CrossMemory:
    """The keys (W, H, K, T) and values (W, H, T, V) of W encoded windows, T being as many positions as each has.

    shapes: of one window's by its name, None for T; positions: of the full window; kept: the type of each. Arrays of
    every size are the beginning of the same memory, which is there once, for the most windows that there were.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int | None]], positions: int, kept: Mapping[str, type]) -> None:
        self._shapes, self._full, self._kept = {name: tuple(shape) for name, shape in shapes.items()}, positions, kept
        self._memory: dict[str, np.ndarray] = {}
        self._most_windows = 0
        self.positions, self.windows = 0, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.arrange(positions)

    def arrange(self, positions: int, windows: int = 1) -> bool:
        """Let the arrays be of so many windows of so many positions; whether they are other ones than before."""
        changed = (positions, windows) != (self.positions, self.windows)
        if windows > self._most_windows:
            self._most_windows = windows
            sizes = {name: windows * int(np.prod(self._shape(name, self._full))) for name in self._shapes}
            self._memory = {name: aligned_zeros((size,), self._kept[name]) for name, size in sizes.items()}
        if changed:
            self.positions, self.windows = positions, windows
            shapes = {name: (windows, *self._shape(name, positions)) for name in self._shapes}
            self.arrays = {
                name: memory[: int(np.prod(shapes[name]))].reshape(shapes[name])
                for name, memory in self._memory.items()
            }
        return changed

    def of(self, window: int) -> dict[str, np.ndarray]:
        """The keys (H, K, T) and values (H, T, V) of one window."""
        return {name: array[window] for name, array in self.arrays.items()}

    def _shape(self, name: str, positions: int) -> tuple[int, ...]:
        return tuple(positions if size is None else size for size in self._shapes[name])


class SpeechCache:
    """Buffers of one decoder: keys (R, H, K, C) and values (R, H, C, V) by the names of the graph's inputs.

    keys, values: heads and width of each by its name; positions: of the model; kept: the type of the numbers. The room
    grows by a few fixed sizes, for a runtime does work for every new shape, while a step reads all of the room that
    there is. Buffers of every size are the beginning of the same memory, which is there once, for the most rows that
    there were.
    """

    def __init__(
        self,
        keys: Mapping[str, tuple[int, int]],
        values: Mapping[str, tuple[int, int]],
        positions: int,
        kept: type = np.float32,
    ) -> None:
        self._keys, self._values, self._type = dict(keys), dict(values), kept
        self._rooms = [room for room in ROOMS if room < positions] + [positions]
        self._memory: dict[str, np.ndarray] = {}
        self.buffers: dict[str, np.ndarray] = {}
        self.rows = self.room = self.filled = self._most_rows = 0
        self._bias = np.zeros((0, 0), np.float32)

    def start(self, rows: int) -> bool:
        """Forget all tokens; whether the buffers are other ones than before."""
        changed = rows != self.rows or self.room != self._rooms[0]
        self.rows, self.filled = rows, 0
        if rows > self._most_rows:
            self._most_rows, sizes = rows, {**self._keys, **self._values}
            self._memory = {
                name: aligned_zeros((rows * heads * width * self._rooms[-1],), self._type)
                for name, (heads, width) in sizes.items()
            }
        if changed:
            self._arrange(self._rooms[0])
        self._bias[:, : self.room] = FORBIDDEN
        return changed

    def reserve(self, new: int) -> bool:
        """Make room for `new` more tokens; whether the buffers are other ones than before."""
        needed = self.filled + new
        if needed <= self.room:
            return False
        before = self.buffers
        self._arrange(next(room for room in self._rooms if room >= needed))
        for name, buffer in before.items():  # each is the beginning of a memory of its own, old and new
            self._filled(self.buffers[name], name)[...] = self._filled(buffer, name).copy()
        self._bias[:, : self.filled] = 0.0
        return True

    def _arrange(self, room: int) -> None:
        """Let the buffers be of this room; what was in them is in no order then."""
        self.room = room
        keys = {name: (self.rows, heads, width, room) for name, (heads, width) in self._keys.items()}
        values = {name: (self.rows, heads, room, width) for name, (heads, width) in self._values.items()}
        self.buffers = {
            name: self._memory[name][: int(np.prod(shape))].reshape(shape) for name, shape in {**keys, **values}.items()
        }
        self._bias = aligned_zeros((1, room + 1))
        self._bias[:, :room] = FORBIDDEN

    def _filled(self, buffer: np.ndarray, name: str) -> np.ndarray:
        return buffer[..., : self.filled] if name in self._keys else buffer[:, :, : self.filled]

    def bias(self, new: int) -> np.ndarray:
        """What is added to the scores of `new` tokens, (N, C + N); of one token always the same memory."""
        if new == 1:
            return self._bias
        bias = aligned_zeros((new, self.room + new))
        bias[:, : self.room] = self._bias[:, : self.room]
        bias[:, self.room :] = np.triu(np.full((new, new), FORBIDDEN), 1)
        return bias

    def new_rows(self, new: int) -> dict[str, np.ndarray]:
        """Memory for the keys and values of `new` tokens, as `append` takes them."""
        keys = {name: (self.rows, heads, width, new) for name, (heads, width) in self._keys.items()}
        values = {name: (self.rows, heads, new, width) for name, (heads, width) in self._values.items()}
        return {name: aligned_zeros(shape, self._type) for name, shape in {**keys, **values}.items()}

    def reorder(self, parents: np.ndarray) -> None:
        """Let each row go on from another one; rows that go on from themselves are not touched."""
        moved = np.flatnonzero(parents != np.arange(self.rows))
        for name, buffer in self.buffers.items():
            filled = self._filled(buffer, name)
            filled[moved] = filled[parents[moved]]

    def check(self, logits: np.ndarray) -> None:
        """Nothing, where the logits of a step are all finite.

        Raises:
            MeasurementFailed: some are not. All memory is zeros then: a NaN in it would reach every later step, for the
                positions that are not filled are read too, and what is added to their scores leaves a NaN as it is.
        """
        if not np.isfinite(logits.max()):
            for memory in self._memory.values():
                memory[...] = 0
            raise MeasurementFailed("logits: the graph gave NaN or infinite values")

    def append(self, new: Mapping[str, np.ndarray]) -> None:
        """Put new tokens' keys (R, H, K, N) and values (R, H, N, V), by the buffers' names, behind the others."""
        begin = self.filled
        for name in self._keys:
            added = new[name]
            self.buffers[name][..., begin : begin + added.shape[3]] = added
        for name in self._values:
            added = new[name]
            self.buffers[name][:, :, begin : begin + added.shape[2]] = added
        self.filled = begin + added.shape[2]
        self._bias[:, begin : self.filled] = 0.0
