"""Rows of a decoder's embedding, read from the artifact one by one: most of them are never needed."""

from __future__ import annotations

import numpy as np

from runtimes.artifact import Artifact
from runtimes.errors import BadInput


class Embedding:
    """The file in which the embedding is stored once, for the decoder's graph and for this.

    It is read, not mapped: around every row that is read through a map, the system maps its neighbours, which count as
    memory of the process.
    """

    def __init__(self, artifact: Artifact) -> None:
        place = artifact.manifest["embedding"]
        self.width = int(place["shape"][1])
        self._offset = int(place["offset"])
        self._path = artifact.folder / place["file"]
        self._stream = open(self._path, "rb", buffering=0)  # noqa: SIM115 - closed by close()

    def read(self, tokens: np.ndarray, out: np.ndarray) -> None:
        """Put the rows of `tokens` (R, N) into `out`, float32 (R, N, width)."""
        rows = out.reshape(-1, self.width)
        row_bytes = rows.shape[1] * rows.itemsize
        for row, token in zip(rows, tokens.ravel().tolist()):
            self._stream.seek(self._offset + token * row_bytes)
            if self._stream.readinto(row.data) != row_bytes:
                raise BadInput(f"{self._path}: it ends before the row of token {token}")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
