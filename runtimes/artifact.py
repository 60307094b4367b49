"""The folder that travels to the device: `manifest.json`, the graph that it names, golden inputs and outputs."""

from __future__ import annotations

import zipfile
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
    _check_manifest(manifest, folder / "manifest.json")
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


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Raises BadInput, naming the key, where a value that is used later is not of the kind that was promised."""
    for part in ("model", "graph", "golden", "input", "output"):
        if not isinstance(manifest[part], dict):
            raise BadInput(f"{path}: {part} is not an object")
    if not (manifest["parity"] is None or isinstance(manifest["parity"], dict)):
        raise BadInput(f"{path}: parity is neither null nor an object")
    for part in ("graph", "golden"):
        name = manifest[part].get("file")
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise BadInput(f"{path}: {part}.file is not the plain name of a file")
        if not isinstance(manifest[part].get("sha256"), str):
            raise BadInput(f"{path}: {part}.sha256 is not a text")
    rate_hz = manifest["input"].get("sample_rate_hz")
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, int) or rate_hz < 1:
        raise BadInput(f"{path}: input.sample_rate_hz is {rate_hz!r}, not a positive whole number")
    labels = manifest["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise BadInput(f"{path}: labels is not a list of texts")
    if manifest["output"].get("shape") != [1, len(labels)]:
        raise BadInput(
            f"{path}: output.shape is {manifest['output'].get('shape')!r}, but there are {len(labels)} labels"
        )


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden clips as an uncompressed .npz of plain arrays (samples, offsets, logits)."""
    offsets = np.cumsum([0] + [len(waveform) for waveform in golden.waveforms]).astype(np.int64)
    samples = np.concatenate(golden.waveforms).astype(np.float32)
    with open(path, "wb") as stream:
        np.savez(stream, samples=samples, offsets=offsets, logits=golden.logits.astype(np.float32))


def read_golden(artifact: Artifact) -> Golden:
    """The golden clips and logits that the artifact carries."""
    path = artifact.folder / artifact.manifest["golden"]["file"]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            samples, offsets, logits = arrays["samples"], arrays["offsets"], arrays["logits"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a file of golden clips ({error})") from None
    waveforms = tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:]))
    return Golden(waveforms=waveforms, logits=logits)
