"""The folder that travels to the device: `manifest.json`, the graphs that it names, golden inputs and outputs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file, sha256_json
from leanear.runtimes.precisions import GRAPH_PRECISIONS
from leanear.runtimes.tasks import SPEECH_TASK, TASKS

MANIFEST_SCHEMA = "leanear-artifact-2"
REQUIRED_KEYS = ("family", "task", "model", "graphs", "input", "output", "golden", "parity", "made_from")
CLASSIFIER_ROLES, SPEECH_ROLES = ("classifier",), ("encoder", "decoder")
CLASSIFIER_KEYS, SPEECH_KEYS = ("labels",), ("vocabulary", "decoding", "cache", "embedding")
OPTIONAL_INT, OPTIONAL_TEXT, OPTIONAL_DICT = (int, type(None)), (str, type(None)), (dict, type(None))
GRAPH_KEYS = {
    "file": str,
    "sha256": str,
    "bytes": int,
    "data": OPTIONAL_DICT,
    "form": str,
    "opset": int,
    "nodes": int,
    "precision": str,
}
DECODING_KEYS = {
    "start": int,
    "end": int,
    "previous": OPTIONAL_INT,
    "no_speech": OPTIONAL_INT,
    "no_timestamps": OPTIONAL_INT,
    "timestamp_begin": OPTIONAL_INT,
    "transcribe": OPTIONAL_INT,
    "translate": OPTIONAL_INT,
    "languages": dict,
    "default_language": OPTIONAL_TEXT,
    "multilingual": bool,
    "suppress": list,
    "begin_suppress": list,
    "max_initial_timestamp_index": OPTIONAL_INT,
    "positions": int,
    "timestamp_step_s": float,
    "window_s": float,
}
# Of artifacts that were made before there were these: no word behind the timestamps, and transcribing.
LATER_DECODING_KEYS = {"timestamp_end": OPTIONAL_INT, "default_task": str}
ALIGNMENT_CHOSEN_BY = ("generation_config", "upper half")
ALIGNMENT_KEYS = {"heads": list, "chosen_by": str, "lost": int, "filter_positions": int, "moved": (float, type(None))}
SPEECH_ARRAYS = ("prompt", "tokens", "columns", "log_sums")
CACHE_TENSORS = ("self_key", "self_value", "cross_key", "cross_value")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder.

    manifest: the whole of `manifest.json`; graphs: path of each ONNX file by its role (weights are inside, or in a file
    of data beside it that it names itself); labels: one name per logit of a classifier, nothing of another family;
    sample_rate_hz: what the graphs expect of their waveform. What a graph takes and gives is a matter of the task; the
    family says only what it was made of.
    """

    folder: Path
    manifest: dict[str, Any]
    graphs: dict[str, Path]
    labels: tuple[str, ...]
    sample_rate_hz: int

    @property
    def family(self) -> str:
        """Which kind of model it is, e.g. "ast"."""
        return str(self.manifest["family"])

    @property
    def is_speech(self) -> bool:
        """Whether it writes down speech, by an encoder and a decoder; others are one graph that classifies."""
        return self.task == SPEECH_TASK

    @property
    def task(self) -> str:
        """What the model does, in the words of the Hugging Face hub."""
        return str(self.manifest["task"])

    @property
    def identity(self) -> str:
        """A sha256 over those of all graphs, by which results name what they measured."""
        graphs = self.manifest["graphs"]
        return sha256_json({role: [graph["sha256"], graph["data"]] for role, graph in graphs.items()})

    @property
    def voice_graph(self) -> Path | None:
        """The voice activity model that came along, which older artifacts and classifiers do not have."""
        voice = self.manifest.get("voice")
        return None if voice is None else self.folder / str(voice["file"])

    @property
    def graph_bytes(self) -> int:
        """Bytes of all graphs' files."""
        return sum(int(graph["bytes"]) for graph in self.manifest["graphs"].values())


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
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such artifact folder")
    manifest = read_json(folder / "manifest.json", MANIFEST_SCHEMA, REQUIRED_KEYS)
    _check_manifest(manifest, folder / "manifest.json")
    for part, named in _named_files(manifest):
        path = folder / named["file"]
        if not path.is_file():
            raise BadInput(f"{path}: named by manifest.json but missing")
        if sha256_file(path) != named["sha256"]:
            raise BadInput(
                f"{path}: sha256 differs from manifest.json's {part}.sha256; the file was changed or damaged"
            )
    return Artifact(
        folder=folder,
        manifest=manifest,
        graphs={role: folder / graph["file"] for role, graph in manifest["graphs"].items()},
        labels=tuple(manifest.get("labels", ())),
        sample_rate_hz=int(manifest["input"]["sample_rate_hz"]),
    )


def _named_files(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What names a file of the folder, with the key that it is under."""
    for role, graph in manifest["graphs"].items():
        yield f"graphs.{role}", graph
        if graph["data"] is not None:
            yield f"graphs.{role}.data", graph["data"]
    for part in ("golden", "vocabulary", "voice"):
        if manifest.get(part) is not None:
            yield part, manifest[part]


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:  # noqa: C901, PLR0912, a key each
    """Raises BadInput, naming the key, where a value that is used later is not of the kind that was promised."""
    if not isinstance(manifest["family"], str):
        raise BadInput(f"{path}: family is {manifest['family']!r}, not a text")
    if manifest["task"] not in TASKS:
        raise BadInput(f"{path}: task is {manifest['task']!r}, not one of {', '.join(TASKS)}")
    speech = manifest["task"] == SPEECH_TASK
    roles = SPEECH_ROLES if speech else CLASSIFIER_ROLES
    for key in SPEECH_KEYS if speech else CLASSIFIER_KEYS:
        if key not in manifest:
            raise BadInput(f"{path}: missing key {key!r}")
    for part in ("model", "graphs", "golden", "input", "output"):
        if not isinstance(manifest[part], dict):
            raise BadInput(f"{path}: {part} is not an object")
    if not (manifest["parity"] is None or isinstance(manifest["parity"], dict)):
        raise BadInput(f"{path}: parity is neither null nor an object")
    if sorted(manifest["graphs"]) != sorted(roles):
        raise BadInput(f"{path}: graphs are {sorted(manifest['graphs'])}, expected {', '.join(roles)}")
    for role, graph in manifest["graphs"].items():
        _check_keys(graph, GRAPH_KEYS, path, f"graphs.{role}")
    if speech:
        _check_whisper(manifest, path)
    for part, named in _named_files(manifest):
        name = named.get("file")
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise BadInput(f"{path}: {part}.file is not the plain name of a file")
        if not isinstance(named.get("sha256"), str):
            raise BadInput(f"{path}: {part}.sha256 is not a text")
    for key in ("sample_rate_hz", "window_samples"):
        number = manifest["input"].get(key)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise BadInput(f"{path}: input.{key} is {number!r}, not a positive whole number")
    if not speech:
        _check_labels(manifest, path)
    elif "windows" in manifest["input"]:
        _check_windows(manifest["input"]["windows"], manifest["input"]["window_samples"], path)


def _check_labels(manifest: dict[str, Any], path: Path) -> None:
    labels = manifest["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise BadInput(f"{path}: labels is not a list of texts")
    if manifest["output"].get("shape") != [1, len(labels)]:
        raise BadInput(
            f"{path}: output.shape is {manifest['output'].get('shape')!r}, but there are {len(labels)} labels"
        )


def _check_whisper(manifest: dict[str, Any], path: Path) -> None:  # noqa: C901, PLR0912, a key each
    for part in ("vocabulary", "decoding", "cache", "embedding"):
        if not isinstance(manifest[part], dict):
            raise BadInput(f"{path}: {part} is not an object")
    if not isinstance(manifest.get("voice"), OPTIONAL_DICT):
        raise BadInput(f"{path}: voice is neither null nor an object")
    shape = manifest["output"].get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and _is_count(shape[1])):
        raise BadInput(f"{path}: output.shape is {shape!r}, expected ['rows', vocabulary]")
    decoding, size = manifest["decoding"], shape[1]
    later = {key: kind for key, kind in LATER_DECODING_KEYS.items() if key in decoding}
    _check_keys(decoding, {**DECODING_KEYS, **later}, path, "decoding")
    _check_later_keys(decoding, size, path)
    ids = {key: decoding[key] for key, kind in DECODING_KEYS.items() if kind in (int, OPTIONAL_INT)}
    for key in ("max_initial_timestamp_index", "positions"):
        del ids[key]
    ids.update({f"languages.{name}": token for name, token in decoding["languages"].items()})
    ids.update({f"{key}[{n}]": t for key in ("suppress", "begin_suppress") for n, t in enumerate(decoding[key])})
    for key, token in ids.items():
        if token is not None and not (_is_count(token, 0) and token < size):
            raise BadInput(f"{path}: decoding.{key} is {token!r}, not one of the {size} tokens")
    default = decoding["default_language"]
    if default is not None and decoding["languages"] and default not in decoding["languages"]:
        raise BadInput(f"{path}: decoding.default_language is {default!r}, which has no token")
    if decoding["positions"] < 1:
        raise BadInput(f"{path}: decoding.positions is {decoding['positions']!r}, not a positive whole number")
    embedding, data = manifest["embedding"], manifest["graphs"]["decoder"]["data"] or {}
    if embedding.get("file") != data.get("file") or not _is_count(embedding.get("offset"), 0):
        raise BadInput(f"{path}: embedding is not a place in the decoder's file of data")
    table = embedding.get("shape")
    if not (isinstance(table, list) and len(table) == 2 and table[0] == size and _is_count(table[1])):
        raise BadInput(f"{path}: embedding.shape is {table!r}, not one row for each of {size} tokens")
    blocks = embedding.get("blocks")
    if embedding.get("precision") not in GRAPH_PRECISIONS or (blocks is None) != (embedding["precision"] != "int8"):
        raise BadInput(f"{path}: embedding.precision is {embedding.get('precision')!r} with blocks {blocks!r}")
    if blocks is not None:
        _check_keys(blocks, {"number": int, "length": int, "scales_offset": int}, path, "embedding.blocks")
    layers = manifest["cache"].get("layers")
    if not isinstance(layers, list) or not layers:
        raise BadInput(f"{path}: cache.layers is not a list of layers")
    for number, layer in enumerate(layers):
        for name in CACHE_TENSORS:
            sizes = layer.get(name) if isinstance(layer, dict) else None
            if not (isinstance(sizes, list) and all(_is_count(length, 0) for length in sizes)):
                raise BadInput(f"{path}: cache.layers[{number}].{name} is {sizes!r}, not a list of sizes")
    for key in ("bytes_per_token", "cross_bytes", "padded_bytes_per_token", "padded_cross_bytes"):
        if not _is_count(manifest["cache"].get(key), 0):
            raise BadInput(f"{path}: cache.{key} is {manifest['cache'].get(key)!r}, not a number of bytes")
    if "alignment" in manifest:
        _check_alignment(manifest["alignment"], layers, path)


def _check_alignment(alignment: Any, layers: list[dict[str, Any]], path: Path) -> None:
    """Of the heads that word times are taken from, which only an artifact made for them has."""
    _check_keys(alignment, ALIGNMENT_KEYS, path, "alignment")
    heads = alignment["heads"]
    for pair in heads:
        known = isinstance(pair, list) and len(pair) == 2 and all(_is_count(number, 0) for number in pair)
        if not (known and pair[0] < len(layers) and pair[1] < layers[pair[0]]["cross_key"][0]):
            raise BadInput(f"{path}: alignment.heads names {pair!r}, which is no layer and head of the decoder")
    if not heads or heads != sorted(heads) or len({tuple(pair) for pair in heads}) != len(heads):
        raise BadInput(f"{path}: alignment.heads is {heads!r}, not an ascending list of heads")
    if alignment["chosen_by"] not in ALIGNMENT_CHOSEN_BY:
        raise BadInput(
            f"{path}: alignment.chosen_by is {alignment['chosen_by']!r}, not one of {', '.join(ALIGNMENT_CHOSEN_BY)}"
        )
    if not _is_count(alignment["filter_positions"]) or alignment["filter_positions"] % 2 == 0:
        raise BadInput(f"{path}: alignment.filter_positions is {alignment['filter_positions']!r}, not an odd number")
    if not _is_count(alignment["lost"], 0):
        raise BadInput(f"{path}: alignment.lost is {alignment['lost']!r}, not a number of heads")


def _check_windows(windows: Any, full: int, path: Path) -> None:
    """Of an encoder's windows, which artifacts from before there were several do not have."""
    _check_keys(windows, {"choice": str, "lengths": list, "tail": int}, path, "input.windows")
    lengths = windows["lengths"]
    known = all(_is_count(length) for length in lengths) and lengths == sorted(set(lengths))
    if not known or not lengths or lengths[-1] != full:
        raise BadInput(f"{path}: input.windows.lengths is {lengths!r}, not ascending lengths up to {full} samples")
    if not _is_count(windows["tail"], 0):
        raise BadInput(f"{path}: input.windows.tail is {windows['tail']!r}, not a number of samples")


def _check_later_keys(decoding: dict[str, Any], size: int, path: Path) -> None:
    begin, end = decoding["timestamp_begin"], decoding.get("timestamp_end")
    if end is not None and not (begin is not None and begin < end <= size):
        raise BadInput(f"{path}: decoding.timestamp_end is {end!r}, not behind {begin} and within {size} tokens")
    task = decoding.get("default_task", "transcribe")
    if task not in ("transcribe", "translate") or (decoding["multilingual"] and decoding[task] is None):
        raise BadInput(f"{path}: decoding.default_task is {task!r}, which the model has no token for")


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_keys(value: Any, kinds: dict[str, Any], path: Path, part: str) -> None:
    """Raises BadInput unless `value` is an object with exactly these keys, each of its kind."""
    if not isinstance(value, dict):
        raise BadInput(f"{path}: {part} is not an object")
    for key in kinds:
        if key not in value:
            raise BadInput(f"{path}: missing key {part}.{key}")
    for key in value:
        if key not in kinds:
            raise BadInput(f"{path}: unknown key {part}.{key}")
    for key, kind in kinds.items():
        accepted = (int, float) if kind is float else kind
        right = isinstance(value[key], accepted) and (kind is bool or not isinstance(value[key], bool))
        if not right:
            raise BadInput(f"{path}: {part}.{key} is {value[key]!r}, which is of the wrong kind")


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
    path = artifact.folder / artifact.manifest["golden"]["file"]
    speech = None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            samples, offsets, logits = arrays["samples"], arrays["offsets"], arrays["logits"]
            if artifact.is_speech:
                kept = (*SPEECH_ARRAYS, *(("alignment",) if "alignment" in artifact.manifest else ()))
                speech = GoldenSpeech(**{key: arrays[key] for key in kept})
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a file of golden clips ({error})") from None
    waveforms = tuple(samples[start:end] for start, end in zip(offsets[:-1], offsets[1:]))
    return Golden(waveforms=waveforms, logits=logits, speech=speech)
