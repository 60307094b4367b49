"""Proof that an artifact's graphs compute what their checkpoint computes: a step of its own, which can fail.

python -m export.parity FOLDER [--dense-graph-bytes N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.golden_speech import log_sums
from runtimes import onnx_cpu
from runtimes.artifact import Artifact, Golden, read_artifact, read_golden
from runtimes.errors import BadInput, LeanearError, MeasurementFailed, ParityFailed, RuntimeUnavailable
from runtimes.files import write_json
from runtimes.sessions import SessionOptions, SpeechSession

BOUND = 1e-4
THREADS = 2


@dataclass(frozen=True)
class Parity:
    """What was compared and how far apart it was.

    max_difference: largest |difference| of two logits; scale: largest |logit| of the checkpoint; relative_difference:
    their quotient, which `bound` limits; clips: how many golden clips; same_top1: on how many of them the first label,
    or every decoded token, is the same, those whose logits differ by less than the bound counting as the same;
    graph_bytes, dense_graph_bytes: sizes of the graph files, the latter null if it was not given; tokens, same_tokens:
    how many tokens a Whisper decoded and how many of them are the same, null of a classifier.
    """

    runtime: str
    runtime_version: str
    precision: str
    threads: int
    clips: int
    max_difference: float
    scale: float
    relative_difference: float
    bound: float
    same_top1: int
    graph_bytes: int
    dense_graph_bytes: int | None
    tokens: int | None = None
    same_tokens: int | None = None


def prove_parity(folder: Path, *, dense_graph_bytes: int | None = None) -> Parity:
    """The figures of an artifact that passed, which are written into its manifest.

    Every golden clip runs through the graph on ONNX Runtime's CPU provider in float32. That happens in a process of its
    own, so that the checkpoint and two copies of the graph's weights are never in one process's memory.

    Raises:
        ParityFailed: a logit is not finite or too far away, a first label differs, or the graph's file is not smaller
            than `dense_graph_bytes`; the manifest is left as it was.
        BadInput: the folder is not an artifact, or a file in it is not the one that the manifest names.
    """
    command = [sys.executable, "-m", "export.parity"]
    if dense_graph_bytes is not None:
        command += ["--dense-graph-bytes", str(dense_graph_bytes)]
    command += ["--", str(folder)]
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    for error in (ParityFailed, BadInput, RuntimeUnavailable):
        if ended.returncode == error.exit_status:
            raise error(ended.stderr.strip().splitlines()[-1])
    if ended.returncode != 0:
        raise ParityFailed(f"{folder}: the process that ran the graph ended with status {ended.returncode}")
    return Parity(**read_artifact(Path(folder)).manifest["parity"])


def prove_parity_here(folder: Path, *, dense_graph_bytes: int | None = None) -> Parity:
    """The same as `prove_parity`, in this process."""
    artifact = read_artifact(Path(folder))
    golden = read_golden(artifact)
    if artifact.family == "whisper":
        parity = _prove_whisper(artifact, golden, dense_graph_bytes)
    else:
        version, logits = _run(artifact, golden.waveforms)
        parity = compare_logits(
            golden.logits,
            logits,
            runtime_version=version,
            graph_bytes=artifact.graph_bytes,
            dense_graph_bytes=dense_graph_bytes,
            name=str(artifact.graphs["classifier"]),
        )
    manifest: dict[str, Any] = {**artifact.manifest, "parity": asdict(parity)}
    write_json(artifact.folder / "manifest.json", manifest)
    return parity


def compare_logits(
    expected: np.ndarray,
    logits: np.ndarray,
    *,
    runtime_version: str,
    graph_bytes: int,
    dense_graph_bytes: int | None,
    name: str,
) -> Parity:
    """The figures of two sets of logits (clips, labels) that agree; raises ParityFailed, naming the figure, if not."""
    if expected.shape != logits.shape:
        raise ParityFailed(f"{name}: logits of shape {logits.shape}, the checkpoint's have {expected.shape}")
    for whose, values in (("the checkpoint's", expected), ("the graph's", logits)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise ParityFailed(f"{name}: golden clip {bad[0]}: {whose} logits are not finite")
    scale = float(np.abs(expected).max())
    difference = float(np.abs(expected.astype(np.float64) - logits.astype(np.float64)).max())
    if scale == 0.0:
        raise ParityFailed(f"{name}: the checkpoint's golden logits are all zero, which proves nothing")
    relative = difference / scale
    if relative > BOUND:
        raise ParityFailed(
            f"{name}: logits differ by {difference:.3g}, which is {relative:.3g} of their scale {scale:.3g}; the bound"
            f" is {BOUND:g}"
        )
    clips = np.arange(len(expected))
    shortfall = expected.max(axis=1) - expected[clips, logits.argmax(axis=1)]
    same = shortfall <= BOUND * scale
    if not same.all():
        clip = int(np.flatnonzero(~same)[0])
        raise ParityFailed(
            f"{name}: golden clip {clip}: first label is {logits[clip].argmax()}, the checkpoint's is"
            f" {expected[clip].argmax()}"
        )
    _require_smaller(graph_bytes, dense_graph_bytes, name)
    return Parity(
        runtime="onnxruntime",
        runtime_version=runtime_version,
        precision="float32",
        threads=THREADS,
        clips=len(expected),
        max_difference=difference,
        scale=scale,
        relative_difference=relative,
        bound=BOUND,
        same_top1=int(same.sum()),
        graph_bytes=graph_bytes,
        dense_graph_bytes=dense_graph_bytes,
    )


def _prove_whisper(artifact: Artifact, golden: Golden, dense_graph_bytes: int | None) -> Parity:
    """The figures of graphs that agree with the Whisper checkpoint after every token; raises ParityFailed if not."""
    name, speech = str(artifact.folder), golden.speech
    assert speech is not None  # read_golden
    _check_golden(golden, name)
    reason = onnx_cpu.available()
    if reason is not None:
        raise RuntimeUnavailable(f"parity needs ONNX Runtime: {reason}")
    session = onnx_cpu.load(artifact, SessionOptions(threads=THREADS))
    assert isinstance(session, onnx_cpu.OnnxSpeechSession)
    scale = float(np.abs(golden.logits).max())
    difference, same_clips, same_tokens = 0.0, 0, 0
    for clip, waveform in enumerate(golden.waveforms):
        tokens = speech.tokens[clip]
        try:
            logits = _step_by_step(session, waveform, speech.prompt, tokens)
        except MeasurementFailed as error:
            raise ParityFailed(f"{name}: golden clip {clip}: {error}") from None
        apart = np.abs(golden.logits[clip].astype(np.float64) - logits[:, speech.columns]).max(axis=1)
        sums_apart = np.abs(speech.log_sums[clip].astype(np.float64) - log_sums(logits))
        _require_close(np.maximum(apart, sums_apart), scale, f"{name}: golden clip {clip}")
        same = _same_tokens(logits[1:], tokens, artifact.manifest["decoding"], BOUND * scale)
        if not same.all():
            place = int(np.flatnonzero(~same)[0])
            raise ParityFailed(
                f"{name}: golden clip {clip}: decoded token {place} is not the checkpoint's {tokens[place]}"
            )
        together = session_logits(session, np.concatenate([speech.prompt, tokens[:-1]]))
        _require_close(np.abs(together - logits[-1]).max(keepdims=True), scale, f"{name}: golden clip {clip}, at once")
        difference = max(difference, float(apart.max()))
        same_clips, same_tokens = same_clips + 1, same_tokens + int(same.sum())
    facts = session.facts()
    session.close()
    _require_smaller(artifact.graph_bytes, dense_graph_bytes, name)
    return Parity(
        runtime="onnxruntime",
        runtime_version=str(facts["version"]),
        precision="float32",
        threads=THREADS,
        clips=len(golden.waveforms),
        max_difference=difference,
        scale=scale,
        relative_difference=difference / scale,
        bound=BOUND,
        same_top1=same_clips,
        graph_bytes=artifact.graph_bytes,
        dense_graph_bytes=dense_graph_bytes,
        tokens=int(speech.tokens.size),
        same_tokens=same_tokens,
    )


def _check_golden(golden: Golden, name: str) -> None:
    for clip, logits in enumerate(golden.logits):
        if not np.isfinite(logits).all():
            raise ParityFailed(f"{name}: golden clip {clip}: the checkpoint's logits are not finite")
    if not golden.logits.any():
        raise ParityFailed(f"{name}: the checkpoint's golden logits are all zero, which proves nothing")


def _step_by_step(session: SpeechSession, waveform: np.ndarray, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logits after the prompt's first token, after the prompt, and after each of `tokens` but the last."""
    session.encode(waveform)
    session.start()
    logits = [session.step(fed[None])[0].copy() for fed in (prompt[:1], prompt[1:], *tokens[:-1, None])]
    return np.stack(logits)


def session_logits(session: SpeechSession, tokens: np.ndarray) -> np.ndarray:
    """Logits (vocabulary,) after `tokens`, all fed at once."""
    session.start()
    return session.step(tokens[None])[0].copy()


def _require_close(differences: np.ndarray, scale: float, name: str) -> None:
    """Raises ParityFailed where one of the steps' differences is over the bound."""
    difference = float(differences.max())
    if not difference <= BOUND * scale:
        raise ParityFailed(
            f"{name}: logits differ by {difference:.3g} at step {int(differences.argmax())}, which is"
            f" {difference / scale:.3g} of their scale {scale:.3g}; the bound is {BOUND:g}"
        )


def _same_tokens(logits: np.ndarray, tokens: np.ndarray, decoding: dict[str, Any], tolerance: float) -> np.ndarray:
    """For each step whether the likeliest token that may be said is the given one, or within tolerance of it."""
    allowed = logits.copy()
    allowed[:, decoding["suppress"]] = -np.inf
    allowed[0, decoding["begin_suppress"]] = -np.inf
    shortfall = allowed.max(axis=1) - allowed[np.arange(len(tokens)), tokens]
    return shortfall <= tolerance


def _require_smaller(graph_bytes: int, dense_graph_bytes: int | None, name: str) -> None:
    if dense_graph_bytes is not None and graph_bytes >= dense_graph_bytes:
        raise ParityFailed(f"{name}: {graph_bytes} bytes are not fewer than the dense graph's {dense_graph_bytes}")


def _run(artifact: Artifact, waveforms: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
    """ONNX Runtime's version and the graph's logits (clips, labels)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(f"parity needs onnxruntime, which cannot be imported ({error})") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(artifact.graphs["classifier"]), options, providers=["CPUExecutionProvider"]
    )
    name = artifact.manifest["input"]["name"]
    return onnxruntime.__version__, np.concatenate([session.run(None, {name: clip[None]})[0] for clip in waveforms])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the program: 0 proved, otherwise that of the error, whose one line goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m export.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="artifact folder")
    parser.add_argument("--dense-graph-bytes", type=int, help="the graph's file has to be smaller than this")
    options = parser.parse_args(arguments)
    try:
        parity = prove_parity_here(options.folder, dense_graph_bytes=options.dense_graph_bytes)
    except LeanearError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    what = "first label" if parity.tokens is None else "tokens"
    print(
        f"{options.folder}: {parity.clips} golden clips, logits within {parity.relative_difference:.2g} of their scale"
        f" (bound {parity.bound:g}), same {what} on {parity.same_top1}, {parity.graph_bytes} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
