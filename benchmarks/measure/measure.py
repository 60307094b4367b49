"""The benchmark: latency, memory and accuracy of a slim artifact beside its dense one, each saved when it is done."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from leanear.benchmarks.measure.accuracy import check_clips, cross_entropy_nats, read_logits
from leanear.benchmarks.measure.answers import measure_answers
from leanear.benchmarks.measure.engine_check import check_engines
from leanear.benchmarks.measure.job import (
    Job,
    benchmark_waveform,
    check_job,
    clips_facts,
    keep_part,
    kept_part,
    store_waveform,
)
from leanear.benchmarks.measure.memory import memory_readable
from leanear.benchmarks.measure.processes import Progress, absolute, free_of_noise, part_of, run_fresh
from leanear.benchmarks.measure.sustained import measure_lasting_work
from leanear.benchmarks.measure.transcripts import Transcript, options_for, read_transcripts
from leanear.benchmarks.measure.unmeasured import unmeasured_parts
from leanear.benchmarks.results import RESULTS_SCHEMA, Results, read_results, write_results
from leanear.benchmarks.sensors.device import device_facts, device_name, device_state, load_average
from leanear.benchmarks.sensors.recorder import Recorder
from leanear.benchmarks.sensors.sensor_records import throttling
from leanear.benchmarks.summary import Interval, wilson_interval
from leanear.benchmarks.tagging import TagQuality, tag_entropies, tag_quality
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import choose_runtime, require_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput, MeasurementFailed, ParityFailed
from leanear.runtimes.files import sha256_file
from leanear.runtimes.records import as_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import windows_text
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK

REPEATS = 4
SAMPLES_WANTED = 664  # p99 needs 662; a multiple of the repeats
BUDGET_S = 60.0
MEMORY_SHARE_S = 5.0
CHECK_END, LATENCY_END, MEMORY_END, SUSTAINED_START = 0.03, 0.55, 0.65, 0.8
LASTING_S = 600.0
SUSTAINED_SPEED, OTHER_DEVICES, GPU_MEMORY = "sustained speed", "GPU or NPU", "GPU memory"
DECODING_FACTS = ("window_s", "positions", "multilingual", "default_language", "default_task")

NOT_MEASURED = {
    SUSTAINED_SPEED: "no run of ten minutes or more was made, so throttling under lasting heat is unknown",
    "cold page cache": "the files' cached pages were not dropped before loading, so a load from a cold disk is slower",
    OTHER_DEVICES: "ONNX Runtime and OpenVINO compute on the CPU alone here",
    GPU_MEMORY: "bytes of memory are those of the process; what its engines hold on the GPU is not among them",
}


def benchmark(
    dense: Path | None,
    slim: Path,
    clips: Path | None,
    runtime: str,
    options: SessionOptions,
    out: Path,
    *,
    dense_precision: str | None = None,
    window: str | None = None,
    budget_s: float = BUDGET_S,
    sustained_s: float = 0.0,
    samples: int = SAMPLES_WANTED,
    repeats: int = REPEATS,
    command: Sequence[str] = (),
    progress: Progress = free_of_noise,
    fresh: bool = False,
    asked: dict[str, str] | None = None,
) -> Results:
    """Results of `slim`, and of `dense` beside it where there is one, written to `out`.

    Where `out` already holds the results of the same inputs on this machine they are returned as they are, and parts
    that an interrupted run finished are taken from the folder beside `out`; `fresh` measures everything again.

    dense_precision: what `dense` is measured in, that of `options` where it is None: a slim artifact in 8 bits is so
    compared with a dense one in float32. window: of speech, "full", "auto" or seconds: which windows the slim
    artifact's encoder is given, None: its own, as the dense one is. budget_s: time for warm-up and steady state, all
    processes together; fewer than `samples` per artifact are taken where it does not suffice. sustained_s: how long
    each artifact works without a pause at the end; 0: only for as long as its energy takes, where a sensor shows power.
    progress: called with a text and the share that is done. asked: "task" and "language" of the transcripts, where not
    the artifacts' own.

    Raises:
        BadInput: an artifact or the clips are not what they should be, or do not belong together.
        RuntimeUnavailable: the runtime is missing, or computes in another precision than asked for.
        ParityFailed: an engine does not answer as the checkpoint does, so nothing is measured; `out` says so.
        MeasurementFailed: a part failed; `out` is written all the same and holds the reason and the end of the log.
    """
    if repeats < 1 or samples < 1 or not budget_s > 0:
        raise BadInput("repeats, samples and budget: each must be greater than 0")
    if not 0 <= sustained_s < float("inf"):
        raise BadInput(f"sustained: {sustained_s:g} s is not a time to work")
    by_role = {} if dense is None else {"dense": replace(options, precision=dense_precision or options.precision)}
    by_role["slim"] = options
    settings = (budget_s, samples, repeats, sustained_s)
    job = check_job(dense, slim, clips, runtime, by_role, out, settings, asked or {}, window)
    if fresh:
        shutil.rmtree(job.parts, ignore_errors=True)
    else:
        done = _finished(out, job)
        if done is not None:
            return done
    started, before = _now(), device_state()
    check = check_engines(job, part_of(progress, 0.0, CHECK_END, "check: "))
    if check["status"] == "failed":
        parts = unmeasured_parts(job, settings, f"the check of the engines failed: {check['reason']}")
    else:
        parts = _measured_parts(job, settings, progress)
    facts = device_facts()
    document = {
        "schema": RESULTS_SCHEMA,
        "tool": {"name": "leanear", "version": facts["libraries"]["leanear"]},
        "command": [str(argument) for argument in command],
        "started_utc": started,
        "finished_utc": _now(),
        "inputs_sha256": job.inputs_sha256,
        "task": job.artifacts["slim"].task,
        "runtime": runtime,
        "options": {
            "threads": options.threads,
            "precisions": {role: each.precision for role, each in by_role.items()},
            "windows": {
                role: windows_text(each, job.artifacts[role].sample_rate_hz) for role, each in job.windows.items()
            },
        },
        "artifacts": {role: _artifact_facts(artifact) for role, artifact in job.artifacts.items()},
        "clips": clips_facts(job),
        "device_name": device_name(facts),
        "device": facts,
        "device_before": before,
        "device_after": device_state(),
        "check": check,
        **parts,
        "not_measured": _not_measured(runtime, parts["sustained"]["seconds"]),
    }
    results = write_results(out, document)
    failures = results.failures()
    if results.is_wrong:
        raise ParityFailed(f"on {runtime} nothing was measured: {check['reason']} (all of it is in {out})")
    if failures:
        part, reason = next(iter(failures.items()))
        raise MeasurementFailed(f"{part} on {runtime} failed: {reason} (all of it is in {out})")
    shutil.rmtree(job.parts, ignore_errors=True)
    progress("measured", 1.0)
    return results


def _measured_parts(job: Job, settings: tuple[float, int, int, float], progress: Progress) -> dict[str, Any]:
    """Latency, memory, accuracy and sustained work; settings: budget_s, samples, repeats, sustained_s."""
    budget_s, samples, repeats, sustained_s = settings
    answers_end = SUSTAINED_START if sustained_s else 1.0
    return {
        "latency": _latency(job, budget_s, samples, repeats, part_of(progress, CHECK_END, LATENCY_END, "latency: ")),
        "memory": _memory(job, part_of(progress, LATENCY_END, MEMORY_END, "memory: ")),
        "accuracy": measure_answers(job, part_of(progress, MEMORY_END, answers_end, "accuracy: ")),
        "sustained": measure_lasting_work(job, sustained_s, part_of(progress, answers_end, 1.0, "sustained: ")),
    }


def _not_measured(runtime: str, sustained_s: float) -> dict[str, str]:
    """What no benchmark of this runtime and length tells, with the reason."""
    told = {OTHER_DEVICES if choose_runtime(runtime).ON_GPU else GPU_MEMORY}
    if sustained_s >= LASTING_S:
        told.add(SUSTAINED_SPEED)
    return {name: reason for name, reason in NOT_MEASURED.items() if name not in told}


@dataclass(frozen=True)
class TagEvaluation:
    """One artifact's answers on clips that may have several labels. logits: float32 (clips, labels)."""

    quality: TagQuality
    cross_entropy_nats: float
    logits: np.ndarray


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
    artifact: Path,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    *,
    store: Path | None = None,
    progress: Progress = free_of_noise,
) -> Evaluation:
    """The accuracy of one classifier of single labels on its runtime, in a fresh process.

    store: a file that keeps the answers, so that interrupted work goes on; it has to be of just these arguments.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    checked, labelled = _check_evaluation(artifact, clips, runtime, options)
    if checked.task in (SPEECH_TASK, TAGGING_TASK):
        raise BadInput(f"{artifact}: it is for {checked.task}; its answers have no accuracy")
    logits = _logits(checked, labelled, clips, runtime, options, store, progress)
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


def evaluate_tags(
    artifact: Path,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    *,
    store: Path | None = None,
    progress: Progress = free_of_noise,
) -> TagEvaluation:
    """How well one artifact whose clips may have several labels ranks them on its runtime, in a fresh process.

    store: as for `evaluate`.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    checked, tagged = _check_evaluation(artifact, clips, runtime, options)
    if checked.task != TAGGING_TASK or tagged.tags is None:
        raise BadInput(f"{artifact}: it is for {checked.task}; its clips do not have several labels")
    logits = _logits(checked, tagged, clips, runtime, options, store, progress)
    return TagEvaluation(tag_quality(logits, tagged.tags), float(tag_entropies(logits, tagged.tags).mean()), logits)


def _logits(
    artifact: Artifact,
    labelled: Clips,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    store: Path | None,
    progress: Progress,
) -> np.ndarray:
    """float32 (clips, labels); store: as for `evaluate`."""
    with tempfile.TemporaryDirectory(prefix="leanear-") as folder:
        store = store or Path(folder) / "logits.npz"
        _answer_clips(
            artifact,
            clips,
            runtime,
            options,
            "leanear.benchmarks.measure.accuracy",
            {"logits": absolute(store)},
            progress,
        )
        return read_logits(store, len(labelled.labels))


def evaluate_transcripts(
    artifact: Path,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    *,
    store: Path | None = None,
    progress: Progress = free_of_noise,
    asked: dict[str, str] | None = None,
) -> tuple[Transcript, ...]:
    """What one speech artifact hears in every clip on its runtime, in a fresh process.

    store: as for `evaluate`; asked: as for `benchmark`.

    Raises:
        BadInput, RuntimeUnavailable, MeasurementFailed: as `benchmark`.
    """
    checked, read = _check_evaluation(artifact, clips, runtime, options)
    if not checked.is_speech:
        raise BadInput(f"{artifact}: it classifies; it writes no transcripts")
    options_for(checked, read, asked or {})
    with tempfile.TemporaryDirectory(prefix="leanear-") as folder:
        store = store or Path(folder) / "transcripts.json"
        worker, kept = "leanear.benchmarks.measure.transcripts", {"transcripts": absolute(store), "asked": asked or {}}
        _answer_clips(checked, clips, runtime, options, worker, kept, progress)
        return read_transcripts(store)


def _check_evaluation(artifact: Path, clips: Path, runtime: str, options: SessionOptions) -> tuple[Artifact, Clips]:
    require_runtime(runtime, options)
    checked, read = read_artifact(Path(artifact)), read_clips(Path(clips))
    check_clips(checked, read, Path(clips))
    return checked, read


def _answer_clips(
    artifact: Artifact,
    clips: Path,
    runtime: str,
    options: SessionOptions,
    worker: str,
    kept: dict[str, Any],
    progress: Progress,
) -> None:
    """Run `worker` over all clips; kept: the key and the file of its answers, and what else it is told."""
    request = {
        "artifact": absolute(artifact.folder),
        "runtime": runtime,
        "threads": options.threads,
        "precision": options.precision,
        "window": None,
        "clips": absolute(clips),
        **kept,
    }
    outcome = run_fresh(worker, request, progress)
    if outcome.answer is None:
        raise MeasurementFailed(f"the clips through {artifact.folder} on {runtime} failed: {outcome.reason}")


def _finished(out: Path, job: Job) -> Results | None:
    """What `out` holds, if it is whole, of the same inputs, and nothing in it failed."""
    if not Path(out).is_file():
        return None
    try:
        results = read_results(out)
    except BadInput:
        return None
    same = results.content.inputs_sha256 == job.inputs_sha256
    return results if same and not results.failures() else None


def _latency(job: Job, budget_s: float, samples: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """The results' part "latency", with what the sensors showed meanwhile."""
    kept = kept_part(job, "latency")
    if kept is not None:
        return kept
    with Recorder() as recorder:
        part = _timings(job, budget_s, samples, repeats, progress)
    record = recorder.record()
    part["sensors"] = {**record, "throttling": throttling(record)}
    keep_part(job, "latency", part)
    return part


def _timings(job: Job, budget_s: float, samples: int, repeats: int, progress: Progress) -> dict[str, Any]:
    order = interleaved(tuple(job.artifacts), repeats)
    waveform, source = benchmark_waveform(job)
    part: dict[str, Any] = {
        "status": "ok",
        "reason": "",
        "log_tail": [],
        "settings": {"repeats": repeats, "samples_wanted": samples, "budget_s": budget_s, "tokens": job.tokens},
        "input": {
            "source": source,
            "samples": len(waveform),
            "audio_s": round(len(waveform) / job.artifacts["slim"].sample_rate_hz, 6),
        },
        "order": list(order),
        "repeats": [],
        "session": {},
        "front_end_share": {},
    }
    stored = store_waveform(job, waveform)
    for place, role in enumerate(order):
        repeat = sum(earlier == role for earlier in order[:place])
        done, following = place / len(order), (place + 1) / len(order)
        request = {
            **job.request(role),
            "waveform": absolute(stored),
            "samples": -(-samples // repeats),
            "share_s": budget_s / len(order),
            "tokens": job.tokens,
        }
        load = load_average()
        text = f"{job.name(role)}, process {repeat + 1} of {repeats}, "
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


def _memory(job: Job, progress: Progress) -> dict[str, Any]:
    kept = kept_part(job, "memory")
    if kept is not None:
        return kept
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], "roles": {}}
    reason = memory_readable()
    if reason is not None:
        part.update(status="not measured", reason=reason)
        return part
    stored = store_waveform(job, benchmark_waveform(job)[0])
    for place, role in enumerate(job.artifacts):
        request = {**job.request(role), "waveform": absolute(stored), "share_s": MEMORY_SHARE_S, "tokens": job.tokens}
        share = 1 / len(job.artifacts)
        outcome = run_fresh(
            "leanear.benchmarks.measure.memory",
            request,
            part_of(progress, place * share, (place + 1) * share, f"{job.name(role)}, "),
        )
        if outcome.answer is None:
            part.update(status="failed", reason=f"{job.name(role)}: {outcome.reason}", log_tail=list(outcome.log_tail))
        else:
            part["roles"][role] = outcome.answer
    keep_part(job, "memory", part)
    return part


def _artifact_facts(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    speech = artifact.speech if artifact.is_speech else None
    return {
        "folder": artifact.folder.resolve().name,
        "family": manifest.family,
        "task": manifest.task,
        "labels": len(artifact.labels),
        "vocabulary": None if speech is None else speech.output.shape[1],
        "decoding": None if speech is None else {key: getattr(speech.decoding, key) for key in DECODING_FACTS},
        "cache": None if speech is None else as_json(speech.cache),
        "graphs": as_json(manifest.graphs),
        "input": as_json(manifest.input),
        "model": manifest.model,
        "parity": manifest.parity,
        "made_from": manifest.made_from,
        "manifest_sha256": sha256_file(artifact.folder / "manifest.json"),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
