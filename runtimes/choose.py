"""The runtimes by name, and what they compute in; the libraries behind them are imported only when they are used.

What a runtime is called, needs and computes in is said in its own module; every list of that is made here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from leanear.runtimes.errors import BadInput, RuntimeUnavailable

if TYPE_CHECKING:  # numpy, which a device may lack
    from leanear.runtimes.sessions import Runtime, SessionOptions


MODULES = {
    "onnxruntime": "leanear.runtimes.backends.onnx_cpu",
    "openvino": "leanear.runtimes.backends.openvino_cpu",
    "tensorrt": "leanear.runtimes.backends.tensorrt_gpu",
    "tensorrt_rtx": "leanear.runtimes.backends.rtx_gpu",
    "null": "leanear.runtimes.backends.null",
}
# The graphs of each precision to compute in; the slowest first. What has both types of 16 bits is faster in fp16.
OF_GRAPHS = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8", "int8-bf16": "int8"}
PRECISIONS = tuple(OF_GRAPHS)
GRAPH_PRECISIONS = tuple(dict.fromkeys(OF_GRAPHS.values()))


def choose_runtime(name: str) -> Runtime:
    """The module of the runtime called `name`: one of MODULES.

    Raises:
        BadInput: there is no such runtime; the text lists those there are.
    """
    if name not in MODULES:
        raise BadInput(f"runtime: unknown runtime {name!r}; known: {', '.join(offered_runtimes())}")
    return cast("Runtime", importlib.import_module(MODULES[name]))


def offered_runtimes() -> tuple[str, ...]:
    """The names of the runtimes that are for users: those that can be installed."""
    return tuple(name for name in MODULES if choose_runtime(name).PACKAGE is not None)


def cpu_runtimes() -> tuple[str, ...]:
    """Those of them that compute on the CPU."""
    return tuple(name for name in offered_runtimes() if not choose_runtime(name).ON_GPU)


def graph_forms() -> tuple[str, ...]:
    """The forms that graphs are exported in: for any runtime, and arranged for some."""
    return tuple(dict.fromkeys(("portable", *(choose_runtime(name).FORM for name in MODULES))))


def require_runtime(name: str, options: SessionOptions) -> Runtime:
    """The module of the runtime called `name`, known to work here and to compute in `options.precision`.

    Raises:
        BadInput: there is no such runtime, or it does not compute in that precision on this machine.
        RuntimeUnavailable: its library is missing or does not import.
    """
    runtime = choose_runtime(name)
    reason = runtime.available()
    if reason is not None:
        raise RuntimeUnavailable(reason if reason.startswith(f"{name}: ") else f"{name}: {reason}")
    offered = runtime.precisions()
    if options.precision not in offered:
        raise BadInput(
            f"precision: {name} does not compute in {options.precision} on this machine; it offers {', '.join(offered)}"
        )
    return runtime


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
