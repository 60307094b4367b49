"""Keys and values of the tokens fed so far, in the GPU's memory."""

from __future__ import annotations

import numpy as np

from leanear.runtimes.backends.cuda_memory import ALIGNMENT_BYTES, Buffer, Cuda
from leanear.runtimes.backends.engine_runs import Context, LoadedEngine
from leanear.runtimes.speech.speech_cache import ROOMS

MASKED = np.float32(-3e4)  # nothing is left of it after softmax, and a fused kernel may hold it in float16


class GpuCache:
    """Keys and values of the tokens fed so far, in two sides, of which reordering fills the other one.

    Dimension letters: R rows, N new tokens, C positions that there is room for, H heads, K and V per-head widths.
    """

    def __init__(self, cuda: Cuda, decoder: LoadedEngine, positions: int) -> None:
        self._cuda, self._decoder = cuda, decoder
        self._rooms = [room for room in ROOMS if room < positions] + [positions]
        self._keys = [name for name in decoder.inputs if name.startswith("self_key.")]
        self._values = [name for name in decoder.inputs if name.startswith("self_value.")]
        self._key_rows = {name: int(np.prod(decoder.shape(name)[1:3])) for name in self._keys}  # H K
        shapes = {name: decoder.shape(name) for name in self._values}
        self._value_sizes = {name: (shape[1], shape[3]) for name, shape in shapes.items()}  # H, V
        self._item = decoder.element_bytes(self._keys[0])
        self.rows = self.room = self.filled = self.side = 0
        self._sides: list[dict[str, Buffer]] = []

    def start(self, rows: int) -> bool:
        """Forget all tokens; whether the memory is another one than before."""
        changed = rows != self.rows or self.room != self._rooms[0]
        self.rows, self.filled = rows, 0
        if changed:
            self._free_sides()
            self.room, self.side = self._rooms[0], 0
            self._sides = [self.side_of(self.room)]
        return changed

    def reserve(self, new: int) -> bool:
        """Make room for `new` more tokens; whether the memory is another one than before."""
        needed = self.filled + new
        if needed <= self.room:
            return False
        before, room = self._sides[self.side], self.room
        self.room = next(larger for larger in self._rooms if larger >= needed)
        after, item = self.side_of(self.room), self._item
        if self.filled:
            height = sum(self._rows_of_keys().values())
            pitches = self.room * item, before["keys"].pointer, room * item
            self._cuda.rows_inside(after["keys"].pointer, *pitches, self.filled * item, height)
            for name, (heads, width) in self._value_sizes.items():
                pitches = self.room * width * item, before[name].pointer, room * width * item
                self._cuda.rows_inside(after[name].pointer, *pitches, self.filled * width * item, self.rows * heads)
        self._cuda.wait()
        self._free_sides()
        self._sides, self.side = [after], 0
        return True

    def reorder(self, parents: np.ndarray) -> None:
        """Let each row go on from another one: all rows are copied to the other side."""
        if len(self._sides) == 1:
            self._sides.append(self.side_of(self.room))
        source, target = self._sides[self.side], self._sides[1 - self.side]
        begins = self._begins(self.room)
        for row, parent in enumerate(parents.tolist()):
            for name in self._keys:
                size = self._key_rows[name] * self.room * self._item
                begin = begins[name]
                target_row, source_row = begin + row * size, begin + parent * size
                self._cuda.inside(target["keys"].pointer + target_row, source["keys"].pointer + source_row, size)
            for name, (heads, width) in self._value_sizes.items():
                size = heads * self.room * width * self._item
                self._cuda.inside(target[name].pointer + row * size, source[name].pointer + parent * size, size)
        self.side = 1 - self.side

    def bind(self, context: Context) -> None:
        """Let the decoder read this side."""
        side, begins = self._sides[self.side], self._begins(self.room)
        for name in self._keys:
            shape = self._decoder.shape(name)
            pointer = side["keys"].pointer + begins[name]
            context.bind(name, pointer, (self.rows, shape[1], shape[2], self.room))
        for name, (heads, width) in self._value_sizes.items():
            context.bind(name, side[name].pointer, (self.rows, heads, self.room, width))

    def bind_added(self, context: Context, added: dict[str, Buffer], new: int) -> None:
        """Let the decoder write the keys and values of `new` tokens to memory that `append` copies from."""
        begins = self._begins(new)
        for name in self._keys:
            context.bind(name.replace("self_", "new_"), added["keys"].pointer + begins[name])
        for name in self._values:
            context.bind(name.replace("self_", "new_"), added[name].pointer)

    def write_bias(self, bias: np.ndarray, new: int) -> None:
        """What is added to the scores of `new` tokens, (N, C + N)."""
        bias[:, : self.filled] = 0.0
        bias[:, self.filled : self.room] = MASKED
        bias[:, self.room :] = np.triu(np.full((new, new), MASKED), 1)

    def append(self, added: dict[str, Buffer], new: int) -> None:
        """Copy what the decoder wrote behind what is there."""
        side, item = self._sides[self.side], self._item
        height = sum(self._rows_of_keys().values())
        place = side["keys"].pointer + self.filled * item
        self._cuda.rows_inside(place, self.room * item, added["keys"].pointer, new * item, new * item, height)
        for name, (heads, width) in self._value_sizes.items():
            place, length = side[name].pointer + self.filled * width * item, new * width * item
            pitch = self.room * width * item
            self._cuda.rows_inside(place, pitch, added[name].pointer, length, length, self.rows * heads)
        self.filled += new

    def side_of(self, room: int) -> dict[str, Buffer]:
        """Memory for `room` positions: one block of all layers' keys, and each layer's values."""
        height = sum(self._rows_of_keys().values())
        sizes = {"keys": height * room * self._item}
        for name, (heads, width) in self._value_sizes.items():
            sizes[name] = self.rows * heads * room * width * self._item
        return {name: Buffer(self._cuda, size) for name, size in sizes.items()}

    def _rows_of_keys(self) -> dict[str, int]:
        """Rows (R H K) of each layer's keys, filled up so that every layer begins where a tensor may."""
        multiple = ALIGNMENT_BYTES // self._item
        return {name: -(-self.rows * rows // multiple) * multiple for name, rows in self._key_rows.items()}

    def _begins(self, room: int) -> dict[str, int]:
        """Where in the block each layer's keys begin, in bytes."""
        begins, place = {}, 0
        for name, rows in self._rows_of_keys().items():
            begins[name] = place
            place += rows * room * self._item
        return begins

    def _free_sides(self) -> None:
        for side in self._sides:
            for buffer in side.values():
                buffer.close()
        self._sides = []

    def close(self) -> None:
        """Give all memory back."""
        self._free_sides()
