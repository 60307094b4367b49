"""Proof that an artifact's graphs compute what their checkpoint computes: a step of its own, which can fail.

python -m leanear.export.parity FOLDER [--dense-graph-bytes N]
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from leanear.export.whisper.speech_parity import compare_speech
from leanear.runtimes.artifact import Artifact, Golden, read_artifact, read_golden
from leanear.runtimes.backends.onnx_sessions import load_graph
from leanear.runtimes.errors import BadInput, LeanearError, ParityFailed, RuntimeUnavailable
from leanear.runtimes.manifest import MANIFEST_FILE, Alignment, SpeechManifest
from leanear.runtimes.process.isolation import isolated_environment, module_command
from leanear.runtimes.records import read, write
from leanear.runtimes.sessions import SessionOptions

BOUND = 1e-4
NOISE_BOUND = 0.1  # of a classifier's products in 8 bits
HALF_BOUND = 1e-2  # of graphs in float16, whose every product is rounded to 11 bits
THREADS = 2
LOG_TAIL_LINES = 3  # of the process that fails without a line of its own


@dataclass(frozen=True)
class Parity:
    """What was compared and how far apart it was.

    max_difference: largest |difference| of two logits; scale: largest |logit| of the checkpoint; relative_difference:
    their quotient, which `bound` limits; clips: how many golden clips; same_top1: on how many of them the first label,
    or every decoded token, is the same, those whose logits differ by less than the bound counting as the same;
    graph_bytes, dense_graph_bytes: sizes of the graph files, the latter null if it was not given; tokens, same_tokens:
    how many tokens a Whisper decoded and how many of them are the same, null of a classifier. Of products in 8 bits
    alone, and null of others: noise, of a classifier (see `compare_logits`); divergence in nats per token, words and
    how many of them changed, of a Whisper (see `leanear.export.whisper.speech_parity`). `bound` then limits noise or
    divergence. left_in_float32: tensors of its encoder that are not in 8 bits although they could be, because that cost
    too much, or that are not in float16, because that does not hold them. architecture: of the CPU that proved it.
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
    noise: float | None = None
    divergence: float | None = None
    words: int | None = None
    changed_words: int | None = None
    left_in_float32: tuple[str, ...] = ()
    architecture: str = field(default_factory=platform.machine)

    @property
    def _left(self) -> str:
        return f"; left in float32: {', '.join(self.left_in_float32)}" if self.left_in_float32 else ""

    @property
    def sentence(self) -> str:
        """What was proved, in a line."""
        if self.noise is not None:
            return (
                f"products in 8 bits move the logits by {self.noise:.1e} of their spread (bound {self.bound:g}), and"
                f" the first label of {self.same_top1} of {self.clips} clips is the checkpoint's"
            )
        if self.divergence is not None:
            return (
                f"8 bits cost {self.divergence:.1e} nats a token (bound {self.bound:g}) and change"
                f" {self.changed_words} of {self.words} words of {self.clips} clips, on {self.runtime}" + self._left
            )
        what = "first label" if self.tokens is None else "tokens"
        return (
            f"logits agree with the checkpoint's to {self.relative_difference:.1e} of their scale (bound"
            f" {self.bound:.0e}), same {what}, on {self.clips} clips{self._left}"
        )


def prove_parity(folder: Path, *, dense_graph_bytes: int | None = None) -> Parity:
    """The figures of an artifact that passed, which are written into its manifest.

    Every golden clip runs through the graph on ONNX Runtime's CPU provider in float32; a Whisper's graphs in 8 bits for
    OpenVINO run there, where it is. That happens in a process of its own, so that the checkpoint and two copies of the
    graph's weights are never in one process's memory.

    Raises:
        ParityFailed: a logit is not finite or too far away, a first label differs, or the graph's file is not smaller
            than `dense_graph_bytes`; the manifest is left as it was.
        BadInput: the folder is not an artifact, or a file in it is not the one that the manifest names.
    """
    command = module_command("leanear.export.parity")
    if dense_graph_bytes is not None:
        command += ["--dense-graph-bytes", str(dense_graph_bytes)]
    command += ["--", os.path.abspath(folder)]
    ended = subprocess.run(
        command, capture_output=True, text=True, errors="replace", cwd="/", env=isolated_environment()
    )
    said = [line for line in ended.stderr.splitlines() if line.strip()][-LOG_TAIL_LINES:]
    for error in (ParityFailed, BadInput, RuntimeUnavailable):
        if ended.returncode == error.exit_status and said:
            raise error(said[-1])
    if ended.returncode != 0:
        how = f"{folder}: the process that ran the graph ended with status {ended.returncode}"
        raise ParityFailed(f"{how}; it said: {' | '.join(said) or 'nothing'}")
    return read(Parity, read_artifact(Path(folder)).manifest.parity or {}, Path(folder) / MANIFEST_FILE)


def prove_parity_here(folder: Path, *, dense_graph_bytes: int | None = None) -> Parity:
    """The same as `prove_parity`, in this process."""
    artifact = read_artifact(Path(folder))
    golden = read_golden(artifact)
    manifest = artifact.manifest
    if isinstance(manifest, SpeechManifest):
        parity, alignment = _prove_whisper(artifact, manifest, golden, dense_graph_bytes)
        manifest = replace(manifest, alignment=alignment)
    else:
        version, logits = _run(artifact, golden.waveforms)
        is_eight_bit = "int8" in artifact.precisions
        parity = compare_logits(
            golden.logits,
            logits,
            runtime_version=version,
            graph_bytes=artifact.graph_bytes,
            dense_graph_bytes=dense_graph_bytes,
            name=str(artifact.graphs["classifier"]),
            bound=NOISE_BOUND if is_eight_bit else _bound(artifact),
            is_eight_bit=is_eight_bit,
        )
        parity = replace(parity, left_in_float32=manifest.left_in_float32)
    write(artifact.folder / MANIFEST_FILE, replace(manifest, parity=asdict(parity)))
    return parity


def compare_logits(
    expected: np.ndarray,
    logits: np.ndarray,
    *,
    runtime_version: str,
    graph_bytes: int,
    dense_graph_bytes: int | None,
    name: str,
    bound: float = BOUND,
    is_eight_bit: bool = False,
) -> Parity:
    """The figures of two sets of logits (clips, labels) that agree; raises ParityFailed, naming the figure, if not.

    Products in 8 bits have a noise, which `bound` then limits: the root mean square of a clip's differences over the
    standard deviation of its logits, on average over all clips. What it costs in accuracy is for the gate to say.
    """
    scale, difference = _compared(expected, logits, name)
    noise = None
    if is_eight_bit:
        noise = _little_noise(expected, logits, name, bound)
        same = int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum())
    else:
        same = _same_labels(expected, logits, name, bound, scale, difference)
    _require_smaller(graph_bytes, dense_graph_bytes, name)
    return Parity(
        runtime="onnxruntime",
        runtime_version=runtime_version,
        precision="int8" if is_eight_bit else "float32",
        threads=THREADS,
        clips=len(expected),
        max_difference=difference,
        scale=scale,
        relative_difference=difference / scale,
        bound=bound,
        same_top1=same,
        graph_bytes=graph_bytes,
        dense_graph_bytes=dense_graph_bytes,
        noise=noise,
    )


def _same_labels(
    expected: np.ndarray, logits: np.ndarray, name: str, bound: float, scale: float, difference: float
) -> int:
    """On how many clips the first label is the same, which has to be all, as all logits have to be within the bound."""
    relative = difference / scale
    if relative > bound:
        raise ParityFailed(
            f"{name}: logits differ by {difference:.3g}, which is {relative:.3g} of their scale {scale:.3g}; the bound"
            f" is {bound:g}"
        )
    clips = np.arange(len(expected))
    shortfall = expected.max(axis=1) - expected[clips, logits.argmax(axis=1)]
    same = shortfall <= bound * scale
    if not same.all():
        clip = int(np.flatnonzero(~same)[0])
        raise ParityFailed(
            f"{name}: golden clip {clip}: first label is {logits[clip].argmax()}, the checkpoint's is"
            f" {expected[clip].argmax()}"
        )
    return int(same.sum())


def _little_noise(expected: np.ndarray, logits: np.ndarray, name: str, bound: float) -> float:
    apart = np.sqrt(((expected.astype(np.float64) - logits) ** 2).mean(axis=1))
    spread = (
        expected.std(axis=1) if expected.shape[1] > 1 else expected.std()
    )  # a single logit has one over clips alone
    noise = float((apart / spread).mean())
    if not noise <= bound:
        raise ParityFailed(
            f"{name}: products in 8 bits move the logits by {noise:.3g} of their spread; the bound is {bound:g}"
        )
    return noise


def _compared(expected: np.ndarray, logits: np.ndarray, name: str) -> tuple[float, float]:
    """The largest |logit| of the checkpoint and the largest |difference|, of logits that can be compared."""
    if expected.shape != logits.shape:
        raise ParityFailed(f"{name}: logits of shape {logits.shape}, the checkpoint's have {expected.shape}")
    for whose, values in (("the checkpoint's", expected), ("the graph's", logits)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise ParityFailed(f"{name}: golden clip {bad[0]}: {whose} logits are not finite")
    scale = float(np.abs(expected).max())
    if scale == 0.0:
        raise ParityFailed(f"{name}: the checkpoint's golden logits are all zero, which proves nothing")
    return scale, float(np.abs(expected.astype(np.float64) - logits.astype(np.float64)).max())


def _prove_whisper(
    artifact: Artifact, manifest: SpeechManifest, golden: Golden, dense_graph_bytes: int | None
) -> tuple[Parity, Alignment | None]:
    """The figures of graphs that agree with the Whisper checkpoint after every token, and how far their alignment heads
    have moved; raises ParityFailed if they do not agree."""
    figures = compare_speech(artifact, golden, _bound(artifact), THREADS)
    _require_smaller(artifact.graph_bytes, dense_graph_bytes, str(artifact.folder))
    moved = figures.pop("attention_moved")
    alignment = None if manifest.alignment is None else replace(manifest.alignment, moved=moved)
    parity = Parity(
        clips=len(golden.waveforms),
        threads=THREADS,
        graph_bytes=artifact.graph_bytes,
        dense_graph_bytes=dense_graph_bytes,
        left_in_float32=manifest.left_in_float32,
        **figures,
    )
    return parity, alignment


def _bound(artifact: Artifact) -> float:
    """How far logits may be from the checkpoint's, as a share of its largest, in the precision of the graphs."""
    return HALF_BOUND if "fp16" in artifact.precisions else BOUND


def _require_smaller(graph_bytes: int, dense_graph_bytes: int | None, name: str) -> None:
    if dense_graph_bytes is not None and graph_bytes >= dense_graph_bytes:
        raise ParityFailed(f"{name}: {graph_bytes} bytes are not fewer than the dense graph's {dense_graph_bytes}")


def _run(artifact: Artifact, waveforms: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
    """ONNX Runtime's version and the graph's logits (clips, labels)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(f"parity needs onnxruntime, which cannot be imported ({error})") from None
    session = load_graph(artifact.graphs["classifier"], SessionOptions(threads=THREADS))
    name = artifact.manifest.input.name
    return onnxruntime.__version__, np.concatenate([session.run(None, {name: clip[None]})[0] for clip in waveforms])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the program: 0 proved, otherwise that of the error, whose one line goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m leanear.export.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="artifact folder")
    parser.add_argument("--dense-graph-bytes", type=int, help="the graph's file has to be smaller than this")
    options = parser.parse_args(arguments)
    try:
        parity = prove_parity_here(options.folder, dense_graph_bytes=options.dense_graph_bytes)
    except LeanearError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(f"{options.folder}: {parity.graph_bytes} bytes; {parity.sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
