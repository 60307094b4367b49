"""Damage to files, from a seeded generator: to bytes, to JSON, and to the rows of a table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

NUMBERS = (0, 1, 2, 3, 7, 16, 44, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**31 + 36, 2**32 - 37, 2**32 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-30, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, 10**30,
    -(10**9), "", " ", "x", "0", "nan", "../x", "é" * 50, "x" * 5000, [], {}, [None], [[1, 2]], [0] * 40, ["a", "b"],
    {"a": 1}, {"0": "x"}, {"0": ["x"]}, [[[]]], [-1], [10**9],
)  # fmt: skip
CELLS = (
    "",
    " ",
    "?",
    '"',
    '""',
    "a,b",
    "../0.wav",
    "/etc/hostname",
    "0.wav",
    ".",
    "..",
    "x" * 9000,
    "\0",
    "é",
    "e\u0301",
)
HEAD = 200  # bytes, in which most of the damage is done


class Mutator:
    """Damage of every kind, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def _below(self, limit: int) -> int:
        return int(self._generator.integers(max(limit, 1)))

    def _one(self, choices: Any) -> Any:
        return choices[self._below(len(choices))]

    def bytes_of(self, content: bytes) -> bytes:
        """One to four times: bits and bytes changed, numbers set, stretches taken out, doubled, or cut off."""
        damaged = bytearray(content)
        for _ in range(1 + self._below(4)):
            place = self._below(min(len(damaged), HEAD) if self._below(4) else len(damaged))
            kind = self._below(7)
            if kind == 0 and damaged:
                damaged[place] ^= 1 << self._below(8)
            elif kind == 1 and damaged:
                damaged[place] = self._below(256)
            elif kind == 2:
                width, order = self._one((2, 4, 8)), self._one(("little", "big"))
                damaged[place : place + width] = (self._one(NUMBERS) % 256**width).to_bytes(width, order)
            elif kind == 3:
                del damaged[place : place + 1 + self._below(64)]
            elif kind == 4:
                damaged[place:place] = damaged[place : place + 1 + self._below(64)]
            elif kind == 5:
                damaged[place:place] = self._generator.bytes(1 + self._below(16))
            elif self._below(3) == 0:
                del damaged[place:]
        return bytes(damaged)

    def json_of(self, text: str) -> bytes:
        """Values of any place replaced, keys taken out or renamed; one in four times the bytes themselves."""
        if self._below(4) == 0:
            return self.bytes_of(text.encode())
        document = json.loads(text)
        for _ in range(1 + self._below(2)):
            self._damage(document)
        return json.dumps(document).encode()

    def _damage(self, document: Any) -> None:
        holder = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                return
            key = self._one(keys)
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and self._below(3):
                holder = inner
                continue
            kind = self._below(6)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[self._one(("", "x", f"{key}x", "0"))] = holder.pop(key)
            elif kind == 2 and isinstance(inner, int | float) and not isinstance(inner, bool):
                holder[key] = self._one((inner + 1, inner - 1, inner * 2, -inner, inner * 1000, str(inner), [inner]))
            else:
                holder[key] = self._one(VALUES)
            return

    def table_of(self, lines: list[str], separator: str) -> bytes:
        """Lines doubled, emptied, cut or moved and cells replaced, written in one encoding of several."""
        lines = list(lines)
        for _ in range(1 + self._below(3)):
            place, kind = self._below(len(lines)), self._below(6)
            if kind == 0:
                lines.insert(place, lines[place])
            elif kind == 1:
                lines[place] = ""
            elif kind == 2:
                lines[place] = lines[place][: self._below(len(lines[place]) + 1)]
            elif kind == 3:
                lines.insert(self._below(len(lines)), lines.pop(place))
            else:
                cells = lines[place].split(separator)
                cells[self._below(len(cells))] = self._one(CELLS)
                lines[place] = separator.join(cells)
        text = self._one(("\n", "\n", "\r\n", "\r")).join(lines)
        content = text.encode(self._one(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
        return self.bytes_of(content) if self._below(3) == 0 else content
