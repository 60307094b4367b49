"""Golden clips through an engine where it runs, against what the checkpoint answered: before anything is measured.

An engine that a device's runtime made of a proved graph can be wrong all the same: float16 that overflows there, a
kernel with a fault, a driver. What it answers to a few golden clips says so, and an engine that is wrong is not timed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from leanear.benchmarks.measure.job import Job
from leanear.benchmarks.measure.processes import Progress, answer_request, part_of, run_fresh
from leanear.benchmarks.results_document import RoleCheck
from leanear.runtimes.artifact import Artifact, Golden, read_artifact, read_golden
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.records import as_json
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import artifact_windows
from leanear.runtimes.speech.guided_steps import clip_divergences, guided_logits, text_steps, until_end, written_down
from leanear.runtimes.speech.tokens.vocabulary import read_vocabulary

MOST_CLIPS = 4  # two as they are, and the two that the proof made shorter and longer than a window
# They tell an engine that is wrong from one that is coarse: what coarseness costs is for the precision gate to say.
# Of a classifier: root mean square of a clip's differences over the spread of its logits, the mean of all clips. Of
# speech: KL(checkpoint || engine) in nats per token after the same tokens, the mean of all steps.
SPREAD_BOUNDS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.35, "int8": 0.35, "int8-bf16": 0.4}
NATS_BOUNDS = {"fp32": 3e-5, "fp16": 0.003, "bf16": 0.06, "int8": 0.06, "int8-bf16": 0.06}
TIMES_PROVED = 4.0  # of what 8 bits cost when the graph was proved, on these clips and some more
# Near ties fall either way, and a text that breaks off there is many words; the more so the coarser the type.
CHANGED_WORDS_SHARE, COARSE_CHANGED_WORDS_SHARE, FEW_WORDS = 1 / 3, 0.9, 2
COMPUTES_NOTHING = "the null runtime computes nothing that could be compared"
SPREAD, NATS = "of the logits' spread", "nats a token"


def check_engines(job: Job, progress: Progress) -> Dict[str, Any]:
    """The results' part "check": each role's verdict, before which nothing is measured.

    Its status is "failed" where an engine answers something else than the checkpoint did, or nothing.
    """
    part: Dict[str, Any] = {"status": "ok", "reason": "", "log_tail": [], "roles": {}}
    if job.runtime == "null":
        return {**part, "status": "not measured", "reason": COMPUTES_NOTHING}
    for place, role in enumerate(job.artifacts):
        share = 1 / len(job.artifacts)
        told = part_of(progress, place * share, (place + 1) * share, f"{role}, ")
        outcome = run_fresh("leanear.benchmarks.measure.engine_check", job.request(role), told)
        if outcome.answer is None:
            part.update(status="failed", reason=f"{role}: {outcome.reason}", log_tail=list(outcome.log_tail))
            return part
        part["roles"][role] = outcome.answer
        if outcome.answer["verdict"] == "failed":
            part.update(status="failed", reason=f"{role}: {outcome.answer['reason']}")
            return part
    return part


def check_engine(request: Dict[str, Any], progress: Progress) -> Dict[str, Any]:
    """One role's verdict with its figures; request: artifact (folder), runtime, threads, precision.

    error: in `unit`, up to `bound`; cosine: the smallest of all clips' and steps'; answers, changed: first labels, or
    words, and how many are not the checkpoint's. Figures are None where the engine gave no finite logits.
    """
    artifact = read_artifact(Path(request["artifact"]))
    options = SessionOptions(threads=request["threads"], precision=request["precision"])
    golden, clips = read_golden(artifact), chosen_clips(len(read_golden(artifact).waveforms))
    is_speech = golden.speech is not None
    bound = _bound(artifact, options.precision, NATS_BOUNDS if is_speech else SPREAD_BOUNDS)
    answer = RoleCheck(len(clips), NATS if is_speech else SPREAD, bound, None, None, None, None, "failed", "")
    session = require_runtime(request["runtime"], options).load(artifact, options)
    progress("golden clips", 0.5)
    try:
        figures = (_heard if is_speech else _classified)(session, artifact, golden, clips)
    except MeasurementFailed as error:
        return as_json(replace(answer, reason=f"golden clips: {error}"))
    finally:
        session.close()
    answer = replace(answer, **figures)
    reason = _reason(answer, is_speech)
    return as_json(replace(answer, verdict="failed" if reason else "passed", reason=reason))


def chosen_clips(clips: int) -> List[int]:
    """Which of so many golden clips are looked at: the first ones, and the last two."""
    half = MOST_CLIPS // 2
    return list(range(clips)) if clips <= MOST_CLIPS else [*range(half), *range(clips - half, clips)]


def figures_text(answer: RoleCheck) -> str:
    """A role's figures in words."""
    if answer.error is None:
        return "no finite logits"
    what = "words" if answer.unit == NATS else "first labels"
    return (
        f"off by {answer.error:.2g} {answer.unit} (bound {answer.bound:g}), cosine {answer.cosine or 0.0:.4f}, "
        f"{answer.changed} of {answer.answers} {what} changed, on {answer.clips} golden clips"
    )


def _reason(answer: RoleCheck, is_speech: bool) -> str:
    """Why the engine is wrong, "" if it is not."""
    share = COARSE_CHANGED_WORDS_SHARE if answer.bound > NATS_BOUNDS["fp16"] else CHANGED_WORDS_SHARE
    many = is_speech and (answer.changed or 0) > max(FEW_WORDS, share * (answer.answers or 0))
    if answer.error is not None and answer.error <= answer.bound and not many:
        return ""
    return f"the engine does not answer as the checkpoint does: {figures_text(answer)}"


def _bound(artifact: Artifact, precision: str, bounds: Dict[str, float]) -> float:
    """The bound of the coarsest type that is computed in: the graphs' own, or the one that the runtime is told.

    What 8 bits cost this model is known from its proof; an engine may be off by a few times as much.
    """
    bound = max(bounds[each] for each in {precision, *artifact.precisions})
    proof = artifact.manifest.parity or {}
    proved = proof.get("divergence" if artifact.is_speech else "noise")
    if precision != "int8" or proved is None:
        return bound
    return min(bound, max(TIMES_PROVED * float(proved), bounds["fp16"]))


def _classified(session: Any, artifact: Artifact, golden: Golden, clips: Sequence[int]) -> Dict[str, Any]:  # noqa: ARG001
    expected = golden.logits[list(clips)].astype(np.float64)
    found = np.stack([session.run(golden.waveforms[clip]) for clip in clips]).astype(np.float64)
    spread = expected.std(axis=1) if expected.shape[1] > 1 else np.full(len(clips), golden.logits.std())
    apart = np.sqrt(((expected - found) ** 2).mean(axis=1))
    tied = expected.max(axis=1) - expected[np.arange(len(clips)), found.argmax(axis=1)] <= apart
    return {
        "error": _rounded((apart / np.maximum(spread, 1e-12)).mean()),
        "cosine": _rounded(_cosines(expected, found).min()),
        "answers": len(clips),
        "changed": int((~tied).sum()),
    }


def _heard(session: Any, artifact: Artifact, golden: Golden, clips: Sequence[int]) -> Dict[str, Any]:
    decoding, speech = artifact.speech.decoding, golden.speech
    assert speech is not None
    vocabulary = read_vocabulary(artifact.folder / artifact.speech.vocabulary.file)
    windows, nats, cosines, words = artifact_windows(artifact), [], [], [0, 0]
    for clip in clips:
        waveform, steps = golden.waveforms[clip], text_steps(golden, clip, decoding)
        logits, _ = guided_logits(session, waveform, windows.holding(len(waveform)), speech, clip)
        nats.append(clip_divergences(golden, clip, logits, decoding))
        cosines.append(_cosines(golden.logits[clip, steps], logits[steps][:, speech.columns]))
        said = vocabulary.text(until_end(speech.tokens[clip].tolist(), decoding.end)).split()
        own = vocabulary.text(written_down(session, speech.prompt, speech.tokens.shape[1], decoding)).split()
        words = [words[0] + len(said), words[1] + edits(said, own)]
    return {
        "error": _rounded(max(0.0, np.concatenate(nats).mean())),  # of what is the same rounding leaves a little
        "cosine": _rounded(np.concatenate(cosines).min()),
        "answers": words[0],
        "changed": words[1],
    }


def _cosines(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of each pair of rows."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return (expected * found).sum(axis=1) / np.maximum(lengths, 1e-12)


def edits(expected: Sequence[str], found: Sequence[str]) -> int:
    """How many words have to be replaced, left out or put in (Levenshtein)."""
    row = list(range(len(found) + 1))
    for place, word in enumerate(expected, 1):
        before, row[0] = row[0], place
        for column, other in enumerate(found, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != other))
    return row[-1]


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")


if __name__ == "__main__":
    answer_request(check_engine)
