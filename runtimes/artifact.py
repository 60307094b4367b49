"""The folder that travels to the device: `manifest.json`, the graphs that it names, golden inputs and outputs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file, sha256_json
from leanear.runtimes.manifest import MANIFEST_FILE, Manifest, SpeechManifest, named_files, read_manifest
from leanear.runtimes.records import as_json

SPEECH_ARRAYS = ("prompt", "tokens", "columns", "log_sums")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder.

    graphs: path of each ONNX file by its role (weights are inside, or in a file of data beside it that it names
    itself); labels: one name per logit of a classifier, nothing of another family; sample_rate_hz: what the graphs
    expect of their waveform. What a graph takes and gives is a matter of the task; the family says only what it was
    made of.
    """

    folder: Path
    manifest: Manifest
    graphs: dict[str, Path]
    labels: tuple[str, ...]
    sample_rate_hz: int

    @property
    def family(self) -> str:
        """Which kind of model it is, e.g. "ast"."""
        return self.manifest.family

    @property
    def task(self) -> str:
        """What the model does, in the words of the Hugging Face hub."""
        return self.manifest.task

    @property
    def is_speech(self) -> bool:
        """Whether it writes down speech, by an encoder and a decoder; others are one graph that classifies."""
        return isinstance(self.manifest, SpeechManifest)

    @property
    def speech(self) -> SpeechManifest:
        """The manifest of a model that writes down speech.

        Raises:
            BadInput: it classifies.
        """
        if not isinstance(self.manifest, SpeechManifest):
            raise BadInput(f"{self.folder}: a model that classifies; it has no words to transcribe with")
        return self.manifest

    @property
    def identity(self) -> str:
        """A sha256 over those of all graphs, by which results name what they measured."""
        graphs = self.manifest.graphs
        return sha256_json({role: [graph.sha256, as_json(graph.data)] for role, graph in graphs.items()})

    @property
    def voice_graph(self) -> Path | None:
        """The voice activity model that came along, which older artifacts and classifiers do not have."""
        voice = self.manifest.voice if isinstance(self.manifest, SpeechManifest) else None
        return None if voice is None else self.folder / voice.file

    @property
    def graph_bytes(self) -> int:
        """Bytes of all graphs' files."""
        return sum(graph.bytes for graph in self.manifest.graphs.values())

    @property
    def precisions(self) -> set[str]:
        """What the products of its graphs are of."""
        return {graph.precision for graph in self.manifest.graphs.values()}

    @property
    def forms(self) -> set[str]:
        """The forms that its graphs are of."""
        return {graph.form for graph in self.manifest.graphs.values()}


@dataclass(frozen=True)
class GoldenSpeech:
    """What a Whisper's golden logits are of.

    prompt: int64 (P,), fed before anything is said, its first token alone; tokens: int64 (clips, S), said by the
    checkpoint and fed one by one; columns: int64, the tokens whose logits are kept; log_sums: float32 (clips, S + 1),
    the logarithm of the summed exponentials of all logits; alignment: float32 (clips, A, P + S - 1, blocks), what the
    alignment heads look at as each token is fed, summed over blocks of positions (`golden_speech`
    in the export), None of an artifact without word times.
    """

    prompt: np.ndarray
    tokens: np.ndarray
    columns: np.ndarray
    log_sums: np.ndarray
    alignment: np.ndarray | None = None


@dataclass(frozen=True)
class Golden:
    """Inputs and the checkpoint's own outputs: waveforms, each float32 (samples,), and logits, float32.

    logits: (clips, labels) of a classifier; of a Whisper (clips, S + 1, columns): after the prompt's first token, after
    the prompt, and after each token but the last.
    """

    waveforms: tuple[np.ndarray, ...]
    logits: np.ndarray
    speech: GoldenSpeech | None = None


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, its files checked against the manifest's sha256.

    Raises:
        BadInput: a file is missing or is not the one that the manifest was written for.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        raise BadInput(f"{folder}: no artifact, for there is no {MANIFEST_FILE}; `leanear export` makes one")
    manifest = read_manifest(folder / MANIFEST_FILE)
    for part, named in named_files(manifest):
        path = folder / named.file
        if not path.is_file():
            raise BadInput(f"{path}: named by manifest.json but missing")
        if sha256_file(path) != named.sha256:
            raise BadInput(
                f"{path}: sha256 differs from manifest.json's {part}.sha256; the file was changed or damaged"
            )
    return Artifact(
        folder=folder,
        manifest=manifest,
        graphs={role: folder / graph.file for role, graph in manifest.graphs.items()},
        labels=() if isinstance(manifest, SpeechManifest) else manifest.labels,
        sample_rate_hz=manifest.input.sample_rate_hz,
    )


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden clips as an uncompressed .npz of plain arrays (samples, offsets, logits; of a Whisper four more)."""
    offsets = np.cumsum([0] + [len(waveform) for waveform in golden.waveforms]).astype(np.int64)
    samples = np.concatenate(golden.waveforms).astype(np.float32)
    arrays: dict[str, Any] = {"samples": samples, "offsets": offsets, "logits": golden.logits.astype(np.float32)}
    if golden.speech is not None:
        arrays.update({key: getattr(golden.speech, key) for key in SPEECH_ARRAYS})
        if golden.speech.alignment is not None:
            arrays["alignment"] = golden.speech.alignment
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)


def read_golden(artifact: Artifact) -> Golden:
    """The golden clips and logits that the artifact carries."""
    path = artifact.folder / artifact.manifest.golden.file
    speech = None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            samples, offsets, logits = arrays["samples"], arrays["offsets"], arrays["logits"]
            if artifact.is_speech:
                kept = (*SPEECH_ARRAYS, *(() if artifact.speech.alignment is None else ("alignment",)))
                speech = GoldenSpeech(**{key: arrays[key] for key in kept})
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a file of golden clips ({error})") from None
    waveforms = tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:]))
    return Golden(waveforms=waveforms, logits=logits, speech=speech)
