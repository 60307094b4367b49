"""Times exported graphs of AST-base size, slim against dense, and sets the ratios beside the ratios of their MACs.

    python -m leanear.benchmarks.peers.graph_forms --runtime onnxruntime --form onnxruntime --plan 12x32/32 --rounds 10

Weights are random and the front end is left out; the two graphs run in turn, and the ratio is the median of the rounds'
ratios. This runs on the workstation alone: unlike the rest of this folder's parent it needs torch and the exporter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.export.ast.graph import export_ast
from leanear.export.macs import count_macs
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification

HEADS, LAYERS, LABELS = 12, 12, 527


def _ragged(seed: int, multiple: int) -> list[int]:
    """Twelve widths between 8 and 56 that are multiples of `multiple` and that average 32."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(8 // multiple, 56 // multiple + 1, HEADS)
    while steps.sum() * multiple != 32 * HEADS:
        head = generator.integers(HEADS)
        change = 1 if steps.sum() * multiple < 32 * HEADS else -1
        if 8 <= (steps[head] + change) * multiple <= 56:
            steps[head] += change
    return [int(step) * multiple for step in steps]


def plan_widths(name: str, layer: int) -> tuple[list[int], list[int]]:
    """Query/key widths and value/output widths of one layer's heads: "6x64/64", "ragged4" or "ragged1"."""
    if name.startswith("ragged"):
        multiple = int(name.removeprefix("ragged"))
        return _ragged(2 * layer, multiple), _ragged(2 * layer + 1, multiple)
    heads, widths = name.split("x")
    query_key, value_output = widths.split("/")
    return [int(query_key)] * int(heads), [int(value_output)] * int(heads)


def build(name: str, layers: int = LAYERS) -> torch.nn.Module:
    """A model of AST-base size with random weights: "dense", or slim with the widths of a plan."""
    torch.manual_seed(0)
    if name == "dense":
        return ASTForAudioClassification(ASTConfig(num_labels=LABELS, num_hidden_layers=layers)).eval()
    widths = [plan_widths(name, layer) for layer in range(layers)]
    config = SlimASTConfig(
        num_labels=LABELS,
        num_hidden_layers=layers,
        query_key_widths=[query_key for query_key, _ in widths],
        value_output_widths=[value_output for _, value_output in widths],
    )
    return SlimASTForAudioClassification(config).eval()


def onnxruntime_runner(path: Path, threads: int):
    """A function that runs the graph once on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else fallback for size, fallback in zip(source.shape, (1, 1024, 128))]
    feeds = {source.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(None, feeds)[0]


def openvino_runner(path: Path, threads: int):
    """A function that runs the graph once on OpenVINO's CPU plugin in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    features = np.random.default_rng(0).standard_normal((1, 1024, 128)).astype(np.float32)
    return lambda: request.infer([features])[0]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RUNNERS = {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner}


def time_pairwise(first, second, rounds: int, clock=time.perf_counter) -> list[tuple[float, float]]:
    """Seconds of two functions that run in turn, a pair for every round; who is first alternates."""
    first(), second()
    pairs = []
    for number in range(rounds):
        order = (first, second) if number % 2 == 0 else (second, first)
        seconds = {}
        for run in order:
            start = clock()
            run()
            seconds[run] = clock() - start
        pairs.append((seconds[first], seconds[second]))
    return pairs


def describe(pairs: list[tuple[float, float]]) -> str:
    """The medians, the median of the ratios with its quartiles, and the ratio of the two fastest runs."""
    ratios = [second / first for first, second in pairs]
    first, second = (1000 * statistics.median(column) for column in zip(*pairs))
    fastest = min(second for _, second in pairs) / min(first for first, _ in pairs)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return (
        f"{first:.0f} and {second:.0f} ms, ratio {middle:.3f} ({low:.3f} to {high:.3f}), of the fastest {fastest:.3f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", choices=RUNNERS, default="onnxruntime")
    parser.add_argument("--form", default="onnxruntime")
    parser.add_argument("--dense-form", help="form of the dense graph, if it is another one")
    parser.add_argument("--plan", action="append", help="HEADSxK/V, ragged4, ragged1 or dense; may be repeated")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time on a core, with one thread alone")
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    extractor = ASTFeatureExtractor()
    with tempfile.TemporaryDirectory() as folder:
        dense = build("dense", options.layers)
        dense_path, slim_path = Path(folder, "dense.onnx"), Path(folder, "slim.onnx")
        export_ast(dense, extractor, dense_path, options.dense_form or options.form, input="features")
        run_dense = RUNNERS[options.runtime](dense_path, options.threads)
        for plan in options.plan or ["12x32/32", "6x64/64", "12x16/48", "12x40/24", "12x30/34", "ragged4", "ragged1"]:
            slim = build(plan, options.layers)
            export_ast(slim, extractor, slim_path, options.form, input="features")
            run_slim = RUNNERS[options.runtime](slim_path, options.threads)
            pairs = time_pairwise(run_dense, run_slim, options.rounds, CLOCKS[options.clock])
            macs = count_macs(slim).total / count_macs(dense).total
            print(f"{options.runtime} {options.form} {plan}: {describe(pairs)}, MACs {macs:.3f},", end=" ")
            print(f"measured/MACs {statistics.median(b / a for a, b in pairs) / macs:.3f}", flush=True)
            del run_slim
    return 0


if __name__ == "__main__":
    sys.exit(main())
