"""The benchmark: latency, memory and accuracy of a slim artifact beside its dense one, each saved when it is done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

from leanear.benchmarks.measure.answers import measure_answers, measure_recordings
from leanear.benchmarks.measure.engine_check import check_engines
from leanear.benchmarks.measure.job import Effort, Job, beginning, check_job, keep_beginning, kept_part, now_utc
from leanear.benchmarks.measure.parts import latency_part, memory_part, unmeasured_parts
from leanear.benchmarks.measure.processes import Progress, free_of_noise, part_of
from leanear.benchmarks.measure.sustained import measure_lasting_work
from leanear.benchmarks.results import RESULTS_SCHEMA, Results, read_results, write_results
from leanear.benchmarks.sensors.device import device_facts, device_name, device_state
from leanear.runtimes.artifact import Artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.clips import clips_sha256
from leanear.runtimes.errors import BadInput, MeasurementFailed, ParityFailed
from leanear.runtimes.files import only_here, sha256_file
from leanear.runtimes.records import as_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import windows_text

REPEATS = 4
SAMPLES_WANTED = 664  # p99 needs 662; a multiple of the repeats
BUDGET_S = 60.0
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


def benchmark(  # noqa: PLR0913, what a measurement is of
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
        BadInput: an artifact or the clips are not usable or do not belong together; another run is at work for `out`.
        RuntimeUnavailable: the runtime is missing, or computes in another precision than asked for.
        ParityFailed: an engine does not answer as the checkpoint does, so nothing is measured; `out` says so.
        MeasurementFailed: a part failed; `out` is written all the same and holds the reason and the end of the log.
    """
    effort = Effort(budget_s, samples, repeats, sustained_s)
    by_role = {} if dense is None else {"dense": replace(options, precision=dense_precision or options.precision)}
    by_role["slim"] = options
    job = check_job(dense, slim, clips, runtime, by_role, out, effort, asked or {}, window)
    if not fresh and (done := _finished(out, job)) is not None:
        return done
    job.parts.mkdir(parents=True, exist_ok=True)
    with only_here(job.parts, ("*", f"../{Path(out).name}")):
        for kept in job.parts.glob("[!.]*") if fresh else ():
            kept.unlink()
        results = write_results(out, _measured(job, command, progress))
        if results.is_wrong or not results.failures():
            shutil.rmtree(job.parts, ignore_errors=True)
    _refuse_failures(results)
    progress("measured", 1.0)
    return results


def _measured(job: Job, command: Sequence[str], progress: Progress) -> dict[str, Any]:
    """The document of a results file, of which nothing is measured where an engine's answers are wrong."""
    began = beginning(job)
    check = kept_part(job, "check", check_engines, part_of(progress, 0.0, CHECK_END, "check: "))
    if check["status"] == "failed":
        parts = unmeasured_parts(job, f"the check of the engines failed: {check['reason']}")
    else:
        keep_beginning(job, began)
        parts = _measured_parts(job, progress)
    facts = device_facts()
    return {
        "schema": RESULTS_SCHEMA,
        "tool": {"name": "leanear", "version": facts["libraries"]["leanear"]},
        "command": [str(argument) for argument in command],
        "started_utc": began["started_utc"],
        "finished_utc": now_utc(),
        "inputs_sha256": job.inputs_sha256,
        "task": job.artifacts["slim"].task,
        "runtime": job.runtime,
        "options": _options_facts(job),
        "artifacts": {role: _artifact_facts(artifact) for role, artifact in job.artifacts.items()},
        "clips": _clips_facts(job),
        "device_name": device_name(facts),
        "device": facts,
        "device_before": began["device_before"],
        "device_after": device_state(),
        "check": check,
        **parts,
        "not_measured": _not_measured(job.runtime, parts["sustained"]["seconds"]),
    }


def _options_facts(job: Job) -> dict[str, Any]:
    windows = {role: windows_text(each, job.artifacts[role].sample_rate_hz) for role, each in job.windows.items()}
    return {
        "threads": job.options["slim"].threads,
        "precisions": {role: each.precision for role, each in job.options.items()},
        "windows": windows,
    }


def _refuse_failures(results: Results) -> None:
    runtime, out = results.document["runtime"], results.path
    if results.is_wrong:
        reason = results.document["check"]["reason"]
        raise ParityFailed(f"on {runtime} nothing was measured: {reason} (all of it is in {out})")
    for part, reason in results.failures().items():
        raise MeasurementFailed(f"{part} on {runtime} failed: {reason} (all of it is in {out})")


def _measured_parts(job: Job, progress: Progress) -> dict[str, Any]:
    """Latency, memory, accuracy, long recordings where there are any, and sustained work."""
    answers_end = SUSTAINED_START if job.effort.sustained_s else 1.0
    half = (MEMORY_END + answers_end) / 2 if job.is_speech else answers_end
    at_work = part_of(progress, answers_end, 1.0, "sustained: ")
    return {
        "latency": kept_part(job, "latency", latency_part, part_of(progress, CHECK_END, LATENCY_END, "latency: ")),
        "memory": kept_part(job, "memory", memory_part, part_of(progress, LATENCY_END, MEMORY_END, "memory: ")),
        "accuracy": measure_answers(job, part_of(progress, MEMORY_END, half, "accuracy: ")),
        "recordings": measure_recordings(job, part_of(progress, half, answers_end, "long recordings: ")),
        "sustained": kept_part(job, "sustained", measure_lasting_work, at_work),
    }


def _not_measured(runtime: str, sustained_s: float) -> dict[str, str]:
    """What no benchmark of this runtime and length tells, with the reason."""
    told = {OTHER_DEVICES if choose_runtime(runtime).ON_GPU else GPU_MEMORY}
    if sustained_s >= LASTING_S:
        told.add(SUSTAINED_SPEED)
    return {name: reason for name, reason in NOT_MEASURED.items() if name not in told}


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


def _clips_facts(job: Job) -> dict[str, Any] | None:
    """What the results say of the evaluation clips, None where there are none."""
    if job.clips is None or job.clips_path is None:
        return None
    samples = sum(len(waveform) for waveform in job.clips.waveforms)
    return {
        "file": job.clips_path.name,
        "sha256": clips_sha256(job.clips),
        "clips": len(job.clips),
        "sample_rate_hz": job.clips.sample_rate_hz,
        "audio_s": round(samples / job.clips.sample_rate_hz, 3),
    }


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
