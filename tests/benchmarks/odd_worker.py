"""A worker that ends as it is told to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from leanear.benchmarks.measure.processes import answer_request
from leanear.runtimes.errors import BadInput, MeasurementFailed, RuntimeUnavailable


def misbehave(request, progress):
    """The process's id, if it was told to answer."""
    wish = request["do"]
    if wish == "crash":
        return {"never": 1 / 0}
    if wish == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == "nan":
        raise MeasurementFailed("the graph gave NaN")
    if wish == "bad":
        raise BadInput("said by the worker")
    if wish == "unavailable":
        raise RuntimeUnavailable("said by the worker")
    if wish == "speak and hang":
        Path(request["pid"]).write_text(str(os.getpid()))
        progress("here", 0.1)
    if wish in ("hang", "speak and hang"):
        time.sleep(60)
    print("a library prints this to stdout", flush=True)
    progress("half of it", 0.5)
    return {"process": os.getpid()}


if __name__ == "__main__":
    answer_request(misbehave)
