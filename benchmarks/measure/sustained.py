"""One artifact at work without a pause, in one process: whether it is as fast at the end, and what it draws.

The process that started this one reads the sensors meanwhile, so that reading them is no part of the work.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.inference import Inference, one_inference
from leanear.benchmarks.measure.job import Job, store_waveform
from leanear.benchmarks.measure.processes import Progress, absolute, answer_request, part_of, run_fresh
from leanear.benchmarks.sensors.recorder import Recorder
from leanear.benchmarks.sensors.sensor_records import between, energy, throttling
from leanear.benchmarks.sensors.sensors import find_sensors
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions

WARM_UP_S = 1.0
LONGEST_WINDOW_S = 60.0
SLOWER = 1.05  # beyond what a minute differs from the next without heat
SAY_EVERY_S = 0.5
IDLE_S = 3.0
ENERGY_S = 10.0


def measure_sustained(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Start and end of the work in `time.monotonic()`, its inferences, and the latencies of its first and last part.

    request: artifact (folder), runtime, threads, precision, waveform (.npy), tokens (as for latency), seconds.
    """
    artifact = read_artifact(Path(request["artifact"]))
    waveform = np.load(request["waveform"], allow_pickle=False)
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    session = require_runtime(request["runtime"], options).load(artifact, options)
    inference = one_inference(session, artifact, waveform, request["tokens"], request["window"])
    deadline = time.monotonic() + min(WARM_UP_S, request["seconds"] / 4)
    inference()
    while time.monotonic() < deadline:
        inference()
    answer = work(inference, request["seconds"], progress)
    session.close()
    return answer


def work(inference: Inference, seconds: float, progress: Progress) -> dict[str, Any]:
    """The answer of `measure_sustained`, of an inference that is ready."""
    window_s = min(LONGEST_WINDOW_S, seconds / 3)
    moments, latencies = [], []
    start = said = time.monotonic()
    while True:
        before = time.perf_counter_ns()
        inference()
        latencies.append((time.perf_counter_ns() - before) / 1e6)
        now = time.monotonic()
        moments.append(now - start)
        if now - start >= seconds:
            break
        if now - said >= SAY_EVERY_S:
            progress(f"{now - start:.0f} of {seconds:g} s", (now - start) / seconds)
            said = now
    ended, timings = np.array(moments), np.array(latencies)
    first, last = timings[ended <= window_s], timings[ended >= ended[-1] - window_s]
    return {
        "start_monotonic_s": start,
        "end_monotonic_s": start + float(ended[-1]),
        "inferences": len(timings),
        "window_s": round(window_s, 3),
        "first": _summary(first if len(first) else timings[:1]),
        "last": _summary(last),
        "median_ms_by_tenth": [
            round(float(np.median(part)), 4) for part in np.array_split(timings, min(10, len(timings)))
        ],
    }


def _summary(timings: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(timings),
        "median_ms": round(float(np.median(timings)), 4),
        "most_ms": round(float(timings.max()), 4),
    }


def measure_lasting_work(job: Job, progress: Progress) -> dict[str, Any]:
    """The results' part "sustained": every artifact of the job at work for as long as was asked for.

    Where 0 seconds are asked for, each works for as long as it takes to know its energy if a sensor shows power, and
    otherwise not at all.
    """
    seconds = job.effort.sustained_s
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], "seconds": seconds, "roles": {}}
    if seconds == 0:
        found = find_sensors()
        if not (found.of("power_w") or found.of("energy_j")):
            reason = f"{found.missing['power_w']}; and no run of --sustained SECONDS was asked for"
            part.update(status="not measured", reason=reason)
            return part
        part["seconds"] = ENERGY_S
    waveform = absolute(store_waveform(job))
    for place, role in enumerate(job.artifacts):
        request = {**job.request(role), "waveform": waveform, "tokens": job.tokens, "seconds": part["seconds"]}
        share = 1 / len(job.artifacts)
        told = part_of(progress, place * share, (place + 1) * share, f"{job.name(role)}, ")
        answer = run_sustained(request, told)
        status, reason, log_tail = (answer.pop(key) for key in ("status", "reason", "log_tail"))
        if status != "ok":
            part.update(status=status, reason=f"{job.name(role)}: {reason}", log_tail=log_tail)
            break
        part["roles"][role] = answer
    return part


def run_sustained(request: dict[str, Any], progress: Progress, root: Path = Path("/")) -> dict[str, Any]:
    """The sustained work of one artifact in a fresh process, with what the sensors showed meanwhile.

    request: as `measure_sustained`. {"status", "reason", "log_tail", and where it is "ok": "work", "idle", "energy",
    "energy_per_inference", "throttling", "verdict", "sensors"}; energy that no sensor shows says so, with the reason.

    Raises:
        BadInput: seconds is not greater than 0.
        RuntimeUnavailable: as in the process.
    """
    if not request["seconds"] > 0:
        raise BadInput(f"sustained: {request['seconds']:g} s is not a time to work")
    idle_s = min(IDLE_S, request["seconds"])
    with Recorder(root, interval_s=min(1.0, request["seconds"] / 10)) as recorder:
        rest_from = time.monotonic()
        time.sleep(idle_s)
        rest_to = time.monotonic()
        outcome = run_fresh("leanear.benchmarks.measure.sustained", request, progress)
    if outcome.answer is None:
        return {"status": "failed", "reason": outcome.reason, "log_tail": list(outcome.log_tail)}
    record, answer = recorder.record(), outcome.answer
    used = energy(record, answer["start_monotonic_s"], answer["end_monotonic_s"])
    rest = energy(record, rest_from, rest_to)
    per_inference = dict(used)
    if used["status"] == "ok":
        per_inference = {
            "status": "ok",
            "joules": round(used["joules"] / answer["inferences"], 6),
            "above_idle_joules": _above_idle(used, rest, answer["inferences"]),
            "sensor": used["sensor"],
        }
    return {
        "status": "ok",
        "reason": "",
        "log_tail": [],
        "work": answer,
        "idle": rest,
        "energy": used,
        "energy_per_inference": per_inference,
        "throttling": throttling(between(record, answer["start_monotonic_s"], answer["end_monotonic_s"])),
        "verdict": verdict(answer),
        "sensors": record,
    }


def _above_idle(used: dict[str, Any], rest: dict[str, Any], inferences: int) -> Any:
    """Joules of one inference beyond what the device draws at rest for as long."""
    if rest["status"] != "ok":
        return {"status": "not measured", "reason": f"at rest: {rest['reason']}"}
    seconds = used["joules"] / used["mean_w"] if used["mean_w"] else 0.0
    return round((used["joules"] - rest["mean_w"] * seconds) / inferences, 6)


def verdict(answer: dict[str, Any]) -> dict[str, Any]:
    """Last part over first part of the work: {"ratio", "text"}."""
    ratio = answer["last"]["median_ms"] / answer["first"]["median_ms"]
    length = f"{answer['window_s']:g} s" if answer["window_s"] < LONGEST_WINDOW_S else "minute"
    if ratio > SLOWER:
        text = f"slower with time: the last {length} takes {ratio:.2f} times as long as the first"
    elif ratio < 1 / SLOWER:
        text = f"faster with time: the last {length} takes {ratio:.2f} times as long as the first"
    else:
        text = f"steady: the last {length} takes {ratio:.2f} times as long as the first"
    return {"ratio": round(ratio, 4), "text": text}


if __name__ == "__main__":
    answer_request(measure_sustained)
