"""The results file: raw samples and facts, one versioned JSON, read as strictly as it is written."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Type

from leanear.benchmarks.results_document import (
    ROLES,
    LabelsDocument,
    Latency,
    Part,
    Record,
    Repeat,
    ResultsDocument,
    Role,
    SpeechDocument,
    Tags,
    TagsDocument,
    Transcripts,
)
from leanear.benchmarks.tagging import unpacked
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, sha256_file, write_json
from leanear.runtimes.records import read
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK, TASKS


@dataclass(frozen=True)
class DeviceOutcome:
    """How one device's delivery ended.

    status: "ok" or why not; reason: one line, empty where the status is "ok"; notes: what did not stop it but should be
    known; log_tail: the last lines that the device or ssh wrote; results: where they are here, also those of a
    measurement that failed in parts; doctor: the device's facts and what it has and lacks.
    """

    host: str
    status: str
    reason: str = ""
    notes: Tuple[str, ...] = ()
    log_tail: Tuple[str, ...] = ()
    results: Optional[str] = None
    doctor: Optional[Dict[str, Any]] = None


RESULTS_SCHEMA = "leanear-results-3"
PARTS = ("check", "latency", "memory", "accuracy", "recordings", "sustained")


@dataclass(frozen=True)
class Results:
    """A checked results file. document: the whole of it; path: where it lies."""

    path: Path
    document: dict[str, Any]

    @functools.cached_property
    def content(self) -> ResultsDocument:
        """The document as dataclasses.

        Raises:
            BadInput: a key is missing, unknown or mistyped, or two keys contradict each other.
        """
        task = self.document.get("task")
        if task not in TASKS:
            raise BadInput(f"{self.path}: task is {task!r}, expected one of {', '.join(TASKS)}")
        read_kind: Type[ResultsDocument] = {SPEECH_TASK: SpeechDocument, TAGGING_TASK: TagsDocument}.get(
            task, LabelsDocument
        )
        content = read(read_kind, self.document, self.path)
        _check_consistency(content, self.path)
        return content

    @property
    def is_speech(self) -> bool:
        """Whether transcripts were measured, not labels."""
        return isinstance(self.content, SpeechDocument)

    @property
    def is_tagging(self) -> bool:
        """Whether clips may have several labels, so that the logits of all were kept."""
        return isinstance(self.content, TagsDocument)

    @property
    def roles(self) -> tuple[Role, ...]:
        """("dense", "slim"), or ("slim",) when one artifact was measured alone."""
        return tuple(role for role in ROLES if role in self.content.artifacts)

    @property
    def precisions(self) -> dict[Role, str]:
        """What each role was measured in, as in `leanear.runtimes.sessions.PRECISIONS`."""
        return {role: self.content.options.precisions[role] for role in self.roles}

    def samples_ms(self, role: str) -> list[list[float]]:
        """Steady-state samples of each process that measured `role`, in the order of the repeats."""
        return [repeat.samples_ms or [] for repeat in self.repeats(role)]

    def stages_ms(self, role: str, stage: str) -> list[list[float]]:
        """The same of one stage of an inference, where it has stages; empty where the stage was not measured."""
        found = [(repeat.stages_ms or {}).get(stage, []) for repeat in self.repeats(role)]
        return [samples for samples in found if samples]

    def gpu_ms(self, role: str) -> dict[str, list[float]]:
        """The GPU's own time of all samples of `role` by stage, one process after another; none where none was told."""
        found: dict[str, list[float]] = {}
        for repeat in self.repeats(role):
            for stage, samples in (repeat.gpu_ms or {}).items():
                found.setdefault(stage, []).extend(samples)
        return found

    def repeats(self, role: str) -> list[Repeat]:
        """The latency processes of `role` that ended well."""
        repeats = self.content.latency.repeats
        return [repeat for repeat in repeats if repeat.role == role and repeat.status == "ok"]

    def failures(self) -> dict[str, str]:
        """The reason of each part ("check", "latency", "memory", ...) that failed; empty when none did."""
        return {name: part.reason for name, part in parts(self.content) if part.status == "failed"}

    @property
    def is_wrong(self) -> bool:
        """Whether an engine was found to answer otherwise than its checkpoint, so that nothing was measured."""
        return any(role.verdict == "failed" for role in self.content.check.roles.values())


def parts(content: ResultsDocument) -> list[tuple[str, Part]]:
    """The parts of the measurement, by name."""
    found = [(name, getattr(content, name)) for name in PARTS]
    return [(name, part) for name, part in found if part is not None]


def write_results(path: Path, document: dict[str, Any]) -> Results:
    """The results written to `path`, whole or not at all.

    Raises:
        BadInput: a key is missing, unknown, or of the wrong type.
    """
    results = Results(path, document)
    _ = results.content
    write_json(path, document)
    return results


def read_results(path: Path) -> Results:
    """The results in `path`.

    Raises:
        BadInput: the file is missing, is not JSON, is of another schema, or a key is missing, unknown or mistyped.
    """
    path = Path(path)
    results = Results(path, read_json(path, RESULTS_SCHEMA))
    _ = results.content
    return results


def results_files(folder: Path) -> list[Path]:
    """The results files of a deployment folder or a bundle, of all devices; parts of unfinished ones are none."""
    return sorted([*(folder / "results").glob("[!.]*.json"), *(folder / "results").glob("[!.]*/[!.]*.json")])


def brought_files(given: Path) -> list[Path]:
    """The results files that a path from a device stands for; raises BadInput where there are none."""
    if given.is_file():
        return [given]
    inside = sorted([*given.glob("[!.]*.json"), *given.glob("[!.]*/[!.]*.json")])
    found = results_files(given) if (given / "results").is_dir() else inside
    if not found:
        raise BadInput(f"{given}: no results there; `leanear.pyz bench` writes results/DEVICE/RUNTIME-PRECISION.json")
    return found


def why_foreign(results: Path, folder: Path) -> str:
    """Why a results file is not of the models that a deployment folder has now, in one line; "" where it is."""
    try:
        artifacts = read_results(results).content.artifacts
    except BadInput as error:
        return str(error)
    for role, measured in artifacts.items():
        path = folder / role / "manifest.json"
        if not path.is_file() or sha256_file(path) != measured.manifest_sha256:
            return f"{results}: its {role} model is not the one in {folder}"
    return ""


def _check_consistency(content: ResultsDocument, path: Path) -> None:
    _check_repeats(content.latency, path)
    _check_roles(content, path)
    for name, part in parts(content):
        if part.status != "ok" and not part.reason:
            raise BadInput(f"{path}: {name}.reason: empty, though the status is {part.status!r}")
    _check_record(content.latency.sensors, f"{path}: latency.sensors")
    if isinstance(content, SpeechDocument):
        _check_transcripts(content, path)
    elif isinstance(content, (LabelsDocument, TagsDocument)):
        _check_lengths(content.accuracy.roles, len(content.accuracy.label_ids), f"{path}: accuracy.roles")
    if isinstance(content, TagsDocument):
        _check_tags(content.accuracy, path)


def _check_roles(content: ResultsDocument, path: Path) -> None:
    """Raises BadInput where a part that went well lacks one of the measured roles."""
    if "slim" not in content.artifacts:
        raise BadInput(f"{path}: missing key 'artifacts.slim'")
    for role in content.artifacts:
        if role not in content.options.precisions:
            raise BadInput(f"{path}: missing key 'options.precisions.{role}'")
        for name in ("memory", "accuracy"):
            part = getattr(content, name)
            if part.status == "ok" and role not in part.roles:
                raise BadInput(f"{path}: missing key '{name}.roles.{role}', though the status is 'ok'")
        samples = [repeat.samples_ms for repeat in content.latency.repeats if repeat.role == role]
        if content.latency.status == "ok" and not (samples and all(samples)):
            raise BadInput(f"{path}: latency.repeats: no samples of {role!r}, though the status is 'ok'")


def _check_repeats(latency: Latency, path: Path) -> None:
    """Raises BadInput where a process that ended well lacks something, or the GPU's times are not those of samples."""
    for index, repeat in enumerate(latency.repeats):
        where = f"latency.repeats[{index}]"
        for key in Repeat.OMIT_NONE:
            if repeat.status == "ok" and getattr(repeat, key) is None:
                raise BadInput(f"{path}: missing key '{where}.{key}'")
        for stage, gpu in (repeat.gpu_ms or {}).items():
            if len(gpu) != len(repeat.samples_ms or []):
                raise BadInput(f"{path}: {where}.gpu_ms.{stage}: {len(gpu)} for {len(repeat.samples_ms or [])} samples")


def _check_record(record: Record, where: str) -> None:
    """Raises BadInput where a sensor has another number of readings than there are moments, or no source."""
    for kind, readings in record.series.items():
        for name, values in readings.items():
            if len(values) != len(record.seconds):
                raise BadInput(f"{where}.series.{kind}.{name}: {len(values)} values for {len(record.seconds)} moments")
            if name not in record.sources.get(kind, {}):
                raise BadInput(f"{where}.sources.{kind}: missing key {name!r}")


def _check_transcripts(content: SpeechDocument, path: Path) -> None:
    for role, artifact in content.artifacts.items():
        if artifact.decoding is None or artifact.cache is None:
            raise BadInput(f"{path}: artifacts.{role} has no decoding or no cache, although it writes down speech")
    for part in ("accuracy", "recordings"):
        answers = getattr(content, part)
        if answers is not None:
            _check_words(answers, path, part)


def _check_words(answers: Transcripts, path: Path, part: str) -> None:
    clips, counted = len(answers.references), answers.word_errors
    _check_lengths(answers.roles, clips, f"{path}: {part}.roles")
    if counted is None:
        return
    if len(counted.reference_words) != clips:
        said = f"{len(counted.reference_words)} for {clips} clips"
        raise BadInput(f"{path}: {part}.word_errors.reference_words: {said}")
    for role in answers.roles:
        if role not in counted.roles:
            raise BadInput(f"{path}: missing key '{part}.word_errors.roles.{role}'")
    _check_lengths(counted.roles, clips, f"{path}: {part}.word_errors.roles")


def _check_lengths(roles: Mapping[Role, Any], clips: int, where: str) -> None:
    """Raises BadInput where a list of a role's is not as long as there are clips."""
    for role, answers in roles.items():
        for key, values in vars(answers).items():
            if isinstance(values, list) and len(values) != clips:
                raise BadInput(f"{where}.{role}.{key}: {len(values)} for {clips} clips")


def _check_tags(accuracy: Tags, path: Path) -> None:
    """Raises BadInput where a clip has a label that is none, or the logits are not those of all clips and labels."""
    labels = len(accuracy.labels)
    for clip, numbers in enumerate(accuracy.label_ids):
        if any(not 0 <= number < labels for number in numbers):
            raise BadInput(f"{path}: accuracy.label_ids[{clip}]: a label lies outside 0..{labels - 1}")
    for role, answers in accuracy.roles.items():
        try:
            unpacked(answers.logits_float32, len(accuracy.label_ids), labels)
        except ValueError as error:
            raise BadInput(f"{path}: accuracy.roles.{role}.logits_float32: {error}") from None
