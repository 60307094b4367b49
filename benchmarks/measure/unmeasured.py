"""The parts of a results file of which nothing was measured, for the one reason that they all have."""

from __future__ import annotations

from typing import Any, Dict

from leanear.benchmarks.measure.job import Job, latency_head
from leanear.benchmarks.sensors.recorder import Recorder
from leanear.benchmarks.sensors.sensor_records import throttling


def unmeasured_parts(job: Job, reason: str) -> Dict[str, Any]:
    """Latency, memory, accuracy and sustained work without a number."""
    none: Dict[str, Any] = {"status": "not measured", "reason": reason, "log_tail": []}
    with Recorder() as recorder:
        pass
    record = recorder.record()
    latency = {**none, **latency_head(job), "sensors": {**record, "throttling": throttling(record)}}
    return {
        "latency": latency,
        "memory": {**none, "roles": {}},
        "accuracy": {**none, **no_answers(job.is_speech)},
        "recordings": None,
        "sustained": {**none, "seconds": 0.0, "roles": {}},
    }


def no_answers(is_speech: bool) -> Dict[str, Any]:
    """What the results' part "accuracy" holds of no clip."""
    if is_speech:
        return {"names": [], "references": [], "audio_s": [], "decoding": {}, "roles": {}, "word_errors": None}
    return {"labels": [], "names": [], "label_ids": [], "roles": {}, "kl_dense_slim_nats": None}
