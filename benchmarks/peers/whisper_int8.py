"""What every tensor of a real Whisper's encoder holds, and what it costs in 8 bits alone, on both runtimes.

    python -m leanear.benchmarks.peers.whisper_int8 CHECKPOINT --data DATA --state DIR

Costs are nats a token on calibration clips, all else being in float32. The artifacts are kept in the folder that
--state names. Words and times of the whole in 8 bits are beside everybody else's in
`leanear.benchmarks.peers.real_whisper`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.formatting import runtime_text
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.deploy.deployment_stages import clips_stage, export_stage
from leanear.export.eight_bit_costs import tensor_costs
from leanear.export.onnx.observed import Observed
from leanear.export.whisper.graph import observe_encoder
from leanear.families.checkpoint import checkpoint_folder, data_folder, load_checkpoint
from leanear.families.registry import task_of
from leanear.progress import Narrator
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.clips import read_clips
from leanear.runtimes.errors import LeanearError

RUNTIMES = ("onnxruntime", "openvino")
CLIPS = 33  # that costs are measured on


def show_tensors(
    console: Console, runtime: str, artifact: Artifact, checkpoint: Any, waveforms: list[np.ndarray]
) -> None:
    """What every tensor in 8 bits holds, and what it costs alone, the dearest first."""
    model, extractor = checkpoint.model, checkpoint.feature_extractor
    observed = observe_encoder(model, extractor, runtime, waveforms)
    costs = tensor_costs(artifact, model, extractor, waveforms)
    table = Table(title=f"{runtime_text(runtime)}: tensors of the encoder in 8 bits, by what each costs alone")
    for heading in ("tensor", "nats a token", "lowest", "highest", "largest column / median column"):
        table.add_column(heading, justify="left" if heading == "tensor" else "right")
    for names, cost in costs.items():
        seen = [observed[name] for name in names if name in observed]
        table.add_row(", ".join(names), f"{cost:.2e}", *_held(seen))
    console.print(table)


def _held(seen: list[Observed]) -> tuple[str, str, str]:
    if not seen:
        return "", "", ""
    columns = [np.maximum(-each.lows, each.highs) for each in seen]
    unequal = max(float(each.max() / max(np.median(each), 1e-12)) for each in columns)
    return f"{min(e.low for e in seen):.2f}", f"{max(e.high for e in seen):.2f}", f"{unequal:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint folder of a Whisper")
    parser.add_argument("--data", type=Path, required=True, help="audio folder with texts: train/ and test/")
    parser.add_argument("--state", type=Path, required=True, help="folder for what is to be used again")
    parser.add_argument("--runtime", choices=RUNTIMES, action="append", help="(default: both)")
    options = parser.parse_args()
    narrator, console, state = Narrator(), Console(width=170), options.state
    try:
        source = checkpoint_folder(options.model)
        splits = read_splits(data_folder(options.model, options.data), 100, 0, column_for(task_of(source)))
        clips_stage(state, source, splits, task_of(source), narrator)
        calibration = list(read_clips(state / "clips" / "calibration.npz").waveforms[:CLIPS])
        for runtime in options.runtime or RUNTIMES:
            out = state / f"{runtime}-int8"
            name = f"{options.model} for {runtime} in int8"
            export_stage(state, out, name, source, options.model, runtime, "int8", narrator)
            show_tensors(console, runtime, read_artifact(out), load_checkpoint(source), calibration)
    except LeanearError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
