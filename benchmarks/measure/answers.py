"""What the artifacts answered on every evaluation clip: labels, the logits of all labels, or transcripts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, List

import numpy as np

from leanear.benchmarks.measure.accuracy import cross_entropy_nats, kl_divergence_nats, read_logits
from leanear.benchmarks.measure.job import Job
from leanear.benchmarks.measure.parts import no_answers, role_answers
from leanear.benchmarks.measure.processes import Progress, absolute
from leanear.benchmarks.measure.transcripts import options_for, read_transcripts
from leanear.benchmarks.sensors.device import device_facts
from leanear.benchmarks.tagging import packed, tag_divergences, tag_entropies
from leanear.runtimes.clips import Clips, write_clips
from leanear.runtimes.files import sha256_file, sha256_json
from leanear.runtimes.speech.decode_options import DecodeOptions

WINDOWS = 3  # of each recording, at least
MOST_S = 600.0  # of all recordings
PAUSE_S = 0.5
NO_CLIPS = "no evaluation clips were given"
WRITTEN = {"beam_size": "beams", "condition": "condition_on_previous"}
ROLE_LISTS = {  # of the results, and of each transcript
    "texts": "text",
    "languages": "language",
    "tokens": "tokens",
    "compression_ratios": "compression_ratio",
    "seconds": "seconds",
    "windows": "windows",
    "second_tries": "second_tries",
}


def recordings_of(clips: Clips, window_s: float) -> Clips:
    """Recordings of at least three windows, of clips in their order with pauses between; none where clips are too few.

    Short clips alone never show what a model does with a full window, its later positions, and the seam to the next
    one. There are none either where a clip is longer than a window itself: then the clips show it.
    """
    rate = clips.sample_rate_hz
    pause = np.zeros(round(PAUSE_S * rate), np.float32)
    joined: List[slice] = []
    start, length, total = 0, 0, 0
    for number, waveform in enumerate(clips.waveforms):
        if len(waveform) > window_s * rate:
            return clips[:0]
        length += len(waveform) + len(pause)
        if length >= WINDOWS * window_s * rate:
            total += length
            if total > MOST_S * rate and joined:
                break
            joined.append(slice(start, number + 1))
            start, length = number + 1, 0
    texts = clips.texts or ()
    return replace(
        clips,
        waveforms=tuple(
            np.concatenate([part for each in clips.waveforms[run] for part in (each, pause)]) for run in joined
        ),
        label_ids=clips.label_ids[: len(joined)],
        names=tuple(f"{clips.names[run.start]} to {clips.names[run.stop - 1]}" for run in joined),
        texts=tuple(" ".join(texts[run]) for run in joined),
    )


def measure_answers(job: Job, progress: Progress) -> dict[str, Any]:
    """The results' accuracy part, as far as a device can know it: word errors are counted on the workstation."""
    return _transcription(job, job.clips, job.clips_path, progress) if job.is_speech else _classification(job, progress)


def _classification(job: Job, progress: Progress) -> dict[str, Any]:
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], **no_answers(is_speech=False)}
    if job.clips is None or job.clips_path is None:
        part.update(status="not measured", reason=NO_CLIPS)
        return part
    tags = job.clips.tags
    truth = [int(k) for k in job.clips.label_ids] if tags is None else [np.flatnonzero(row).tolist() for row in tags]
    part.update(labels=list(job.clips.labels), names=list(job.clips.names), label_ids=truth)
    clips, logits = absolute(job.clips_path), {}
    stores = {role: job.parts / f"logits-{_answers_key(job, job.clips_path, role)}.npz" for role in job.artifacts}
    requests = {role: {"clips": clips, "logits": absolute(store)} for role, store in stores.items()}
    for role, _ in role_answers(job, "leanear.benchmarks.measure.accuracy", requests.__getitem__, part, progress):
        logits[role] = read_logits(stores[role], len(job.clips.labels))
        if tags is None:
            part["roles"][role] = {
                "predicted_ids": [int(label) for label in logits[role].argmax(axis=1)],
                "cross_entropy_nats": _rounded(cross_entropy_nats(logits[role], job.clips.label_ids)),
            }
        else:
            entropies = _rounded(tag_entropies(logits[role], tags))
            part["roles"][role] = {"logits_float32": packed(logits[role]), "cross_entropy_nats": entropies}
    if len(logits) == 2:
        divergences = kl_divergence_nats if tags is None else tag_divergences
        part["kl_dense_slim_nats"] = _rounded(divergences(logits["dense"], logits["slim"]))
    return part


def measure_recordings(job: Job, progress: Progress) -> dict[str, Any] | None:
    """The results' long recordings, as its accuracy part; None for classifiers, and where clips do not make one."""
    if not job.is_speech or job.clips is None:
        return None
    longest_s = max(artifact.speech.decoding.window_s for artifact in job.artifacts.values())
    recordings = recordings_of(job.clips, longest_s)
    if not len(recordings):
        return None
    path = job.parts / "recordings.npz"
    write_clips(path, recordings)
    return _transcription(job, recordings, path, progress)


def _transcription(job: Job, clips: Clips | None, path: Path | None, progress: Progress) -> dict[str, Any]:
    part: dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], **no_answers(is_speech=True)}
    if clips is None or path is None:
        part.update(status="not measured", reason=NO_CLIPS)
        return part
    assert clips.texts is not None
    part.update(
        names=list(clips.names),
        references=list(clips.texts),
        audio_s=[round(len(waveform) / clips.sample_rate_hz, 4) for waveform in clips.waveforms],
        decoding=_as_json(options_for(job.artifacts["slim"], clips, job.asked)),
    )
    stores = {role: job.parts / f"transcripts-{_answers_key(job, path, role)}.json" for role in job.artifacts}
    requests = {
        role: {"clips": absolute(path), "transcripts": absolute(store), "asked": job.asked}
        for role, store in stores.items()
    }
    for role, _ in role_answers(job, "leanear.benchmarks.measure.transcripts", requests.__getitem__, part, progress):
        rows = [asdict(transcript) for transcript in read_transcripts(stores[role])]
        part["roles"][role] = {key: [row[field] for row in rows] for key, field in ROLE_LISTS.items()}
    return part


def _as_json(options: DecodeOptions) -> dict[str, Any]:
    """The options by the names that they have in results, older ones too."""
    named = {WRITTEN.get(key, key): value for key, value in vars(options).items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items()}


def _answers_key(job: Job, clips: Path, role: str) -> str:
    """Names one artifact's answers by what they depend on, so that they outlive a change of anything else."""
    options = job.options[role]
    inputs: list[Any] = [job.artifacts[role].identity, sha256_file(clips), job.runtime]
    inputs += [list(job.windows[role].lengths)] if job.is_speech else []
    inputs += [job.asked] if job.asked else []
    return sha256_json([*inputs, options.threads, options.precision, device_facts()["libraries"]])[:16]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
