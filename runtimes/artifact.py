"""The folder that travels to the device: `manifest.json`, the graph that it names, golden inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import BadInput
from runtimes.files import read_json, sha256_file

MANIFEST_SCHEMA = "leanear-artifact-1"
REQUIRED_KEYS = ("family", "task", "model", "graph", "input", "output", "labels", "golden", "parity", "made_from")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder.

    manifest: the whole of `manifest.json`; graph: path of the ONNX file (its weights are inside);
    labels: one name per logit; sample_rate_hz: what the graph expects of its waveform.
    """

    folder: Path
    manifest: dict[str, Any]
    graph: Path
    labels: tuple[str, ...]
    sample_rate_hz: int

    @property
    def identity(self) -> str:
        """The graph's sha256, by which results name what they measured."""
        return str(self.manifest["graph"]["sha256"])


@dataclass(frozen=True)
class Golden:
    """Inputs and the checkpoint's own outputs: waveforms, each float32 (samples,); logits float32 (clips, labels)."""

    waveforms: tuple[np.ndarray, ...]
    logits: np.ndarray


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, its files checked against the manifest's sha256.

    Raises:
        BadInput: a file is missing or is not the one that the manifest was written for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such artifact folder")
    manifest = read_json(folder / "manifest.json", MANIFEST_SCHEMA, REQUIRED_KEYS)
    for part in ("graph", "golden"):
        path = folder / manifest[part]["file"]
        if not path.is_file():
            raise BadInput(f"{path}: named by manifest.json but missing")
        if sha256_file(path) != manifest[part]["sha256"]:
            raise BadInput(
                f"{path}: sha256 differs from manifest.json's {part}.sha256; the file was changed or damaged"
            )
    return Artifact(
        folder=folder,
        manifest=manifest,
        graph=folder / manifest["graph"]["file"],
        labels=tuple(manifest["labels"]),
        sample_rate_hz=int(manifest["input"]["sample_rate_hz"]),
    )


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden clips as an uncompressed .npz of plain arrays (samples, offsets, logits)."""
    offsets = np.cumsum([0] + [len(waveform) for waveform in golden.waveforms]).astype(np.int64)
    samples = np.concatenate(golden.waveforms).astype(np.float32)
    with open(path, "wb") as stream:
        np.savez(stream, samples=samples, offsets=offsets, logits=golden.logits.astype(np.float32))


def read_golden(artifact: Artifact) -> Golden:
    """The golden clips and logits that the artifact carries."""
    with np.load(artifact.folder / artifact.manifest["golden"]["file"], allow_pickle=False) as arrays:
        samples, offsets, logits = arrays["samples"], arrays["offsets"], arrays["logits"]
    waveforms = tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:]))
    return Golden(waveforms=waveforms, logits=logits)
