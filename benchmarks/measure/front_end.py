"""The audio front end's share of an encoder's time, in a pass of its own: a profiler would disturb the timing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.measure.processes import Progress, answer_request
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.backends.shares import share_of_nodes
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.sessions import SessionOptions, filled_up
from leanear.runtimes.speech.encoder_windows import artifact_windows

FRONT_END_NODES = "front_end."


def measure_front_end(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The share, between 0 and 1, or null where the runtime does not tell.

    request: artifact (folder), runtime, threads, precision, window (a choice, null: the artifact's own), waveform
    (.npy).
    """
    artifact = read_artifact(Path(request["artifact"]))
    waveform = np.load(request["waveform"], allow_pickle=False)
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    require_runtime(request["runtime"], options)
    progress("front end", 0.1)
    window = artifact_windows(artifact, request["window"]).holding(len(waveform))
    filled = filled_up(waveform[np.newaxis], window)[0]
    share = share_of_nodes(request["runtime"], artifact.graphs["encoder"], options, filled, FRONT_END_NODES)
    return {"share": None if share is None else round(share, 6)}


if __name__ == "__main__":
    answer_request(measure_front_end)
