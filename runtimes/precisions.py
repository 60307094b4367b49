"""What a runtime computes in, and the precision of the graphs that it takes."""

from __future__ import annotations

from leanear.runtimes.errors import BadInput

# The graphs of each precision to compute in; the slowest first. What has both types of 16 bits is faster in fp16.
OF_GRAPHS = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8", "int8-bf16": "int8"}
PRECISIONS = tuple(OF_GRAPHS)
GRAPH_PRECISIONS = tuple(dict.fromkeys(OF_GRAPHS.values()))


def graph_precision(precision: str) -> str:
    """The precision that graphs have to be exported in: one of GRAPH_PRECISIONS.

    bf16 is a way to run a graph of float32; products in 8 bits or in float16 are in the graph itself.

    Raises:
        BadInput: a precision that no runtime knows.
    """
    if precision not in OF_GRAPHS:
        raise BadInput(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return OF_GRAPHS[precision]
