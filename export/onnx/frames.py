"""A waveform of any length as a window, and rows of hops as frames of a Fourier transform, in plain ONNX operators."""

import numpy as np

from leanear.export.onnx.graph import Graph

END = 2**63 - 1  # of a tensor, whatever its size


def add_window(graph: Graph, waveform: str, window: int) -> str:
    """A waveform of any length filled up or cut to (1, window): behind it every shape is a constant."""
    head = graph.slice(waveform, 0, window, 1, "front_end.head")
    silence = graph.constant("front_end.silence", np.array([0, 0, 0, window], dtype=np.int64))
    filled = graph.node("Pad", [head, silence], "front_end.filled")
    return graph.reshape(graph.slice(filled, 0, window, 1, "front_end.cut"), (1, window), "front_end.clip")


def add_frames(graph: Graph, hops: str, frames: int, frame: int, hop: int, any_window: bool = False) -> str:
    """Frames (frames, frame), each of which begins a hop after the one before, of samples in rows of a hop each.

    There are as many rows as the last frame reaches into. any_window: how many frames there are is not known.
    """
    parts, count = [], -(-frame // hop)
    for number in range(count):
        part = graph.slice(hops, *span(number, count - 1, frames, any_window), 0, f"front_end.part{number}")
        if frame < (number + 1) * hop:
            part = graph.slice(part, 0, frame - number * hop, 1, f"front_end.begin{number}")
        parts.append(part)
    return graph.node("Concat", parts, "front_end.frames", axis=1)


def span(begin: int, most: int, rows: int, any_window: bool) -> tuple[int, int]:
    """Where a Slice of `rows` rows from `begin` on ends, of a tensor that has `most` rows more than that.

    any_window: how many rows there are is not known, so the end is counted from the tensor's own.
    """
    if not any_window:
        return begin, begin + rows
    return begin, END if begin == most else begin - most
