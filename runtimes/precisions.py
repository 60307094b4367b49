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


def check_half(precision: str, form: str) -> None:
    """Raises BadInput where a graph of `form` cannot be in `precision`, as far as float16 goes."""
    if precision not in GRAPH_PRECISIONS:
        raise BadInput(f"precision {precision!r}: expected one of {', '.join(GRAPH_PRECISIONS)}")
    if precision == "fp16" and form != "tensorrt":
        raise BadInput(f"precision 'fp16': the form {form!r} is for runtimes that compute in float32; use 'tensorrt'")
