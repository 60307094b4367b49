"""The benchmark: latency, memory and accuracy of a slim artifact beside its dense one, each saved when it is done."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from benchmarks.accuracy import check_clips, cross_entropy_nats, kl_divergence_nats, read_logits
from benchmarks.device import device_facts, device_name, device_state, load_average
from benchmarks.memory import memory_readable
from benchmarks.processes import Progress, absolute, free_of_noise, part_of, run_fresh
from benchmarks.results import RESULTS_SCHEMA, Results, read_results, write_results
from benchmarks.summary import Interval, wilson_interval
from runtimes.artifact import Artifact, read_artifact, read_golden
from runtimes.choose import require_runtime
from runtimes.clips import Clips, read_clips
from runtimes.errors import BadInput, MeasurementFailed
from runtimes.files import read_json, replaced_file, sha256_file, sha256_json, write_json
from runtimes.sessions import SessionOptions

PART_SCHEMA = "leanear-results-part-1"
REPEATS = 4
SAMPLES_WANTED = 664  # p99 needs 662; a multiple of the repeats
BUDGET_S = 60.0
MEMORY_SHARE_S = 5.0
LATENCY_END, MEMORY_END = 0.55, 0.65

NOT_MEASURED = {
    "power and energy": "no power sensor is read; it takes a rail sensor or an analyser",
    "sustained speed": "no run of ten minutes or more was made, so throttling under lasting heat is unknown",
    "cold page cache": "the files' cached pages were not dropped before loading, so a load from a cold disk is slower",
    "GPU or NPU": "these runtimes compute on the CPU alone",
}


@dataclass(frozen=True)
class Job:
    """What is measured, checked and named: artifacts by role, clips if any, runtime and options."""

    artifacts: dict[str, Artifact]
    clips_path: Path | None
    clips: Clips | None
    runtime: str
    options: SessionOptions
    parts: Path
    inputs_sha256: str

    def request(self, role: str) -> dict[str, Any]:
        """What every worker needs to load the artifact of `role`."""
        return {
            "artifact": absolute(self.artifacts[role].folder),
            "runtime": self.runtime,
            "threads": self.options.threads,
            "precision": self.options.precision,
        }


def benchmark(
    dense: Path | None,
    slim: Path,
    clips: Path | None,
    runtime: str,
    options: SessionOptions,
    out: Path,
    *,
    budget_s: float = BUDGET_S,
    samples: int = SAMPLES_WANTED,
    repeats: int = REPEATS,
    command: Sequence[str] = (),
    progress: Progress = free_of_noise,
    fresh: bool = False,
) -> Results:
    """Results of `slim`, and of `dense` beside it where there is one, written to `out`.

    Where `out` already holds the results of the same inputs on this machine they are returned as they are, and parts
    that an interrupted run finished are taken from the folder beside `out`; `fresh` measures everything again.

    budget_s: time for warm-up and steady state, all processes together; fewer than `samples` per artifact are taken
    where it does not suffice. progress: called with a text and the share that is done.

    Raises:
        BadInput: an artifact or the clips are not what they should be, or do not belong together.
        RuntimeUnavailable: the runtime is missing, or computes in another precision than asked for.
        MeasurementFailed: a part failed; `out` is written all the same and holds the reason and the end of the log.
    """
    if repeats < 1 or samples < 1 or not budget_s > 0:
        raise BadInput("repeats, samples and budget: each must be greater than 0")
    job = _check_job(dense, slim, clips, runtime, options, out, (budget_s, samples, repeats))
    if fresh:
        shutil.rmtree(job.parts, ignore_errors=True)
    else:
        done = _finished(out, job)
        if done is not None:
            progress("already measured", 1.0)
            return done
    started, before = _now(), device_state()
    latency = _latency(job, budget_s, samples, repeats, part_of(progress, 0.0, LATENCY_END, "latency: "))
    memory = _memory(job, part_of(progress, LATENCY_END, MEMORY_END, "memory: "))
    accuracy = _accuracy(job, part_of(progress, MEMORY_END, 1.0, "accuracy: "))
    facts = device_facts()
    document = {
        "schema": RESULTS_SCHEMA,
        "tool": {"name": "leanear", "version": facts["libraries"]["leanear"]},
        "command": [str(argument) for argument in command],
        "started_utc": started,
        "finished_utc": _now(),
        "inputs_sha256": job.inputs_sha256,
        "runtime": runtime,
        "options": {"threads": options.threads, "precision": options.precision},
        "artifacts": {role: _artifact_facts(artifact) for role, artifact in job.artifacts.items()},
        "clips": _clips_facts(job),
        "device_name": device_name(facts),
        "device": facts,
        "device_before": before,
        "device_after": device_state(),
        "latency": latency,
        "memory": memory,
        "accuracy": accuracy,
        "not_measured": dict(NOT_MEASURED),
    }
    results = write_results(out, document)
    failures = results.failures()
    if failures:
        part, reason = next(iter(failures.items()))
        raise MeasurementFailed(f"{part} on {runtime} failed: {reason} (all of it is in {out})")
    shutil.rmtree(job.parts, ignore_errors=True)
    progress("measured", 1.0)
    return results


@dataclass(frozen=True)
class Evaluation:
    """One artifact's answers on labelled clips. accuracy: a share with Wilson's interval; cross_entropy_nats: mean."""

    clips: int
    correct: int
    accuracy: Interval
    cross_entropy_nats: float
    names: tuple[str, ...]
    label_ids: tuple[int, ...]
    predicted_ids: tuple[int, ...]
    labels: tuple[str, ...]


def evaluate(
    artifact: Path, clips: Path, runtime: str, options: SessionOptions, *, progress: Progress = free_of_noise
) -> Evaluation:
    """The accuracy of one artifact on its runtime, in a fresh process.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    require_runtime(runtime, options)
    checked, labelled = read_artifact(Path(artifact)), read_clips(Path(clips))
    check_clips(checked, labelled, Path(clips))
    with tempfile.TemporaryDirectory(prefix="leanear-") as folder:
        store = Path(folder) / "logits.npz"
        request = {
            "artifact": absolute(checked.folder),
            "runtime": runtime,
            "threads": options.threads,
            "precision": options.precision,
            "clips": absolute(clips),
            "logits": absolute(store),
        }
        outcome = run_fresh("benchmarks.accuracy", request, progress)
        if outcome.answer is None:
            raise MeasurementFailed(f"accuracy of {artifact} on {runtime} failed: {outcome.reason}")
        logits = read_logits(store, len(labelled.labels))
    predicted = logits.argmax(axis=1)
    correct = int((predicted == labelled.label_ids).sum())
    return Evaluation(
        clips=len(labelled),
        correct=correct,
        accuracy=wilson_interval(correct, len(labelled)),
        cross_entropy_nats=float(cross_entropy_nats(logits, labelled.label_ids).mean()),
        names=labelled.names,
        label_ids=tuple(int(label) for label in labelled.label_ids),
        predicted_ids=tuple(int(label) for label in predicted),
        labels=labelled.labels,
    )


def _check_job(
    dense: Path | None,
    slim: Path,
    clips_path: Path | None,
    runtime: str,
    options: SessionOptions,
    out: Path,
    settings: tuple[float, int, int],
) -> Job:
    require_runtime(runtime, options)
    artifacts = {} if dense is None else {"dense": read_artifact(Path(dense))}
    artifacts["slim"] = read_artifact(Path(slim))
    if dense is not None and artifacts["dense"].labels != artifacts["slim"].labels:
        raise BadInput(f"{dense} and {slim}: their labels differ, so they cannot be compared")
    clips = None
    if clips_path is not None:
        clips = read_clips(Path(clips_path))
        for artifact in artifacts.values():
            check_clips(artifact, clips, Path(clips_path))
    facts = device_facts()
    inputs = {
        "artifacts": {role: sha256_file(artifact.folder / "manifest.json") for role, artifact in artifacts.items()},
        "clips": None if clips_path is None else sha256_file(Path(clips_path)),
        "runtime": runtime,
        "options": [options.threads, options.precision],
        "settings": settings,
        "device": device_name(facts),
        "libraries": facts["libraries"],
    }
    return Job(
        artifacts=artifacts,
        clips_path=None if clips_path is None else Path(clips_path),
        clips=clips,
        runtime=runtime,
        options=options,
        parts=Path(out).with_name(f".{Path(out).stem}.parts"),
        inputs_sha256=sha256_json(inputs),
    )


def _finished(out: Path, job: Job) -> Results | None:
    """What `out` holds, if it is whole, of the same inputs, and nothing in it failed."""
    if not Path(out).is_file():
        return None
    try:
        results = read_results(out)
    except BadInput:
        return None
    same = results.document["inputs_sha256"] == job.inputs_sha256
    return results if same and not results.failures() else None


def _kept_part(job: Job, name: str) -> dict[str, Any] | None:
    """The part called `name` that an interrupted run finished for the same inputs."""
    try:
        part = read_json(job.parts / f"{name}-{job.inputs_sha256[:16]}.json", PART_SCHEMA, ("part",))
    except BadInput:
        return None
    return part["part"]


def _keep_part(job: Job, name: str, part: dict[str, Any]) -> None:
    if part["status"] == "ok":
        write_json(job.parts / f"{name}-{job.inputs_sha256[:16]}.json", {"schema": PART_SCHEMA, "part": part})


def _latency(job: Job, budget_s: float, samples: int, repeats: int, progress: Progress) -> dict[str, Any]:
    kept = _kept_part(job, "latency")
    if kept is not None:
        return kept
    order = interleaved(tuple(job.artifacts), repeats)
    waveform, source = _benchmark_waveform(job)
    part: dict[str, Any] = {
        "status": "ok",
        "reason": "",
        "log_tail": [],
        "settings": {"repeats": repeats, "samples_wanted": samples, "budget_s": budget_s},
        "input": {
            "source": source,
            "samples": len(waveform),
            "audio_s": round(len(waveform) / job.artifacts["slim"].sample_rate_hz, 6),
        },
        "order": list(order),
        "repeats": [],
        "session": {},
    }
    stored = _store_waveform(job, waveform)
    for place, role in enumerate(order):
        repeat = sum(earlier == role for earlier in order[:place])
        done, following = place / len(order), (place + 1) / len(order)
        request = {
            **job.request(role),
            "waveform": absolute(stored),
            "samples": -(-samples // repeats),
            "share_s": budget_s / len(order),
        }
        load = load_average()
        text = f"{role}, process {repeat + 1} of {repeats}, "
        outcome = run_fresh("benchmarks.latency", request, part_of(progress, done, following, text))
        entry = {"role": role, "repeat": repeat, "load_average_before": load}
        if outcome.answer is None:
            entry.update(status="failed", reason=outcome.reason, log_tail=list(outcome.log_tail))
            part.update(status="failed", reason=f"{role}: {outcome.reason}", log_tail=list(outcome.log_tail))
            part["repeats"].append(entry)
            break
        part["session"][role] = outcome.answer.pop("facts")
        entry.update(status="ok", reason="", log_tail=[], **outcome.answer)
        part["repeats"].append(entry)
    _keep_part(job, "latency", part)
    return part


def interleaved(roles: Sequence[str], repeats: int) -> tuple[str, ...]:
    """The order of the processes: A B B A A B B A, so that a slow drift of the machine falls on both alike."""
    order: list[str] = []
    for repeat in range(repeats):
        order.extend(roles if repeat % 2 == 0 else reversed(roles))
    return tuple(order)


def _benchmark_waveform(job: Job) -> tuple[np.ndarray, str]:
    """One fixed window of real audio: a clip cut, or padded with silence, to what the model looks at."""
    if job.clips is not None:
        waveform, source = job.clips.waveforms[0], f"clip {job.clips.names[0]}"
    else:
        waveform, source = read_golden(job.artifacts["slim"]).waveforms[0], "the artifact's first golden clip"
    window = int(job.artifacts["slim"].manifest["input"].get("window_samples") or len(waveform))
    padded = np.zeros(window, np.float32)
    padded[: min(window, len(waveform))] = waveform[:window]
    return padded, f"{source}, cut or padded to the model's window"


def _store_waveform(job: Job, waveform: np.ndarray) -> Path:
    path = job.parts / "waveform.npy"
    with replaced_file(path) as part, open(part, "wb") as stream:
        np.save(stream, waveform)
    return path


def _memory(job: Job, progress: Progress) -> dict[str, Any]:
    kept = _kept_part(job, "memory")
    if kept is not None:
        return kept
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], "roles": {}}
    reason = memory_readable()
    if reason is not None:
        part.update(status="not measured", reason=reason)
        return part
    stored = _store_waveform(job, _benchmark_waveform(job)[0])
    for place, role in enumerate(job.artifacts):
        request = {**job.request(role), "waveform": absolute(stored), "share_s": MEMORY_SHARE_S}
        share = 1 / len(job.artifacts)
        outcome = run_fresh(
            "benchmarks.memory", request, part_of(progress, place * share, (place + 1) * share, f"{role}, ")
        )
        if outcome.answer is None:
            part.update(status="failed", reason=f"{role}: {outcome.reason}", log_tail=list(outcome.log_tail))
        else:
            part["roles"][role] = outcome.answer
    _keep_part(job, "memory", part)
    return part


def _accuracy(job: Job, progress: Progress) -> dict[str, Any]:
    part: dict[str, Any] = {
        "status": "ok",
        "reason": "",
        "log_tail": [],
        "labels": [],
        "names": [],
        "label_ids": [],
        "roles": {},
        "kl_dense_slim_nats": None,
    }
    if job.clips is None or job.clips_path is None:
        part.update(status="not measured", reason="no evaluation clips were given")
        return part
    part.update(
        labels=list(job.clips.labels), names=list(job.clips.names), label_ids=[int(k) for k in job.clips.label_ids]
    )
    logits = {}
    for place, role in enumerate(job.artifacts):
        share = 1 / len(job.artifacts)
        store = job.parts / f"logits-{_logits_key(job, role)}.npz"
        request = {**job.request(role), "clips": absolute(job.clips_path), "logits": absolute(store)}
        outcome = run_fresh(
            "benchmarks.accuracy", request, part_of(progress, place * share, (place + 1) * share, f"{role}, ")
        )
        if outcome.answer is None:
            part.update(status="failed", reason=f"{role}: {outcome.reason}", log_tail=list(outcome.log_tail))
            continue
        logits[role] = read_logits(store, len(job.clips.labels))
        part["roles"][role] = {
            "predicted_ids": [int(label) for label in logits[role].argmax(axis=1)],
            "cross_entropy_nats": _rounded(cross_entropy_nats(logits[role], job.clips.label_ids)),
        }
    if len(logits) == 2:
        part["kl_dense_slim_nats"] = _rounded(kl_divergence_nats(logits["dense"], logits["slim"]))
    return part


def _logits_key(job: Job, role: str) -> str:
    """Names one artifact's logits by what they depend on, so that they outlive a change of anything else."""
    inputs = [job.artifacts[role].identity, sha256_file(job.clips_path) if job.clips_path else "", job.runtime]
    return sha256_json([*inputs, job.options.threads, job.options.precision, device_facts()["libraries"]])[:16]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _artifact_facts(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "folder": artifact.folder.resolve().name,
        "family": manifest["family"],
        "task": manifest["task"],
        "labels": len(artifact.labels),
        "graphs": manifest["graphs"],
        "input": manifest["input"],
        "model": manifest["model"],
        "parity": manifest["parity"],
        "made_from": manifest["made_from"],
        "manifest_sha256": sha256_file(artifact.folder / "manifest.json"),
    }


def _clips_facts(job: Job) -> dict[str, Any] | None:
    if job.clips is None or job.clips_path is None:
        return None
    samples = sum(len(waveform) for waveform in job.clips.waveforms)
    return {
        "file": job.clips_path.name,
        "sha256": sha256_file(job.clips_path),
        "clips": len(job.clips),
        "sample_rate_hz": job.clips.sample_rate_hz,
        "audio_s": round(samples / job.clips.sample_rate_hz, 3),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
