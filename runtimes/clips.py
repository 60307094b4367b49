"""Labelled or transcribed waveforms in one plain file, for a device: no audio decoder is needed to read them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError  # of a damaged header, by numpy
from typing import Any, Dict

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.packed_pcm import STREAMS, as_floats, in_16_bits, is_16_bit, pack, unpack

ARRAYS = ("offsets", "label_ids", "names", "labels", "sample_rate_hz")


@dataclass(frozen=True)
class Clips:
    """Mono clips of one sample rate.

    waveforms: float32 (samples,) each, in [-1, 1]; label_ids: index into `labels` per clip; names: file names;
    labels: the model's label names in the order of its logits; texts: what is said in each clip, or None where clips
    are labelled; tags: bool (clips, labels), which labels each clip has, where it may have any number of them, else
    None. Only clips of one label each have label_ids, and transcribed clips have no labels either.
    """

    waveforms: tuple[np.ndarray, ...]
    label_ids: np.ndarray
    names: tuple[str, ...]
    labels: tuple[str, ...]
    sample_rate_hz: int
    texts: tuple[str, ...] | None = None
    tags: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, part: slice) -> Clips:
        """Some of the clips, one after another."""
        return replace(
            self,
            waveforms=self.waveforms[part],
            label_ids=self.label_ids[part],
            names=self.names[part],
            texts=None if self.texts is None else self.texts[part],
            tags=None if self.tags is None else self.tags[part],
        )


def clips_in_16_bits(clips: Clips) -> tuple[Clips, int]:
    """The clips as a device gets them, in 16-bit values, and how many of them were finer and had to be rounded."""
    finer = [not is_16_bit(waveform) for waveform in clips.waveforms]
    rounded = tuple(
        as_floats(in_16_bits(waveform)) if fine else waveform for waveform, fine in zip(clips.waveforms, finer)
    )
    return replace(clips, waveforms=rounded), sum(finer)


def write_clips(path: Path, clips: Clips) -> None:
    """Write clips as an .npz of plain arrays, whole or not at all.

    Samples that are all 16-bit values are packed (`leanear.runtimes.packed_pcm`), others stay float32 as they are; both
    are read as they were.
    """
    samples = (np.concatenate(clips.waveforms) if clips.waveforms else np.zeros(0)).astype(np.float32)
    kept = pack(in_16_bits(samples)) if is_16_bit(samples) else {"samples": samples}
    with replaced_file(Path(path)) as part, open(part, "wb") as stream:
        arrays: Any = {**kept, **_described(clips)}
        np.savez(stream, **arrays)


def clips_sha256(clips: Clips) -> str:
    """Hex sha256 of what the clips are, whatever file they are in."""
    digest = hashlib.sha256()
    for waveform in clips.waveforms:
        digest.update(np.ascontiguousarray(waveform, "<f4").tobytes())
    for name, array in sorted(_described(clips).items()):
        digest.update(name.encode() + (repr(array.tolist())).encode())
    return digest.hexdigest()


def _described(clips: Clips) -> Dict[str, np.ndarray]:
    """All arrays of a file but the samples."""
    arrays: Dict[str, np.ndarray] = {
        "offsets": np.cumsum([0] + [len(waveform) for waveform in clips.waveforms]).astype(np.int64),
        "label_ids": clips.label_ids.astype(np.int64),
        "names": np.array(clips.names, dtype=np.str_),
        "labels": np.array(clips.labels, dtype=np.str_),
        "sample_rate_hz": np.array(clips.sample_rate_hz, dtype=np.int64),
    }
    if clips.texts is not None:
        arrays["texts"] = np.array(clips.texts, dtype=np.str_)
    if clips.tags is not None:
        arrays["tags"] = np.asarray(clips.tags, dtype=np.bool_)
    return arrays


def read_clips(path: Path) -> Clips:
    """The clips in a file that `write_clips` wrote.

    Raises:
        BadInput: the file is missing, truncated or of another kind.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            is_packed = STREAMS[0] in arrays
            samples = as_floats(unpack(*(arrays[key] for key in STREAMS))) if is_packed else arrays["samples"]
            offsets, label_ids, names, labels, rate = (arrays[key] for key in ARRAYS)
            texts = tuple(str(text) for text in arrays["texts"]) if "texts" in arrays else None
            tags = np.asarray(arrays["tags"], np.bool_) if "tags" in arrays else None
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (KeyError, ValueError, OSError, EOFError, IndexError, zipfile.BadZipFile, TokenError) as error:
        raise BadInput(f"{path}: not a clips file ({error})") from None
    return Clips(
        waveforms=tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:])),
        label_ids=label_ids,
        names=tuple(str(name) for name in names),
        labels=tuple(str(label) for label in labels),
        sample_rate_hz=int(rate),
        texts=texts,
        tags=tags,
    )
