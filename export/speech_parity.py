"""A Whisper's graphs against what its checkpoint said of golden clips: the logits after every token, and the tokens.

In float32 every logit has to be within a bound of the checkpoint's. Products in 8 bits are not the checkpoint's, so for
them a noise is stated and bounded: the root mean square by which logits differ over the standard deviation that they
have, of a step, on average over all steps. And of the tokens that are likeliest after each golden token, a share has to
be the checkpoint's. What that means for words is for the word error rate to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.golden_speech import log_sums
from runtimes import onnx_cpu
from runtimes.artifact import Artifact, Golden, GoldenSpeech
from runtimes.encoder_windows import artifact_windows
from runtimes.errors import MeasurementFailed, ParityFailed, RuntimeUnavailable
from runtimes.sessions import SessionOptions, SpeechSession

NOISE_BOUND = 0.1
SAME_TOKENS_SHARE = 0.9  # of tokens that products in 8 bits have to decode as the checkpoint does


@dataclass(frozen=True)
class SpeechFigures:
    """What was compared and how far apart it was, in the words of `export.parity.Parity`."""

    runtime_version: str
    precision: str
    max_difference: float
    scale: float
    relative_difference: float
    bound: float
    same_top1: int
    tokens: int
    same_tokens: int
    noise: float | None


def compare_speech(artifact: Artifact, golden: Golden, bound: float, threads: int) -> SpeechFigures:
    """The figures of graphs that agree with the checkpoint, on ONNX Runtime.

    bound: how far apart logits may be in float32 or float16, as a share of the checkpoint's largest.

    Raises:
        ParityFailed: they do not agree; the text names the clip and the figure.
    """
    name, speech = str(artifact.folder), golden.speech
    assert speech is not None  # of a Whisper's artifact it never is
    scale = _scale(golden, name)
    precisions = {str(graph["precision"]) for graph in artifact.manifest["graphs"].values()}
    precision = "int8" if "int8" in precisions else precisions.pop()
    exact = precision != "int8"
    reason = onnx_cpu.available()
    if reason is not None:
        raise RuntimeUnavailable(f"parity needs ONNX Runtime: {reason}")
    windows = artifact_windows(artifact)
    session = onnx_cpu.load(artifact, SessionOptions(threads=threads, precision="fp32" if exact else precision))
    assert isinstance(session, onnx_cpu.OnnxSpeechSession)
    difference, same, noises = 0.0, [], []
    for clip, waveform in enumerate(golden.waveforms):
        where = f"{name}: golden clip {clip}"
        logits, at_once = _run(session, waveform, windows.holding(len(waveform)), speech, clip, where)
        apart = np.abs(golden.logits[clip].astype(np.float64) - logits[:, speech.columns])
        difference = max(difference, float(apart.max()))
        if exact:
            sums_apart = np.abs(speech.log_sums[clip].astype(np.float64) - log_sums(logits))
            _require_close(np.maximum(apart.max(axis=1), sums_apart), bound, scale, where)
            _require_close(np.abs(at_once - logits[-1]).max(keepdims=True), bound, scale, f"{where}, at once")
        spread = golden.logits[clip].std(axis=1)
        noises += list(np.sqrt((apart**2).mean(axis=1)) / spread)
        noises.append(float(np.sqrt(((at_once[speech.columns] - golden.logits[clip, -1]) ** 2).mean()) / spread[-1]))
        tolerance = bound * scale if exact else 0.0
        same.append(_same_tokens(logits[1:], speech.tokens[clip], artifact.manifest["decoding"], tolerance))
    facts = session.facts()
    session.close()
    noise = float(np.mean(noises))
    if exact:
        _require_all_tokens(same, speech, name)
    else:
        _require_little_noise(noise, np.concatenate(same), name)
    return SpeechFigures(
        runtime_version=str(facts["version"]),
        precision="float32" if precision == "fp32" else precision,
        max_difference=difference,
        scale=scale,
        relative_difference=difference / scale,
        bound=bound if exact else NOISE_BOUND,
        same_top1=sum(bool(of_clip.all()) for of_clip in same),
        tokens=int(speech.tokens.size),
        same_tokens=int(sum(of_clip.sum() for of_clip in same)),
        noise=None if exact else noise,
    )


def _scale(golden: Golden, name: str) -> float:
    for clip, logits in enumerate(golden.logits):
        if not np.isfinite(logits).all():
            raise ParityFailed(f"{name}: golden clip {clip}: the checkpoint's logits are not finite")
    if not golden.logits.any():
        raise ParityFailed(f"{name}: the checkpoint's golden logits are all zero, which proves nothing")
    return float(np.abs(golden.logits).max())


def _run(
    session: SpeechSession, waveform: np.ndarray, window: int, speech: GoldenSpeech, clip: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits after the prompt's first token, after the prompt, and after each token but the last; and those at once."""
    prompt, tokens = speech.prompt, speech.tokens[clip]
    try:
        session.encode(waveform, window)
        session.start()
        logits = [session.step(fed[None])[0].copy() for fed in (prompt[:1], prompt[1:], *tokens[:-1, None])]
        session.start()
        return np.stack(logits), session.step(np.concatenate([prompt, tokens[:-1]])[None])[0].copy()
    except MeasurementFailed as error:
        raise ParityFailed(f"{where}: {error}") from None


def _require_close(differences: np.ndarray, bound: float, scale: float, where: str) -> None:
    """Raises ParityFailed where one of the steps' differences is over the bound."""
    difference = float(differences.max())
    if not difference <= bound * scale:
        raise ParityFailed(
            f"{where}: logits differ by {difference:.3g} at step {int(differences.argmax())}, which is"
            f" {difference / scale:.3g} of their scale {scale:.3g}; the bound is {bound:g}"
        )


def _same_tokens(logits: np.ndarray, tokens: np.ndarray, decoding: dict[str, Any], tolerance: float) -> np.ndarray:
    """For each step whether the likeliest token that may be said is the given one, or within tolerance of it."""
    allowed = logits.copy()
    allowed[:, decoding["suppress"]] = -np.inf
    allowed[0, decoding["begin_suppress"]] = -np.inf
    shortfall = allowed.max(axis=1) - allowed[np.arange(len(tokens)), tokens]
    return np.asarray(shortfall <= tolerance)


def _require_all_tokens(same: list[np.ndarray], speech: GoldenSpeech, name: str) -> None:
    for clip, of_clip in enumerate(same):
        if not of_clip.all():
            place = int(np.flatnonzero(~of_clip)[0])
            raise ParityFailed(
                f"{name}: golden clip {clip}: decoded token {place} is not the checkpoint's"
                f" {speech.tokens[clip, place]}"
            )


def _require_little_noise(noise: float, same: np.ndarray, name: str) -> None:
    if not noise <= NOISE_BOUND:
        raise ParityFailed(
            f"{name}: products in 8 bits move the logits by {noise:.3g} of their spread; the bound is {NOISE_BOUND:g}"
        )
    if same.mean() < SAME_TOKENS_SHARE:
        raise ParityFailed(
            f"{name}: products in 8 bits decode {same.sum()} of {same.size} tokens as the checkpoint does; the bound is"
            f" {SAME_TOKENS_SHARE:.0%}"
        )
