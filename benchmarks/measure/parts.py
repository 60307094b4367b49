"""The parts of a benchmark: latency and memory, each role in fresh processes; all of them where nothing is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

from leanear.benchmarks.measure.job import Job, latency_head, store_waveform
from leanear.benchmarks.measure.memory import memory_readable
from leanear.benchmarks.measure.processes import Progress, absolute, free_of_noise, part_of, run_fresh
from leanear.benchmarks.sensors.device import load_average
from leanear.benchmarks.sensors.recorder import Recorder
from leanear.benchmarks.sensors.sensor_records import throttling

MEMORY_SHARE_S = 5.0


def latency_part(job: Job, progress: Progress) -> dict[str, Any]:
    """The results' part "latency", with what the sensors showed meanwhile."""
    with Recorder() as recorder:
        part = _timings(job, progress)
    record = recorder.record()
    part["sensors"] = {**record, "throttling": throttling(record)}
    return part


def _timings(job: Job, progress: Progress) -> dict[str, Any]:
    effort = job.effort
    order = interleaved(tuple(job.artifacts), effort.repeats)
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], **latency_head(job), "order": list(order)}
    stored = store_waveform(job)
    for place, role in enumerate(order):
        repeat = sum(earlier == role for earlier in order[:place])
        done, following = place / len(order), (place + 1) / len(order)
        request = {
            **job.request(role),
            "waveform": absolute(stored),
            "samples": -(-effort.samples // effort.repeats),
            "share_s": effort.budget_s / len(order),
            "tokens": job.tokens,
        }
        load = load_average()
        text = f"{job.name(role)}, process {repeat + 1} of {effort.repeats}, "
        outcome = run_fresh("leanear.benchmarks.measure.latency", request, part_of(progress, done, following, text))
        entry = {"role": role, "repeat": repeat, "load_average_before": load}
        if outcome.answer is None:
            entry.update(status="failed", reason=outcome.reason, log_tail=list(outcome.log_tail))
            part.update(status="failed", reason=f"{job.name(role)}: {outcome.reason}", log_tail=list(outcome.log_tail))
            part["repeats"].append(entry)
            break
        part["session"][role] = outcome.answer.pop("facts")
        entry.update(status="ok", reason="", log_tail=[], **outcome.answer)
        part["repeats"].append(entry)
    if job.is_speech and part["status"] == "ok":
        _front_end_shares(job, part, stored)
    return part


def _front_end_shares(job: Job, part: dict[str, Any], waveform: Path) -> None:
    """Add each role's share of the encoder's time that is the front end's."""
    for role in job.artifacts:
        request = {**job.request(role), "waveform": absolute(waveform)}
        outcome = run_fresh("leanear.benchmarks.measure.front_end", request, free_of_noise)
        if outcome.answer is None:
            reason = f"{job.name(role)}, front end: {outcome.reason}"
            part.update(status="failed", reason=reason, log_tail=list(outcome.log_tail))
            return
        part["front_end_share"][role] = outcome.answer["share"]


def interleaved(roles: Sequence[str], repeats: int) -> tuple[str, ...]:
    """The order of the processes: A B B A A B B A, so that a slow drift of the machine falls on both alike."""
    order: list[str] = []
    for repeat in range(repeats):
        order.extend(roles if repeat % 2 == 0 else reversed(roles))
    return tuple(order)


def memory_part(job: Job, progress: Progress) -> dict[str, Any]:
    """The results' part "memory"."""
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], "roles": {}}
    reason = memory_readable()
    if reason is not None:
        part.update(status="not measured", reason=reason)
        return part
    more = {"waveform": absolute(store_waveform(job)), "share_s": MEMORY_SHARE_S, "tokens": job.tokens}
    for role, answer in role_answers(job, "leanear.benchmarks.measure.memory", lambda _: more, part, progress):
        part["roles"][role] = answer
    return part


def role_answers(
    job: Job, worker: str, more_of: Callable[[str], Dict[str, Any]], part: Dict[str, Any], progress: Progress
) -> Iterator[Tuple[str, Any]]:
    """Each role with what its fresh process answered; one that failed is left out, and the part says so.

    more_of(role): what the worker's request has beside the artifact and how to load it.
    """
    share = 1 / len(job.artifacts)
    for place, role in enumerate(job.artifacts):
        told = part_of(progress, place * share, (place + 1) * share, f"{job.name(role)}, ")
        outcome = run_fresh(worker, {**job.request(role), **more_of(role)}, told)
        if outcome.answer is None:
            part.update(status="failed", reason=f"{job.name(role)}: {outcome.reason}", log_tail=list(outcome.log_tail))
        else:
            yield role, outcome.answer


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
