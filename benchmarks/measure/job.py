"""What a benchmark is asked for, checked and named, and the parts of it that are done."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from leanear.benchmarks.measure.accuracy import check_clips
from leanear.benchmarks.measure.processes import Progress, absolute
from leanear.benchmarks.measure.transcripts import options_for
from leanear.benchmarks.sensors.device import device_facts, device_name, device_state
from leanear.runtimes.artifact import Artifact, read_artifact, read_golden
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, replaced_file, sha256_file, sha256_json, write_json
from leanear.runtimes.manifest import EncoderWindows
from leanear.runtimes.process.interrupts import remember_kept
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import artifact_windows, window_tokens

PART_SCHEMA = "leanear-results-part-2"


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds for warm-up and steady state, samples per artifact, processes, seconds of work.

    Raises:
        BadInput: one of them is not a number to measure by.
    """

    budget_s: float
    samples: int
    repeats: int
    sustained_s: float

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.samples < 1 or not self.budget_s > 0:
            raise BadInput("repeats, samples and budget: each must be greater than 0")
        if not 0 <= self.sustained_s < float("inf"):
            raise BadInput(f"sustained: {self.sustained_s:g} s is not a time to work")


@dataclass(frozen=True)
class Job:
    """What is measured, checked and named: artifacts by role, clips if any, runtime, and each role's options.

    windows: of speech, which each role's encoder is given; asked_windows: which were asked for, None: the artifact's
    own; asked: "task" and "language" of the transcripts, where not the artifacts' own.
    """

    artifacts: dict[str, Artifact]
    clips_path: Path | None
    clips: Clips | None
    runtime: str
    options: dict[str, SessionOptions]
    windows: dict[str, EncoderWindows]
    asked_windows: dict[str, str | None]
    parts: Path
    inputs_sha256: str
    asked: Dict[str, str]
    effort: Effort

    @property
    def is_speech(self) -> bool:
        """Whether the artifacts write down speech."""
        return self.artifacts["slim"].is_speech

    @property
    def tokens(self) -> int | None:
        """How many tokens a measured window of speech generates; None for classifiers."""
        if not self.is_speech:
            return None
        slim = self.artifacts["slim"]
        heard_s = len(benchmark_waveform(self)[0]) / slim.sample_rate_hz if self.hears_short else None
        return window_tokens(slim.speech.decoding, heard_s)

    @property
    def hears_short(self) -> bool:
        """Whether some role's encoder is given windows shorter than the full one, so that clips are not filled up."""
        return any(len(windows.lengths) > 1 for windows in self.windows.values())

    def name(self, role: str) -> str:
        """How a reader is told which artifact is meant: one alone is neither slim nor dense."""
        return role if len(self.artifacts) > 1 else "model"

    def request(self, role: str) -> dict[str, Any]:
        """What every worker needs to load the artifact of `role`."""
        return {
            "artifact": absolute(self.artifacts[role].folder),
            "runtime": self.runtime,
            "threads": self.options[role].threads,
            "precision": self.options[role].precision,
            "window": self.asked_windows[role],
        }


def check_job(
    dense: Path | None,
    slim: Path,
    clips_path: Path | None,
    runtime: str,
    options: dict[str, SessionOptions],
    out: Path,
    effort: Effort,
    asked: dict[str, str],
    window: str | None = None,
) -> Job:
    """The job, its artifacts and clips read and found to belong together.

    options: of "slim" and, where there is one, of "dense"; asked: as a Job's; window: of slim, None: the artifact's
    own, as dense's always is.

    Raises:
        BadInput: they do not.
        RuntimeUnavailable: the runtime is missing, or computes in another precision than asked for.
    """
    for each in options.values():
        require_runtime(runtime, each)
    artifacts = _read_artifacts(dense, slim)
    clips = None if clips_path is None else _read_clips(clips_path, artifacts)
    if asked:
        _check_asked(artifacts["slim"], clips, asked)
    asked_windows = {role: window if role == "slim" else None for role in artifacts}
    windows = {}
    if artifacts["slim"].is_speech:
        windows = {role: artifact_windows(each, asked_windows[role]) for role, each in artifacts.items()}
    elif window is not None:
        raise BadInput(f"--window {window}: it is for Whisper; {slim} is a classifier")
    facts = device_facts()
    inputs = {
        "artifacts": {role: sha256_file(artifact.folder / "manifest.json") for role, artifact in artifacts.items()},
        "clips": None if clips_path is None else sha256_file(Path(clips_path)),
        "runtime": runtime,
        "options": {role: [options[role].threads, options[role].precision] for role in artifacts},
        "settings": [*astuple(effort), window],
        "device": device_name(facts),
        "libraries": facts["libraries"],
        **({"asked": asked} if asked else {}),
    }
    return Job(
        artifacts=artifacts,
        clips_path=None if clips_path is None else Path(clips_path),
        clips=clips,
        runtime=runtime,
        options=options,
        windows=windows,
        asked_windows=asked_windows,
        parts=Path(out).with_name(f".{Path(out).name}.parts"),
        inputs_sha256=sha256_json(inputs),
        asked=asked,
        effort=effort,
    )


def _read_artifacts(dense: Path | None, slim: Path) -> dict[str, Artifact]:
    artifacts = {} if dense is None else {"dense": read_artifact(Path(dense))}
    artifacts["slim"] = read_artifact(Path(slim))
    if dense is not None:
        _check_comparable(artifacts["dense"], artifacts["slim"])
    return artifacts


def _read_clips(path: Path, artifacts: dict[str, Artifact]) -> Clips:
    clips = read_clips(Path(path))
    for artifact in artifacts.values():
        check_clips(artifact, clips, Path(path))
    return clips


def _check_asked(artifact: Artifact, clips: Clips | None, asked: dict[str, str]) -> None:
    """Raises BadInput where there is nothing to transcribe in another task or language, or the model has it not."""
    flags = " and ".join(f"--{name}" for name in asked)
    if not artifact.is_speech:
        raise BadInput(f"{flags}: for Whisper; {artifact.folder} is a classifier")
    if clips is None:
        raise BadInput(f"{flags}: for the transcripts of clips, and none were given")
    options_for(artifact, clips, asked)


def _check_comparable(dense: Artifact, slim: Artifact) -> None:
    """Raises BadInput where the two do not answer in the same terms."""
    both = f"{dense.folder} and {slim.folder}"
    if dense.task != slim.task:
        raise BadInput(f"{both}: one is for {dense.task}, the other for {slim.task}")
    if dense.labels != slim.labels:
        raise BadInput(f"{both}: their labels differ, so they cannot be compared")
    if slim.is_speech:
        one, other = dense.speech, slim.speech
        for what, differs in (
            ("vocabularies", one.vocabulary != other.vocabulary),
            ("decoding settings", one.decoding != other.decoding),
            ("inputs", replace(one.input, windows=None) != replace(other.input, windows=None)),
        ):
            if differs:
                raise BadInput(f"{both}: their {what} differ, so they cannot be compared")


def kept_part(
    job: Job, name: str, measure: Callable[[Job, Progress], Dict[str, Any]], progress: Progress
) -> dict[str, Any]:
    """The part called `name` that an interrupted run finished for the same inputs, else as it is measured now.

    One that does not fail is kept, for a run that is interrupted.
    """
    path = _part_path(job, name)
    with contextlib.suppress(BadInput):
        part = read_json(path, PART_SCHEMA, ("part",))["part"]
        remember_kept(path)
        return part
    part = measure(job, progress)
    if part["status"] == "ok":
        write_json(path, {"schema": PART_SCHEMA, "part": part})
        remember_kept(path)
    return part


def beginning(job: Job) -> dict[str, Any]:
    """When the measurement began, and the machine's state then: of one that was interrupted, the first time."""
    path = _part_path(job, "beginning")
    try:
        return read_json(path, PART_SCHEMA, ("part",))["part"]
    except BadInput:
        return {"started_utc": now_utc(), "device_before": device_state()}


def keep_beginning(job: Job, part: dict[str, Any]) -> None:
    """Keep it, which by itself is nothing to go on from, for a run that is interrupted."""
    write_json(_part_path(job, "beginning"), {"schema": PART_SCHEMA, "part": part})


def now_utc() -> str:
    """The time, to a second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _part_path(job: Job, name: str) -> Path:
    return job.parts / f"{name}-{job.inputs_sha256[:16]}.json"


def benchmark_waveform(job: Job) -> tuple[np.ndarray, str]:
    """One fixed window of real audio: a clip cut, or padded with silence, to what the model looks at.

    Where windows shorter than the full one are heard, it is the clip of median length, as long as it is.
    """
    if job.hears_short:
        return _median_clip(job)
    if job.clips is not None:
        waveform, source = job.clips.waveforms[0], f"clip {job.clips.names[0]}"
    else:
        waveform, source = read_golden(job.artifacts["slim"]).waveforms[0], "the artifact's first golden clip"
    window = job.artifacts["slim"].manifest.input.window_samples
    padded = np.zeros(window, np.float32)
    padded[: min(window, len(waveform))] = waveform[:window]
    return padded, f"{source}, cut or padded to the model's window"


def _median_clip(job: Job) -> tuple[np.ndarray, str]:
    if job.clips is not None:
        named = list(zip(job.clips.waveforms, (f"clip {name}" for name in job.clips.names)))
    else:
        golden = read_golden(job.artifacts["slim"]).waveforms
        named = [(waveform, f"golden clip {number} of the artifact") for number, waveform in enumerate(golden)]
    waveform, source = sorted(named, key=lambda pair: len(pair[0]))[(len(named) - 1) // 2]
    window = job.artifacts["slim"].manifest.input.window_samples
    return np.ascontiguousarray(waveform[:window], np.float32), f"{source}, that of median length"


def latency_head(job: Job) -> dict[str, Any]:
    """What the results' part "latency" says before anything is measured."""
    waveform, source = benchmark_waveform(job)
    effort = job.effort
    return {
        "settings": {
            "repeats": effort.repeats,
            "samples_wanted": effort.samples,
            "budget_s": effort.budget_s,
            "tokens": job.tokens,
        },
        "input": {
            "source": source,
            "samples": len(waveform),
            "audio_s": round(len(waveform) / job.artifacts["slim"].sample_rate_hz, 6),
        },
        "order": [],
        "repeats": [],
        "session": {},
        "front_end_share": {},
    }


def store_waveform(job: Job) -> Path:
    """The benchmark's waveform in a file among the parts, for the processes that measure."""
    path = job.parts / "waveform.npy"
    with replaced_file(path) as part, open(part, "wb") as stream:
        np.save(stream, benchmark_waveform(job)[0])
    return path
