"""What a results file holds: raw samples and facts, as the dataclasses that `leanear.runtimes.records` reads it into.

A class or a key that ends in `_ms` holds milliseconds, `_s` seconds, `_bytes` bytes; lists are of all samples or of all
evaluation clips, in their order. Roles are "dense", which may be missing, and "slim".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Dict, List, Literal, Optional, Union

from leanear.runtimes.manifest import Cache, GraphFile, Input

ROLES = ("dense", "slim")
Role = Annotated[str, ROLES]
Status = Literal["ok", "not measured", "failed"]
Samples = List[float]


@dataclass(frozen=True)
class Unknown:
    """What stands where something could not be read, and why."""

    status: Literal["not measured", "failed"]
    reason: str


Figure = Union[float, Unknown]


@dataclass(frozen=True)
class Tool:
    name: str
    version: str


@dataclass(frozen=True)
class Options:
    """How it was measured. windows: of a Whisper's encoder, in words; none of classifiers."""

    threads: int
    precisions: Dict[Role, str]
    windows: Dict[Role, str]


@dataclass(frozen=True)
class DecodingFacts:
    """What a report says of a model's decoding: a part of the manifest's."""

    window_s: float
    positions: int
    multilingual: bool
    default_language: Optional[str]
    default_task: Optional[str]


@dataclass(frozen=True)
class MeasuredArtifact:
    """What an artifact's manifest says; labels: how many; vocabulary, decoding, cache: None of a classifier."""

    folder: str
    family: str
    task: str
    labels: int
    vocabulary: Optional[int]
    decoding: Optional[DecodingFacts]
    cache: Optional[Cache]
    graphs: Dict[str, GraphFile]
    input: Input
    model: Dict[str, Any]
    parity: Optional[Dict[str, Any]]
    made_from: Dict[str, Any]
    manifest_sha256: str


@dataclass(frozen=True)
class ClipsFacts:
    file: str
    sha256: str
    clips: int
    sample_rate_hz: int
    audio_s: float


@dataclass(frozen=True)
class State:
    """What a machine was doing at a moment. temperature_c: by sensor, or why none was read."""

    load_average_1_min: Figure
    cpu_busy_share: Figure
    memory_available_bytes: Figure
    frequency_khz: Figure
    temperature_c: Dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the measurement: how it ended, why, and the last lines of the process that failed."""

    status: Status
    reason: str
    log_tail: List[str]


@dataclass(frozen=True)
class RoleCheck:
    """What an engine answered to golden clips, beside the checkpoint; see `leanear.benchmarks.measure.engine_check`."""

    clips: int
    unit: str
    bound: float
    error: Optional[float]
    cosine: Optional[float]
    answers: Optional[int]
    changed: Optional[int]
    verdict: str
    reason: str


@dataclass(frozen=True)
class Check(Part):
    roles: Dict[Role, RoleCheck]


@dataclass(frozen=True)
class LatencySettings:
    repeats: int
    samples_wanted: int
    budget_s: float
    tokens: Optional[int]


@dataclass(frozen=True)
class TimedInput:
    source: str
    samples: int
    audio_s: float


@dataclass(frozen=True)
class WarmUp:
    runs: int
    seconds: float
    settled: bool
    timings_ms: Samples


@dataclass(frozen=True)
class Repeat:
    """One process that timed one role; what follows `log_tail` is None where it did not end well."""

    role: Role
    repeat: int
    load_average_before: Figure
    status: Status
    reason: str
    log_tail: List[str]
    import_ms: Optional[float]
    load_ms: Optional[float]
    first_inference_ms: Optional[float]
    warm_up: Optional[WarmUp]
    samples_ms: Optional[Samples]
    stages_ms: Optional[Dict[str, Samples]]
    gpu_ms: Optional[Dict[str, Samples]]
    OMIT_NONE: ClassVar[List[str]] = [
        "import_ms", "load_ms", "first_inference_ms", "warm_up", "samples_ms", "stages_ms", "gpu_ms",
    ]  # fmt: skip


@dataclass(frozen=True)
class Throttling:
    verdict: str
    reasons: List[str]
    looked_at: List[str]


@dataclass(frozen=True)
class Record:
    """Readings of sensors. seconds: of each moment since the start; series, sources: by kind and sensor."""

    start_monotonic_s: float
    interval_s: float
    seconds: List[float]
    series: Dict[str, Dict[str, List[Optional[float]]]]
    sources: Dict[str, Dict[str, str]]
    not_measured: Dict[str, str]
    sampling_cpu_s: float


@dataclass(frozen=True)
class Sensors(Record):
    throttling: Throttling


@dataclass(frozen=True)
class Latency(Part):
    """Every sample. order: the roles of the processes; session: what the runtime says that it used."""

    settings: LatencySettings
    input: TimedInput
    order: List[str]
    repeats: List[Repeat]
    session: Dict[Role, Dict[str, Any]]
    front_end_share: Dict[Role, Optional[float]]
    sensors: Sensors


@dataclass(frozen=True)
class RoleMemory:
    rss_interpreter_bytes: int
    rss_runtime_imported_bytes: int
    rss_loaded_bytes: int
    rss_run_bytes: List[int]
    peak_rss_bytes: int


@dataclass(frozen=True)
class Memory(Part):
    roles: Dict[Role, RoleMemory]


@dataclass(frozen=True)
class Answers:
    predicted_ids: List[int]
    cross_entropy_nats: List[float]


@dataclass(frozen=True)
class Accuracy(Part):
    """Of a classifier whose clips have one label each."""

    labels: List[str]
    names: List[str]
    label_ids: List[int]
    roles: Dict[Role, Answers]
    kl_dense_slim_nats: Optional[List[float]]


@dataclass(frozen=True)
class TagAnswers:
    """Of a classifier whose clips may have several labels: packed logits (`leanear.benchmarks.tagging`)."""

    logits_float32: str
    cross_entropy_nats: List[float]


@dataclass(frozen=True)
class Tags(Part):
    labels: List[str]
    names: List[str]
    label_ids: List[List[int]]
    roles: Dict[Role, TagAnswers]
    kl_dense_slim_nats: Optional[List[float]]


@dataclass(frozen=True)
class RoleTranscripts:
    """What was written down of every clip, and what it took."""

    texts: List[str]
    languages: List[Optional[str]]
    tokens: List[int]
    compression_ratios: List[float]
    seconds: List[float]
    windows: List[int]
    second_tries: List[int]


@dataclass(frozen=True)
class ErrorCounts:
    substitutions: List[int]
    deletions: List[int]
    insertions: List[int]


@dataclass(frozen=True)
class WordErrors:
    """Counted on the workstation. metric: by which rules."""

    metric: str
    reference_words: List[int]
    roles: Dict[Role, ErrorCounts]


@dataclass(frozen=True)
class Transcripts(Part):
    """Of speech. word_errors: None until they are counted."""

    names: List[str]
    references: List[str]
    audio_s: List[float]
    decoding: Dict[str, Any]
    roles: Dict[Role, RoleTranscripts]
    word_errors: Optional[WordErrors]


@dataclass(frozen=True)
class Stretch:
    n: int
    median_ms: float
    most_ms: float


@dataclass(frozen=True)
class Work:
    start_monotonic_s: float
    end_monotonic_s: float
    inferences: int
    window_s: float
    first: Stretch
    last: Stretch
    median_ms_by_tenth: List[float]


@dataclass(frozen=True)
class Energy:
    """Of one inference, by a sensor on the board."""

    status: Literal["ok"]
    joules: float
    above_idle_joules: Figure
    sensor: str


@dataclass(frozen=True)
class Trend:
    ratio: float
    text: str


@dataclass(frozen=True)
class Lasting:
    """Work of one role without a pause. idle, energy: what a sensor said before and during it."""

    work: Work
    idle: Dict[str, Any]
    energy: Dict[str, Any]
    energy_per_inference: Union[Energy, Unknown]
    throttling: Throttling
    verdict: Trend
    sensors: Record


@dataclass(frozen=True)
class Sustained(Part):
    seconds: float
    roles: Dict[Role, Lasting]


@dataclass(frozen=True)
class ResultsDocument:
    """The whole file. inputs_sha256: of all that was measured and how; clips: None where none were given; recordings:
    the clips of speech joined, None where they fit in a window; device: what its doctor found; not_measured: reasons,
    by what is missing."""

    schema: str
    tool: Tool
    command: List[str]
    started_utc: str
    finished_utc: str
    inputs_sha256: str
    task: str
    runtime: str
    options: Options
    artifacts: Dict[Role, MeasuredArtifact]
    clips: Optional[ClipsFacts]
    device_name: str
    device: Dict[str, Any]
    device_before: State
    device_after: State
    check: Check
    latency: Latency
    memory: Memory
    accuracy: Any
    recordings: Optional[Transcripts]
    sustained: Sustained
    not_measured: Dict[str, str]


@dataclass(frozen=True)
class LabelsDocument(ResultsDocument):
    accuracy: Accuracy


@dataclass(frozen=True)
class TagsDocument(ResultsDocument):
    accuracy: Tags


@dataclass(frozen=True)
class SpeechDocument(ResultsDocument):
    accuracy: Transcripts
