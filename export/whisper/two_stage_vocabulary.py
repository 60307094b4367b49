"""A decoder's logits in two stages: all of them roughly, from weights in 8 bits, and then the likeliest exactly.

To choose a token, a step multiplies with the whole vocabulary, which for a small Whisper is most of what it reads. In
8 bits that is a quarter as much. Of the rough logits the `RESCORED` largest are computed again in float32, from as many
rows of the embedding, and put in their places; so are all that are no text (timestamps, by whose sum one decides, and
special tokens), always.

The largest logit is right where it was among the rescored. Rounding moves a rough logit by s/sqrt(12) |h| or so, s the
step of its row and |h| the norm of what is multiplied: in 944 states of tiny.en on real speech the likeliest token lay
at least 9 such spreads above the 64th (in 4 bits 2). The proof of a graph compares the likeliest of what was rescored
with the checkpoint's, every token, and the sum to which rough logits add.

Rows are read out of the file as it lies in memory, where a system maps tens of neighbours with every page. So they are
in float16 where that is what the checkpoint's numbers are: the same numbers in half the memory.

Dimension letters: R rows, D model width, V vocabulary, S tokens that are no text, C rescored.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from leanear.export.onnx.eight_bit_weights import (
    BLOCK_ZERO,
    INTEGER_PRODUCTS,
    block_integers,
    block_length,
    block_scales,
)
from leanear.export.onnx.graph import CONTRIB_DOMAIN, Graph, Weight
from leanear.runtimes.manifest import TwoStages

RESCORED = 64
SMALLEST_VOCABULARY = 16_384  # of a smaller one the product costs no time worth two stages


def two_stages(vocabulary: int, first_special: int, form: str, precision: str) -> TwoStages | None:
    """Whether a decoder's graph has its logits in two stages, and how; None: they are one product.

    Of the plain form there is no telling whether a runtime multiplies with fewer bits; what is in 8 bits is not exact
    anyway.
    """
    fits = form in ("onnxruntime", "openvino") and precision == "fp32"
    if not fits or vocabulary < SMALLEST_VOCABULARY or first_special < SMALLEST_VOCABULARY // 2:
        return None
    return TwoStages(RESCORED, first_special)


def add_two_stage_logits(graph: Graph, hidden: str, table: str, stages: TwoStages, form: str) -> None:
    """Add `logits` (R, V) of `hidden` (R, D) times the rows of the weight `table`, float32 (V, D)."""
    (size, width), make, text = graph.weights[table].shape, graph.weights[table].make, stages.exact_from
    add_rough = _add_block_product if form == "onnxruntime" else _add_row_product
    rough = add_rough(graph, hidden, (text, width), lambda: make()[:text])
    likeliest = _add_likeliest(graph, rough, stages.rescored)
    rows = _add_rows(graph, table, likeliest, form)
    last = graph.constant("number.-1", np.array([-1], np.int64))
    column = graph.node("Unsqueeze", [hidden, last], "vocabulary.column")
    products = graph.node("MatMul", [rows, column], "vocabulary.products")
    exactly = graph.node("Squeeze", [products, last], "vocabulary.exactly")
    of_text = graph.node("ScatterElements", [rough, likeliest, exactly], "vocabulary.of_text", axis=1)
    special = graph.weight("vocabulary.special", (size - text, width), lambda: make()[text:])
    others = graph.node("Gemm", [hidden, special], "vocabulary.others", transB=1)
    graph.node("Concat", [of_text, others], "logits", axis=1)


def _add_block_product(graph: Graph, hidden: str, shape: tuple[int, int], make: Callable[[], np.ndarray]) -> str:
    """Rough logits by ONNX Runtime's operator, a scale for every block of a row."""
    rows, width = shape
    block = block_length(width)
    sizes = (rows, -(-width // block), block)
    integers = Weight("vocabulary.rough", sizes, np.dtype(np.uint8), lambda: block_integers(make(), block))
    scales = graph.weight("vocabulary.rough.scales", sizes[:2], lambda: block_scales(make(), block))
    inputs = [hidden, graph.add(integers), scales]
    attributes = {"K": width, "N": rows, "bits": 8, "block_size": block, "accuracy_level": INTEGER_PRODUCTS}
    return graph.node("MatMulNBits", inputs, "vocabulary.roughly", domain=CONTRIB_DOMAIN, **attributes)


def _add_row_product(graph: Graph, hidden: str, shape: tuple[int, int], make: Callable[[], np.ndarray]) -> str:
    """Rough logits by a weight that OpenVINO dequantises as it multiplies, a scale for every row."""
    rows, width = shape
    parts = [
        graph.add(Weight("vocabulary.rough", shape, np.dtype(np.uint8), lambda: block_integers(make(), width)[:, 0])),
        graph.weight("vocabulary.rough.scales", (rows,), lambda: block_scales(make(), width)[:, 0]),
        graph.constant(f"{rows}.zeros", np.full(rows, BLOCK_ZERO, np.uint8)),
    ]
    weights = graph.node("DequantizeLinear", parts, "vocabulary.rough.dequantised", axis=0)
    return graph.node("Gemm", [hidden, weights], "vocabulary.roughly", transB=1)


def _add_rows(graph: Graph, table: str, tokens: str, form: str) -> str:
    """Rows of the table in float32; it is stored in float16 if nothing is lost by that.

    ONNX Runtime would make all of a table float32 whose cast comes first; OpenVINO does where it comes last, and
    otherwise puts it there itself.
    """
    stored, half, to = graph.weights[table], np.dtype(np.float16), onnx.TensorProto.FLOAT
    values = stored.make()
    with np.errstate(over="ignore"):
        narrow = values.astype(half)
    if not np.array_equal(narrow.astype(np.float32), values):
        return graph.node("Gather", [table, tokens], "vocabulary.rows", axis=0)
    graph.weights[table] = replace(stored, dtype=half, make=lambda: stored.make().astype(half))
    if form == "openvino":
        return graph.node("Gather", [graph.node("Cast", [table], "vocabulary.table", to=to), tokens], "vocabulary.rows")
    return graph.node("Cast", [graph.node("Gather", [table, tokens], "vocabulary.half_rows")], "vocabulary.rows", to=to)


def _add_likeliest(graph: Graph, rough: str, count: int) -> str:
    """The tokens of the largest rough logits: int64 (R, C)."""
    number = graph.constant(f"number.{count}", np.array([count], np.int64))
    outputs = ["vocabulary.largest", "vocabulary.likeliest"]
    node: onnx.NodeProto = helper.make_node("TopK", [rough, number], outputs, name=outputs[1], axis=1, sorted=0)
    graph.nodes.append(node)
    return outputs[1]
