"""Times our dense graph against the one that `optimum-cli export onnx` makes of the same checkpoint.

    python -m leanear.benchmarks.peers.optimum_ast

The command builds the peer's environment (.venv-peers, from requirements-optimum.txt) if it is not there, writes a
checkpoint of AST-base size with random weights, exports it both ways, checks that the graphs agree and runs them in
turn on ONNX Runtime. The front end is left out on both sides. `--model FOLDER` takes another checkpoint.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from leanear.benchmarks.peers.graph_forms import CLOCKS, build, describe, onnxruntime_runner, time_pairwise
from leanear.export.ast.graph import export_ast

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("requirements-optimum.txt")


def build_environment() -> Path:
    """The peer's `optimum-cli`, installed into an environment of its own if it is not there."""
    program = ENVIRONMENT / "bin" / "optimum-cli"
    if not program.exists():
        subprocess.run([sys.executable, "-I", "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(ENVIRONMENT / "bin" / "pip"), "install", "-q", "-r", str(REQUIREMENTS)], check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder; AST-base size with random weights if not given")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time on a core, with one thread alone")
    options = parser.parse_args()
    program = build_environment()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.model or Path(folder, "checkpoint")
        if options.model is None:
            build("dense").save_pretrained(checkpoint)
            ASTFeatureExtractor().save_pretrained(checkpoint)
        command = [str(program), "export", "onnx", "--model", str(checkpoint), "--task", "audio-classification"]
        subprocess.run([*command, str(Path(folder, "peer"))], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        model = ASTForAudioClassification.from_pretrained(checkpoint).eval()
        extractor = ASTFeatureExtractor.from_pretrained(checkpoint)
        export_ast(model, extractor, Path(folder, "ours.onnx"), "onnxruntime", input="features")
        peer = onnxruntime_runner(Path(folder, "peer", "model.onnx"), options.threads)
        ours = onnxruntime_runner(Path(folder, "ours.onnx"), options.threads)
        expected, logits = peer(), ours()
        difference = float(np.abs(expected - logits).max() / np.abs(expected).max())
        if difference > 1e-4:
            print(f"the graphs differ by {difference:.2g} of the logits' scale: not the same model", file=sys.stderr)
            return 1
        pairs = time_pairwise(peer, ours, options.rounds, CLOCKS[options.clock])
        ratio = statistics.median(second / first for first, second in pairs)
        print(f"optimum and ours: {describe(pairs)}; logits differ by {difference:.2g} of their scale")
        print(f"ours takes {ratio:.3f} of the time of optimum's graph")
    return 0


if __name__ == "__main__":
    sys.exit(main())
