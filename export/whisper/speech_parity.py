"""A Whisper's graphs against what its checkpoint said of golden clips: the logits after every token, and the tokens.

In float32 every logit has to be within a bound of the checkpoint's, and every token has to be the same.

Products in 8 bits are not the checkpoint's, and by how much they move the logits says little: what is said depends on
the likeliest few of 50,000. Two things are bounded instead, up to the end of each golden text:
- the divergence of what the graphs say comes next from what the checkpoint says, KL(checkpoint || graphs) in nats per
  token, after the same tokens;
- the words that the graphs write by themselves, taking the likeliest token, and that are not the checkpoint's.
What alignment heads look at, in an artifact for word times, is compared by how much of their attention is elsewhere.
All is run on the runtime that the graphs are for, where it is here: integers are made in each its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanear.export.whisper.golden_speech import in_blocks
from leanear.runtimes.artifact import Artifact, Golden, GoldenSpeech
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.errors import MeasurementFailed, ParityFailed, RuntimeUnavailable
from leanear.runtimes.manifest import Decoding, TwoStages
from leanear.runtimes.sessions import SessionOptions, SpeechSession
from leanear.runtimes.speech.encoder_windows import artifact_windows, step_samples
from leanear.runtimes.speech.guided_steps import clip_divergences, guided_logits, log_sums, until_end, written_down
from leanear.runtimes.speech.tokens.vocabulary import read_vocabulary
from leanear.runtimes.speech.word_times import softmax

DIVERGENCE_BOUND = 0.03  # nats per token; docs/real-models.md has what so much costs in words
CHANGED_WORDS_SHARE = 0.2  # of golden words: near ties fall either way, and texts that break off or loop are many more
# Likeliest text tokens of two stages: beyond them, a rough logit may be as large as one that was rescored.
SURELY_RESCORED = 8
# Nats, of the logarithm of summed exponentials, to which rough logits add: 5 % of a probability, in the mean of a
# clip's steps. After noise tens of thousands of tokens are likely, and one step may be off by more.
ROUGH_SUMS_BOUND = 0.05
MOVED_BOUND, MOVED_BOUND_EXACT = 0.2, 1e-3  # of a token's attention, in 8 bits and in float32


def compare_speech(artifact: Artifact, golden: Golden, bound: float, threads: int) -> dict[str, Any]:
    """The figures of graphs that agree with the checkpoint, by the names of `leanear.export.parity.Parity`.

    And "attention_moved": how much of a token's attention is elsewhere, null where there is no alignment.

    bound: how far apart logits may be in float32 or float16, as a share of the checkpoint's largest.

    Raises:
        ParityFailed: they do not agree; the text names the clip and the figure.
    """
    name, speech = str(artifact.folder), golden.speech
    assert speech is not None  # of a Whisper's artifact it never is
    scale = _scale(golden, name)
    precision = "int8" if "int8" in artifact.precisions else artifact.precisions.pop()
    exact = precision != "int8"
    runtime = choose_runtime("onnxruntime" if exact else proving_runtime(artifact))
    reason = runtime.available()
    if reason is not None:
        raise RuntimeUnavailable(f"parity needs {runtime.NAME}: {reason}")
    session = runtime.load(artifact, SessionOptions(threads=threads, precision="fp32" if exact else precision))
    heard = _Heard(artifact, golden)
    clips = _Clips(artifact, golden, speech, session, bound, scale)
    found = [clips.compared(clip, None if exact else heard) for clip in range(len(golden.waveforms))]
    version = str(session.facts()["version"])
    session.close()
    moved = [of_clip.moved for of_clip in found if of_clip.moved is not None]
    same, difference = [of_clip.same for of_clip in found], max(of_clip.difference for of_clip in found)
    _require_little_moved(moved, exact, name)
    if exact:
        _require_all_tokens(same, speech, name)
    else:
        heard.require_little_change(name)
    return {
        "runtime": runtime.NAME,
        "runtime_version": version,
        "precision": "float32" if precision == "fp32" else precision,
        "max_difference": difference,
        "scale": scale,
        "relative_difference": difference / scale,
        "bound": bound if exact else DIVERGENCE_BOUND,
        "same_top1": sum(bool(of_clip.all()) for of_clip in same),
        "tokens": int(speech.tokens.size),
        "same_tokens": int(sum(of_clip.sum() for of_clip in same)),
        "divergence": None if exact else heard.divergence,
        "words": None if exact else heard.words,
        "changed_words": None if exact else heard.changed_words,
        "attention_moved": float(np.mean(moved)) if moved else None,
    }


@dataclass(frozen=True)
class _Compared:
    """One golden clip: how far apart logits are at most, which steps say the same token, how much attention moved."""

    difference: float
    same: np.ndarray
    moved: float | None


@dataclass(frozen=True)
class _Clips:
    """The golden clips through the graphs, one by one; scale: the checkpoint's largest logit."""

    artifact: Artifact
    golden: Golden
    speech: GoldenSpeech
    session: SpeechSession
    bound: float
    scale: float

    def compared(self, clip: int, heard: _Heard | None) -> _Compared:
        """What the graphs say of a clip; heard: takes in what graphs in 8 bits say, None: each step has to be close.

        Raises:
            ParityFailed: it is not.
        """
        speech, manifest = self.speech, self.artifact.speech
        where, waveform = f"{self.artifact.folder}: golden clip {clip}", self.golden.waveforms[clip]
        window = artifact_windows(self.artifact).holding(len(waveform))
        logits, at_once = _run(self.session, waveform, window, speech, clip, where)
        exactly = _exact_logits(logits, manifest.output.two_stages)
        moved = None if speech.alignment is None else attention_moved(self.session, speech, clip, self.artifact)
        apart = np.abs(self.golden.logits[clip].astype(np.float64) - logits[:, speech.columns])
        apart *= exactly[:, speech.columns]
        if heard is None:
            self._require_close(clip, logits, at_once, apart, exactly)
        else:
            heard.listen(self.session, clip, logits)
        tolerance = self.bound * self.scale if heard is None else 0.0
        same = _same_tokens(logits[1:], speech.tokens[clip], manifest.decoding, tolerance)
        return _Compared(float(apart.max()), same, moved)

    def _require_close(
        self, clip: int, logits: np.ndarray, at_once: np.ndarray, apart: np.ndarray, exactly: np.ndarray
    ) -> None:
        where, differences = f"{self.artifact.folder}: golden clip {clip}", apart.max(axis=1)
        sums_apart = np.abs(self.speech.log_sums[clip].astype(np.float64) - log_sums(logits))
        if exactly.all():
            differences = np.maximum(differences, sums_apart)
        elif not sums_apart.mean() <= ROUGH_SUMS_BOUND:
            raise ParityFailed(
                f"{where}: the sum of all probabilities is {sums_apart.mean():.3g} nats off; the bound is"
                f" {ROUGH_SUMS_BOUND:g}"
            )
        _require_close(differences, self.bound, self.scale, where)
        again = np.abs(at_once - logits[-1])[exactly[-1]]
        _require_close(again.max(keepdims=True), self.bound, self.scale, f"{where}, at once")


def attention_moved(session: SpeechSession, speech: GoldenSpeech, clip: int, artifact: Artifact) -> float:
    """How much of the alignment heads' attention to the encoded golden clip is in another block of positions.

    It is the total variation from the checkpoint's, 0 to 1, averaged over heads and tokens.
    """
    assert speech.alignment is not None
    positions = artifact.manifest.input.window_samples // step_samples(artifact)
    fed = np.concatenate([speech.prompt, speech.tokens[clip, :-1]])
    found = in_blocks(softmax(session.alignment_scores(fed)), positions)
    return float(0.5 * np.abs(found - speech.alignment[clip]).sum(axis=-1).mean())


def _require_little_moved(moved: list[float], exact: bool, name: str) -> None:
    bound = MOVED_BOUND_EXACT if exact else MOVED_BOUND
    for clip, share in enumerate(moved):
        if not share <= bound:
            raise ParityFailed(
                f"{name}: golden clip {clip}: {share:.2g} of the alignment heads' attention is not where the"
                f" checkpoint's is; the bound is {bound:g}"
            )


def proving_runtime(artifact: Artifact) -> str:
    """OpenVINO for graphs of its form where it computes in 8 bits here, ONNX Runtime for all others."""
    openvino = choose_runtime("openvino")
    is_here = "openvino" in artifact.forms and openvino.available() is None and "int8" in openvino.precisions()
    return "openvino" if is_here else "onnxruntime"


class _Heard:
    """What graphs in 8 bits say of golden clips, beside the checkpoint: divergences and words so far."""

    def __init__(self, artifact: Artifact, golden: Golden) -> None:
        self._decoding, self._golden = artifact.speech.decoding, golden
        self._vocabulary = read_vocabulary(artifact.folder / artifact.speech.vocabulary.file)
        self._divergences: list[np.ndarray] = []
        self.words = self.changed_words = 0

    @property
    def divergence(self) -> float:
        """Nats per token."""
        return float(np.concatenate(self._divergences).mean())

    def listen(self, session: SpeechSession, clip: int, logits: np.ndarray) -> None:
        """Take in the steps' logits of a clip, which is encoded, and let the session write it down by itself."""
        speech = self._golden.speech
        assert speech is not None
        said = until_end(speech.tokens[clip].tolist(), self._decoding.end)
        self._divergences.append(clip_divergences(self._golden, clip, logits, self._decoding))
        own = written_down(session, speech.prompt, speech.tokens.shape[1], self._decoding)
        changed, words = changed_words(self._vocabulary.text(said), self._vocabulary.text(own))
        self.words, self.changed_words = self.words + words, self.changed_words + changed

    def require_little_change(self, name: str) -> None:
        """Raises ParityFailed where a figure is over its bound."""
        if not self.divergence <= DIVERGENCE_BOUND:
            raise ParityFailed(
                f"{name}: 8 bits cost {self.divergence:.2g} nats a token on golden clips; the bound is"
                f" {DIVERGENCE_BOUND:g}"
            )
        if self.changed_words > CHANGED_WORDS_SHARE * self.words:
            raise ParityFailed(
                f"{name}: 8 bits change {self.changed_words} of {self.words} words of golden clips; the bound is"
                f" {CHANGED_WORDS_SHARE:.0%}"
            )


def changed_words(expected: str, found: str) -> tuple[int, int]:
    """How many words have to be replaced, left out or put in, and how many are expected; letters of a single word."""
    import jiwer

    wanted, said = (" ".join(text.split()).lower() for text in (expected, found))
    if not wanted:
        return len(said.split()), 0
    aligned = jiwer.process_words(wanted, said) if " " in wanted else jiwer.process_characters(wanted, said)
    changed = aligned.substitutions + aligned.deletions + aligned.insertions
    return changed, aligned.hits + aligned.substitutions + aligned.deletions


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
    """`guided_logits`; raises ParityFailed where they are not finite."""
    try:
        return guided_logits(session, waveform, window, speech, clip)
    except MeasurementFailed as error:
        raise ParityFailed(f"{where}: {error}") from None


def _exact_logits(logits: np.ndarray, two_stages: TwoStages | None) -> np.ndarray:
    """Which logits (steps, vocabulary) are not rough: all, or the likeliest of text and all that are no text."""
    exact = np.ones(logits.shape, dtype=bool)
    if two_stages is not None:
        text = logits[:, : two_stages.exact_from]
        least = np.partition(text, -SURELY_RESCORED, axis=1)[:, -SURELY_RESCORED, None]
        exact[:, : two_stages.exact_from] = text >= least
    return exact


def _require_close(differences: np.ndarray, bound: float, scale: float, where: str) -> None:
    """Raises ParityFailed where one of the steps' differences is over the bound."""
    difference = float(differences.max())
    if not difference <= bound * scale:
        raise ParityFailed(
            f"{where}: logits differ by {difference:.3g} at step {int(differences.argmax())}, which is"
            f" {difference / scale:.3g} of their scale {scale:.3g}; the bound is {bound:g}"
        )


def _same_tokens(logits: np.ndarray, tokens: np.ndarray, decoding: Decoding, tolerance: float) -> np.ndarray:
    """For each step whether the likeliest token that may be said is the given one, or within tolerance of it."""
    allowed = logits.copy()
    allowed[:, list(decoding.suppress)] = -np.inf
    allowed[0, list(decoding.begin_suppress)] = -np.inf
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
