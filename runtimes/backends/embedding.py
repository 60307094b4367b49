"""Rows of a decoder's embedding, read from the artifact one by one: most of them are never needed."""

from __future__ import annotations

import numpy as np

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Blocks

BLOCK_ZERO = 128  # what stands for 0 in a row of 8-bit integers


class Embedding:
    """The file in which the embedding is stored once, for the decoder's graph and for this.

    It is read, not mapped: around every row that is read through a map, the system maps its neighbours, which count as
    memory of the process.
    """

    def __init__(self, artifact: Artifact) -> None:
        place = artifact.speech.embedding
        self.width = place.shape[1]
        self._offset = place.offset
        self._blocks = place.blocks
        self._type = np.float16 if place.precision == "fp16" else np.float32
        self._path = artifact.folder / place.file
        self._stream = open(self._path, "rb", buffering=0)  # noqa: SIM115 - closed by close()

    def read(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """Put the rows of `tokens` (R, N) into `out`, float32 (R, N, width)."""
        rows = out.reshape(-1, self.width)
        for row, token in zip(rows, tokens.ravel().tolist()):
            if self._blocks is None and self._type == np.float32:
                self._fill(self._offset, token, row)
            elif self._blocks is None:
                half = np.empty(self.width, np.float16)
                self._fill(self._offset, token, half)
                row[...] = half
            else:
                row[...] = self._row_of_blocks(token, self._blocks)

    def _row_of_blocks(self, token: int, blocks: Blocks) -> np.ndarray:
        number, length = blocks.number, blocks.length
        integers, scales = np.empty((number, length), np.uint8), np.empty((number, 1), np.float32)
        self._fill(self._offset, token, integers)
        self._fill(blocks.scales_offset, token, scales)
        return ((integers.astype(np.float32) - BLOCK_ZERO) * scales).reshape(-1)[: self.width]

    def _fill(self, offset: int, token: int, row: np.ndarray) -> None:
        """Read row `token` of a table that begins at `offset` and whose rows are as large as `row`."""
        self._stream.seek(offset + token * row.nbytes)
        if self._stream.readinto(row.data) != row.nbytes:
            raise BadInput(f"{self._path}: it ends before the row of token {token}")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
