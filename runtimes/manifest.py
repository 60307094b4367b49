"""`manifest.json`: what an artifact is, as its exporter wrote it and a device reads it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, Literal, Optional, Tuple, Union

from leanear.runtimes.choose import GRAPH_PRECISIONS
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file
from leanear.runtimes.records import Count, Positive, read
from leanear.runtimes.tasks import SPEECH_TASK, TASKS, SpokenTask

MANIFEST_FILE, MANIFEST_SCHEMA = "manifest.json", "leanear-artifact-2"
CLASSIFIER_ROLES, SPEECH_ROLES = ("classifier",), ("encoder", "decoder")
FULL, AUTO = "full", "auto"  # windows that a user can ask for by name


@dataclass(frozen=True)
class NamedFile:
    file: str
    sha256: str


@dataclass(frozen=True)
class GoldenFile:
    file: str
    sha256: str
    clips: Count


NO_FILE, NO_GOLDEN = NamedFile("", ""), GoldenFile("", "", 0)  # of graphs that are only timed


def named_file(path: Path) -> NamedFile:
    """What a manifest says of a file that is there now."""
    return NamedFile(path.name, sha256_file(path))


@dataclass(frozen=True)
class VoiceFile:
    """The voice activity model that came along, and the package and version that it is of."""

    file: str
    sha256: str
    bytes: Count
    made_by: str


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file. bytes: of all its files; data: the file beside it with more weights; precision: of its products."""

    file: str
    sha256: str
    bytes: Count
    data: Optional[NamedFile]
    form: str
    opset: Count
    nodes: Count
    precision: str


@dataclass(frozen=True)
class EncoderWindows:
    """The windows that audio is put in, in samples.

    choice: "full", "auto", or seconds, as a user said it; lengths: ascending, the last one is the model's full window;
    tail: samples of silence that a window shorter than the full one has to have behind the audio.
    """

    choice: str
    lengths: Tuple[Positive, ...]
    tail: Count

    @property
    def full(self) -> int:
        """The window that the model was trained with."""
        return self.lengths[-1]

    @property
    def longest_piece(self) -> int:
        """Samples of longer audio that are taken at a time: seconds that a user said are meant for all pieces."""
        return self.full if self.choice in (FULL, AUTO) else self.lengths[0] - self.tail

    def holding(self, samples: int) -> int:
        """The shortest window that holds so many samples and the tail, else the full one."""
        return next((length for length in self.lengths if samples + self.tail <= length), self.full)


@dataclass(frozen=True)
class Input:
    """The waveform that a graph takes; windows: of a Whisper's encoder, None of one from before there were several."""

    name: str
    dtype: str
    shape: Tuple[Union[int, str], ...]
    sample_rate_hz: Positive
    window_samples: Positive
    windows: Optional[EncoderWindows] = None
    OMIT_NONE: ClassVar[Tuple[str, ...]] = ("windows",)


def waveform_input(sample_rate_hz: int, window_samples: int, windows: Optional[EncoderWindows] = None) -> Input:
    """The input "waveform", float32 (1, samples), that every graph has which begins with a front end."""
    return Input("waveform", "float32", (1, "samples"), sample_rate_hz, window_samples, windows)


@dataclass(frozen=True)
class Output:
    """A classifier's logits: [1, labels]."""

    name: str
    dtype: str
    shape: Tuple[int, int]


@dataclass(frozen=True)
class TwoStages:
    """Which logits of a graph are exact: the `rescored` likeliest of text, and all from the token `exact_from` on."""

    rescored: Count
    exact_from: Count


@dataclass(frozen=True)
class SpeechOutput:
    """A decoder's logits: ["rows", vocabulary]."""

    name: str
    dtype: str
    shape: Tuple[str, Positive]
    two_stages: Optional[TwoStages]
    MAY_LACK: ClassVar[Dict[str, Any]] = {"two_stages": None}


@dataclass(frozen=True)
class Decoding:
    """The ids that decoding knows by name, and what the model was made for.

    start, end: around a transcript; previous: in front of earlier text; no_speech: said at `start` where nobody speaks;
    no_timestamps: asks for none; timestamp_begin: 0.00 s, every next id `timestamp_step_s` later; timestamp_end: the
    first id behind the timestamps, where words begin that were added to the model's own, None: there are none;
    languages: id by code; default_task: "transcribe" or "translate", as the model does unless it is told otherwise;
    suppress: never said; begin_suppress: not said first; max_initial_timestamp_index: the latest first timestamp, in
    steps; positions: most tokens, prompt and transcript together. What a model does not have is None.
    """

    start: int
    end: int
    previous: Optional[int]
    no_speech: Optional[int]
    no_timestamps: Optional[int]
    timestamp_begin: Optional[int]
    timestamp_end: Optional[int]
    transcribe: Optional[int]
    translate: Optional[int]
    languages: Dict[str, int]
    default_language: Optional[str]
    default_task: SpokenTask
    multilingual: bool
    suppress: Tuple[int, ...]
    begin_suppress: Tuple[int, ...]
    max_initial_timestamp_index: Optional[int]
    positions: Positive
    timestamp_step_s: float
    window_s: float
    MAY_LACK: ClassVar[Dict[str, Any]] = {"timestamp_end": None, "default_task": "transcribe"}

    @property
    def times(self) -> range:
        """The ids of timestamps."""
        if self.timestamp_begin is None:
            return range(0)
        return range(self.timestamp_begin, sys.maxsize if self.timestamp_end is None else self.timestamp_end)

    @property
    def text_tokens(self) -> int:
        """How many ids are text: all below the first that is not."""
        return min(self.start, self.end)

    @property
    def task_token(self) -> Optional[int]:
        """The id of the model's own task."""
        return self.transcribe if self.default_task == "transcribe" else self.translate

    def token_ids(self) -> Iterator[Tuple[str, Optional[int]]]:
        """Every id but the timestamps' end, with its key."""
        for key in ("start", "end", "previous", "no_speech", "no_timestamps", "timestamp_begin"):
            yield key, getattr(self, key)
        yield from (("transcribe", self.transcribe), ("translate", self.translate))
        yield from ((f"languages.{code}", token) for code, token in self.languages.items())
        yield from ((f"suppress[{place}]", token) for place, token in enumerate(self.suppress))
        yield from ((f"begin_suppress[{place}]", token) for place, token in enumerate(self.begin_suppress))


@dataclass(frozen=True)
class Blocks:
    """How a row of the embedding is stored in 8 bits: so many blocks, their length, and where their scales begin."""

    number: Count
    length: Count
    scales_offset: Count


@dataclass(frozen=True)
class EmbeddingPlace:
    """Where the embedding is: file, offset in bytes, shape (tokens, width), and blocks of 8-bit integers."""

    file: str
    offset: Count
    shape: Tuple[Positive, Positive]
    precision: str
    blocks: Optional[Blocks]


@dataclass(frozen=True)
class CacheLayer:
    """Of one decoder layer: heads, of cross-attention positions, and the widest head."""

    self_key: Tuple[Count, Count]
    self_value: Tuple[Count, Count]
    cross_key: Tuple[Count, Count, Count]
    cross_value: Tuple[Count, Count, Count]


@dataclass(frozen=True)
class Cache:
    """Keys and values; bytes of the widths that the model keeps, and as the graphs hold them, narrower heads padded."""

    layers: Tuple[CacheLayer, ...]
    bytes_per_token: Count
    cross_bytes: Count
    padded_bytes_per_token: Count
    padded_cross_bytes: Count


@dataclass(frozen=True)
class Alignment:
    """The heads that word times are taken from.

    heads: (decoder layer, head) of each, ascending; chosen_by: the model's own list, or all heads of the upper half of
    the decoder, where it has none; lost: how many heads of the model's own list were pruned; filter_positions: of the
    median filter over time; moved: what the proof of the graphs found, None before.
    """

    heads: Tuple[Tuple[Count, Count], ...]
    chosen_by: Literal["generation_config", "upper half"]
    lost: Count = 0
    filter_positions: Positive = 7
    moved: Optional[float] = None

    @property
    def sentence(self) -> str:
        """Which heads these are and how they were found, in a line."""
        heads = f"{len(self.heads)} head{'' if len(self.heads) == 1 else 's'}"
        found = {
            "generation_config": f"{heads} that generation_config.json names",
            "upper half": f"{heads}, the whole upper half of the decoder, as generation_config.json names none of it",
        }
        lost = f"; {self.lost} more of the model's own list were pruned" if self.lost else ""
        return f"word times from {found[self.chosen_by]}{lost}"


@dataclass(frozen=True)
class AnyManifest:
    """What every manifest says. model: its sizes and what it came from, for the reader."""

    schema: str
    family: str
    task: str
    model: Dict[str, Any]
    graphs: Dict[str, GraphFile]
    input: Input
    output: Any
    golden: GoldenFile
    parity: Optional[Dict[str, Any]]
    made_from: Dict[str, Any]
    left_in_float32: Tuple[str, ...]
    MAY_LACK: ClassVar[Dict[str, Any]] = {"left_in_float32": ()}


@dataclass(frozen=True)
class ClassifierManifest(AnyManifest):
    """Of a graph that gives one logit per label."""

    output: Output
    labels: Tuple[str, ...]


@dataclass(frozen=True)
class SpeechManifest(AnyManifest):
    """Of an encoder and a decoder that write down speech; voice: None where the model hears another rate than it."""

    output: SpeechOutput
    vocabulary: NamedFile
    voice: Optional[VoiceFile]
    decoding: Decoding
    embedding: EmbeddingPlace
    cache: Cache
    alignment: Optional[Alignment] = None
    MAY_LACK: ClassVar[Dict[str, Any]] = {**AnyManifest.MAY_LACK, "voice": None}
    OMIT_NONE: ClassVar[Tuple[str, ...]] = ("alignment",)


Manifest = Union[ClassifierManifest, SpeechManifest]


def read_manifest(path: Path) -> Manifest:
    """The manifest in `path`; the files that it names are not looked at.

    Raises:
        BadInput: a key is missing, unknown or of the wrong type, or what it says cannot be; the text names it.
    """
    document = read_json(path, MANIFEST_SCHEMA)
    task = document.get("task")
    if task not in TASKS:
        raise BadInput(f"{path}: task is {task!r}, not one of {', '.join(TASKS)}")
    manifest: Manifest = (
        read(SpeechManifest, document, path) if task == SPEECH_TASK else read(ClassifierManifest, document, path)
    )
    roles = SPEECH_ROLES if task == SPEECH_TASK else CLASSIFIER_ROLES
    if sorted(manifest.graphs) != sorted(roles):
        raise BadInput(f"{path}: graphs are {sorted(manifest.graphs)}, expected {', '.join(roles)}")
    for part, named in named_files(manifest):
        if not named.file or Path(named.file).name != named.file or "\0" in named.file:
            raise BadInput(f"{path}: {part}.file is not the plain name of a file")
    if isinstance(manifest, SpeechManifest):
        _check_speech(manifest, path)
    elif not manifest.labels or manifest.output.shape != (1, len(manifest.labels)):
        raise BadInput(f"{path}: output.shape is {manifest.output.shape}, but there are {len(manifest.labels)} labels")
    return manifest


def named_files(manifest: Manifest) -> Iterator[Tuple[str, Union[NamedFile, GraphFile, GoldenFile, VoiceFile]]]:
    """What names a file of the folder, with the key that it is under."""
    for role, graph in manifest.graphs.items():
        yield f"graphs.{role}", graph
        if graph.data is not None:
            yield f"graphs.{role}.data", graph.data
    yield "golden", manifest.golden
    if isinstance(manifest, SpeechManifest):
        yield "vocabulary", manifest.vocabulary
        if manifest.voice is not None:
            yield "voice", manifest.voice


def _check_speech(manifest: SpeechManifest, path: Path) -> None:
    size, decoding, embedding = manifest.output.shape[1], manifest.decoding, manifest.embedding
    _check_decoding(decoding, size, path)
    data = manifest.graphs["decoder"].data
    if data is None or embedding.file != data.file:
        raise BadInput(f"{path}: embedding is not a place in the decoder's file of data")
    if embedding.shape[0] != size:
        raise BadInput(f"{path}: embedding.shape is {list(embedding.shape)}, not one row for each of {size} tokens")
    blocks = embedding.blocks
    if embedding.precision not in GRAPH_PRECISIONS or (blocks is None) != (embedding.precision != "int8"):
        raise BadInput(f"{path}: embedding.precision is {embedding.precision!r} with blocks {blocks!r}")
    if not manifest.cache.layers:
        raise BadInput(f"{path}: cache.layers is not a list of layers")
    windows = manifest.input.windows
    if windows is not None:
        lengths = list(windows.lengths)
        if not lengths or lengths != sorted(set(lengths)) or lengths[-1] != manifest.input.window_samples:
            full = manifest.input.window_samples
            raise BadInput(f"{path}: input.windows.lengths is {lengths}, not ascending lengths up to {full} samples")
    if manifest.alignment is not None:
        _check_alignment(manifest.alignment, manifest.cache.layers, path)


def _check_decoding(decoding: Decoding, size: int, path: Path) -> None:
    for key, token in decoding.token_ids():
        if token is not None and not 0 <= token < size:
            raise BadInput(f"{path}: decoding.{key} is {token!r}, not one of the {size} tokens")
    default, begin, end = decoding.default_language, decoding.timestamp_begin, decoding.timestamp_end
    if default is not None and decoding.languages and default not in decoding.languages:
        raise BadInput(f"{path}: decoding.default_language is {default!r}, which has no token")
    if end is not None and not (begin is not None and begin < end <= size):
        raise BadInput(f"{path}: decoding.timestamp_end is {end!r}, not behind {begin} and within {size} tokens")
    if decoding.multilingual and decoding.task_token is None:
        raise BadInput(f"{path}: decoding.default_task is {decoding.default_task!r}, which the model has no token for")


def _check_alignment(alignment: Alignment, layers: Tuple[CacheLayer, ...], path: Path) -> None:
    heads = list(alignment.heads)
    for layer, head in heads:
        if layer >= len(layers) or head >= layers[layer].cross_key[0]:
            raise BadInput(f"{path}: alignment.heads names {[layer, head]}, which is no layer and head of the decoder")
    if not heads or heads != sorted(set(heads)):
        raise BadInput(f"{path}: alignment.heads is {heads!r}, not an ascending list of heads")
    if alignment.filter_positions % 2 == 0:
        raise BadInput(f"{path}: alignment.filter_positions is {alignment.filter_positions}, not an odd number")
