"""The results file: raw samples and facts, one versioned JSON, read as strictly as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanear.benchmarks.tagging import unpacked
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, write_json
from leanear.runtimes.tasks import SPEECH_TASK, TAGGING_TASK, TASKS

RESULTS_SCHEMA = "leanear-results-3"
ROLES = ("dense", "slim")
STATUSES = ("ok", "not measured", "failed")
PARTS = ("check", "latency", "memory", "accuracy", "sustained")


# Every key of the file, with the type of its value; a dict in braces has exactly these keys, {str: x} any keys.
# "roles" stands for {"dense": x, "slim": x}, from which "dense" may be missing.
NUMBER = (int, float)
OPTIONAL_TEXT = (str, type(None))
OPTIONAL_DICT = (dict, type(None))
ARTIFACT = {
    "folder": str,
    "family": str,
    "task": str,
    "labels": int,
    "vocabulary": (int, type(None)),
    "decoding": OPTIONAL_DICT,
    "cache": OPTIONAL_DICT,
    "graphs": {str: dict},
    "input": dict,
    "model": dict,
    "parity": OPTIONAL_DICT,
    "made_from": dict,
    "manifest_sha256": str,
}
WARM_UP = {"runs": int, "seconds": NUMBER, "settled": bool, "timings_ms": [NUMBER]}
REPEAT = {
    "role": str,
    "repeat": int,
    "status": str,
    "reason": str,
    "log_tail": [str],
    "load_average_before": (*NUMBER, dict),
    "import_ms": NUMBER,
    "load_ms": NUMBER,
    "first_inference_ms": NUMBER,
    "warm_up": WARM_UP,
    "samples_ms": [NUMBER],
    "stages_ms": {str: [NUMBER]},
    "gpu_ms": {str: [NUMBER]},
}
THROTTLING = {"verdict": str, "reasons": [str], "looked_at": [str]}
RECORD = {
    "start_monotonic_s": NUMBER,
    "interval_s": NUMBER,
    "seconds": [NUMBER],
    "series": {str: {str: [(*NUMBER, type(None))]}},
    "sources": {str: {str: str}},
    "not_measured": {str: str},
    "sampling_cpu_s": NUMBER,
}
SENSORS = {**RECORD, "throttling": THROTTLING}
WINDOW = {"n": int, "median_ms": NUMBER, "most_ms": NUMBER}
WORK = {
    "start_monotonic_s": NUMBER,
    "end_monotonic_s": NUMBER,
    "inferences": int,
    "window_s": NUMBER,
    "first": WINDOW,
    "last": WINDOW,
    "median_ms_by_tenth": [NUMBER],
}
LASTING = {
    "work": WORK,
    "idle": dict,
    "energy": dict,
    "energy_per_inference": dict,
    "throttling": THROTTLING,
    "verdict": {"ratio": NUMBER, "text": str},
    "sensors": RECORD,
}
SUSTAINED = {"status": str, "reason": str, "log_tail": [str], "seconds": NUMBER, "roles": {"roles": LASTING}}
ENERGY = {"status": str, "joules": NUMBER, "above_idle_joules": (*NUMBER, dict), "sensor": str}
UNKNOWN = {"status": str, "reason": str}
OPTIONAL_NUMBER, OPTIONAL_INT = (*NUMBER, type(None)), (int, type(None))
CHECK_ROLE = {
    "clips": int,
    "unit": str,
    "bound": NUMBER,
    "error": OPTIONAL_NUMBER,
    "cosine": OPTIONAL_NUMBER,
    "answers": OPTIONAL_INT,
    "changed": OPTIONAL_INT,
    "verdict": str,
    "reason": str,
}
CHECK = {"status": str, "reason": str, "log_tail": [str], "roles": {"roles": CHECK_ROLE}}
LATENCY = {
    "status": str,
    "reason": str,
    "log_tail": [str],
    "settings": {"repeats": int, "samples_wanted": int, "budget_s": NUMBER, "tokens": (int, type(None))},
    "input": {"source": str, "samples": int, "audio_s": NUMBER},
    "order": [str],
    "repeats": [REPEAT],
    "session": {"roles": dict},
    "sensors": SENSORS,
    "front_end_share": {"roles": (*NUMBER, type(None))},
}
MEMORY_ROLE = {
    "rss_interpreter_bytes": int,
    "rss_runtime_imported_bytes": int,
    "rss_loaded_bytes": int,
    "rss_run_bytes": [int],
    "peak_rss_bytes": int,
}
MEMORY = {"status": str, "reason": str, "log_tail": [str], "roles": {"roles": MEMORY_ROLE}}
ACCURACY_ROLE = {"predicted_ids": [int], "cross_entropy_nats": [NUMBER]}
ACCURACY = {
    "status": str,
    "reason": str,
    "log_tail": [str],
    "labels": [str],
    "names": [str],
    "label_ids": [int],
    "roles": {"roles": ACCURACY_ROLE},
    "kl_dense_slim_nats": ([NUMBER], type(None)),
}
TAGS_ROLE = {"logits_float32": str, "cross_entropy_nats": [NUMBER]}
TAGS = {**ACCURACY, "label_ids": [[int]], "roles": {"roles": TAGS_ROLE}}
TRANSCRIPTS_ROLE = {
    "texts": [str],
    "languages": [OPTIONAL_TEXT],
    "tokens": [int],
    "compression_ratios": [NUMBER],
    "seconds": [NUMBER],
    "windows": [int],
    "second_tries": [int],
}
WORD_ERRORS_ROLE = {"substitutions": [int], "deletions": [int], "insertions": [int]}
WORD_ERRORS = {"metric": str, "reference_words": [int], "roles": {"roles": WORD_ERRORS_ROLE}}
TRANSCRIPTS = {
    "status": str,
    "reason": str,
    "log_tail": [str],
    "names": [str],
    "references": [str],
    "audio_s": [NUMBER],
    "decoding": dict,
    "roles": {"roles": TRANSCRIPTS_ROLE},
    "word_errors": (WORD_ERRORS, type(None)),
}
STATE = {
    "load_average_1_min": (*NUMBER, dict),
    "cpu_busy_share": (*NUMBER, dict),
    "memory_available_bytes": (*NUMBER, dict),
    "frequency_khz": (*NUMBER, dict),
    "temperature_c": dict,
}
CLIPS = {"file": str, "sha256": str, "clips": int, "sample_rate_hz": int, "audio_s": NUMBER}
DOCUMENT = {
    "schema": str,
    "tool": {"name": str, "version": str},
    "command": [str],
    "started_utc": str,
    "finished_utc": str,
    "inputs_sha256": str,
    "task": str,
    "runtime": str,
    "options": {"threads": int, "precisions": {"roles": str}, "windows": {"roles": str}},
    "artifacts": {"roles": ARTIFACT},
    "clips": (CLIPS, type(None)),
    "device_name": str,
    "device": dict,
    "device_before": STATE,
    "device_after": STATE,
    "check": CHECK,
    "latency": LATENCY,
    "memory": MEMORY,
    "accuracy": ACCURACY,
    "sustained": SUSTAINED,
    "not_measured": {str: str},
}
SPEECH_DOCUMENT = {**DOCUMENT, "accuracy": TRANSCRIPTS}
TAGGING_DOCUMENT = {**DOCUMENT, "accuracy": TAGS}
LATER_KEYS = {"windows", "second_tries", "check"}  # which older files lack
ONLY_WHEN_OK = {"import_ms", "load_ms", "first_inference_ms", "warm_up", "samples_ms", "stages_ms", "gpu_ms"}


@dataclass(frozen=True)
class Results:
    """A checked results file. document: the whole of it; path: where it lies."""

    path: Path
    document: dict[str, Any]

    @property
    def is_speech(self) -> bool:
        """Whether transcripts were measured, not labels."""
        return bool(self.document["task"] == SPEECH_TASK)

    @property
    def is_tagging(self) -> bool:
        """Whether clips may have several labels, so that the logits of all were kept."""
        return bool(self.document["task"] == TAGGING_TASK)

    @property
    def roles(self) -> tuple[str, ...]:
        """("dense", "slim"), or ("slim",) when one artifact was measured alone."""
        return tuple(role for role in ROLES if role in self.document["artifacts"])

    @property
    def precisions(self) -> dict[str, str]:
        """What each role was measured in, as in `leanear.runtimes.sessions.PRECISIONS`."""
        return {role: self.document["options"]["precisions"][role] for role in self.roles}

    @property
    def windows(self) -> dict[str, str]:
        """The windows that each role's encoder was given, in words; none of classifiers, or where the file is older."""
        return dict(self.document["options"].get("windows", {}))

    def samples_ms(self, role: str) -> list[list[float]]:
        """Steady-state samples of each process that measured `role`, in the order of the repeats."""
        return [repeat["samples_ms"] for repeat in self.repeats(role)]

    def stages_ms(self, role: str, stage: str) -> list[list[float]]:
        """The same of one stage of an inference, where it has stages; empty where the stage was not measured."""
        found = [repeat["stages_ms"].get(stage) for repeat in self.repeats(role)]
        return [samples for samples in found if samples]

    def gpu_ms(self, role: str) -> dict[str, list[float]]:
        """The GPU's own time of all samples of `role` by stage, one process after another; none where none was told."""
        found: dict[str, list[float]] = {}
        for repeat in self.repeats(role):
            for stage, samples in repeat["gpu_ms"].items():
                found.setdefault(stage, []).extend(samples)
        return found

    def repeats(self, role: str) -> list[dict[str, Any]]:
        """The latency processes of `role` that ended well."""
        repeats = self.document["latency"]["repeats"]
        return [repeat for repeat in repeats if repeat["role"] == role and repeat["status"] == "ok"]

    def failures(self) -> dict[str, str]:
        """The reason of each part ("check", "latency", "memory", ...) that failed; empty when none did."""
        parts = [part for part in PARTS if part in self.document]
        return {part: self.document[part]["reason"] for part in parts if self.document[part]["status"] == "failed"}

    @property
    def is_wrong(self) -> bool:
        """Whether an engine was found to answer otherwise than its checkpoint, so that nothing was measured."""
        roles = self.document.get("check", {"roles": {}})["roles"]
        return any(role["verdict"] == "failed" for role in roles.values())


def write_results(path: Path, document: dict[str, Any]) -> Results:
    """The results written to `path`, whole or not at all.

    Raises:
        BadInput: a key is missing, unknown, or of the wrong type.
    """
    _check(document, _schema(document, path), str(path))
    _check_consistency(document, path)
    write_json(path, document)
    return Results(path, document)


def read_results(path: Path) -> Results:
    """The results in `path`.

    Raises:
        BadInput: the file is missing, is not JSON, is of another schema, or a key is missing, unknown or mistyped.
    """
    path = Path(path)
    document = read_json(path, RESULTS_SCHEMA)
    _check(document, _schema(document, path), str(path))
    _check_consistency(document, path)
    return Results(path, document)


def results_files(folder: Path) -> list[Path]:
    """The results files of a deployment folder or a bundle, of all devices; parts of unfinished ones are none."""
    return sorted([*(folder / "results").glob("[!.]*.json"), *(folder / "results").glob("[!.]*/[!.]*.json")])


def _schema(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The schema of the document's task."""
    task = document.get("task")
    if task is not None and task not in TASKS:
        raise BadInput(f"{path}: task: expected one of {', '.join(TASKS)}, found {task!r}")
    return {SPEECH_TASK: SPEECH_DOCUMENT, TAGGING_TASK: TAGGING_DOCUMENT}.get(str(task), DOCUMENT)


def _check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, list):
        _check_list(value, expected[0], where)
    elif isinstance(expected, dict):
        _check_dict(value, expected, where)
    elif isinstance(expected, tuple) and any(isinstance(choice, (list, dict)) for choice in expected):
        if value is not None:
            _check(value, expected[0], where)
    elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise BadInput(f"{where}: expected {_type_name(expected)}, found {type(value).__name__}")


def _check_list(value: Any, expected: Any, where: str) -> None:
    if not isinstance(value, list):
        raise BadInput(f"{where}: expected a list, found {type(value).__name__}")
    for index, item in enumerate(value):
        _check(item, expected, f"{where}[{index}]")


def _check_dict(value: Any, expected: dict[Any, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected an object, found {type(value).__name__}")
    if str in expected:
        expected = dict.fromkeys(value, expected[str])
    elif "roles" in expected and len(expected) == 1:
        expected = {role: expected["roles"] for role in ROLES if role in value}
    optional = ONLY_WHEN_OK if expected is REPEAT and value.get("status") != "ok" else LATER_KEYS
    for key in expected:
        if key not in value and key not in optional:
            raise BadInput(f"{where}: missing key {key!r}")
    for key, item in value.items():
        if key not in expected:
            raise BadInput(f"{where}: unknown key {key!r}")
        _check(item, expected[key], f"{where}: {key}" if ": " not in where else f"{where}.{key}")


def _type_name(expected: Any) -> str:
    choices = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join("null" if choice is type(None) else choice.__name__ for choice in choices)


def _check_consistency(document: dict[str, Any], path: Path) -> None:  # noqa: C901, PLR0912, a key each
    if "slim" not in document["artifacts"]:
        raise BadInput(f"{path}: artifacts: missing key 'slim'")
    for role in document["artifacts"]:
        if role not in document["options"]["precisions"]:
            raise BadInput(f"{path}: options.precisions: missing key {role!r}")
    for part in (part for part in PARTS if part in document):
        status = document[part]["status"]
        if status not in STATUSES:
            raise BadInput(f"{path}: {part}.status: expected one of {', '.join(STATUSES)}, found {status!r}")
        if status != "ok" and not document[part]["reason"]:
            raise BadInput(f"{path}: {part}.reason: empty, though the status is {status!r}")
    for role, lasting in document["sustained"]["roles"].items():
        energy = lasting["energy_per_inference"]
        where = f"{path}: sustained.roles.{role}.energy_per_inference"
        _check(energy, ENERGY if energy.get("status") == "ok" else UNKNOWN, where)
    _check_record(document["latency"]["sensors"], f"{path}: latency.sensors")
    for role in document["artifacts"]:
        for part in ("memory", "accuracy"):
            if document[part]["status"] == "ok" and role not in document[part]["roles"]:
                raise BadInput(f"{path}: {part}.roles: missing key {role!r}, though the status is 'ok'")
        samples = [repeat.get("samples_ms") for repeat in document["latency"]["repeats"] if repeat["role"] == role]
        if document["latency"]["status"] == "ok" and not (samples and all(samples)):
            raise BadInput(f"{path}: latency.repeats: no samples of {role!r}, though the status is 'ok'")
    for index, repeat in enumerate(document["latency"]["repeats"]):
        for stage, gpu in repeat.get("gpu_ms", {}).items():
            if len(gpu) != len(repeat["samples_ms"]):
                where = f"{path}: latency.repeats[{index}].gpu_ms.{stage}"
                raise BadInput(f"{where}: {len(gpu)} for {len(repeat['samples_ms'])} samples")
    _check_answers(document["accuracy"], document["task"] == SPEECH_TASK, path)
    if document["task"] == TAGGING_TASK:
        _check_tags(document["accuracy"], path)


def _check_record(record: dict[str, Any], where: str) -> None:
    """Raises BadInput where a sensor has another number of readings than there are moments, or no source."""
    for kind, readings in record["series"].items():
        for name, values in readings.items():
            if len(values) != len(record["seconds"]):
                raise BadInput(
                    f"{where}.series.{kind}.{name}: {len(values)} values for {len(record['seconds'])} moments"
                )
            if name not in record["sources"].get(kind, {}):
                raise BadInput(f"{where}.sources.{kind}: missing key {name!r}")


def _check_answers(accuracy: dict[str, Any], speech: bool, path: Path) -> None:
    """Raises BadInput where a list of the accuracy part is not as long as there are clips."""
    clips = len(accuracy["references"] if speech else accuracy["label_ids"])
    lists = {
        f"roles.{role}.{key}": values
        for role, answers in accuracy["roles"].items()
        for key, values in answers.items()
        if isinstance(values, list)
    }
    if speech and accuracy["word_errors"] is not None:
        errors = accuracy["word_errors"]
        lists["word_errors.reference_words"] = errors["reference_words"]
        for role in accuracy["roles"]:
            if role not in errors["roles"]:
                raise BadInput(f"{path}: accuracy.word_errors.roles: missing key {role!r}")
            lists.update({f"word_errors.roles.{role}.{key}": counts for key, counts in errors["roles"][role].items()})
    for name, values in lists.items():
        if len(values) != clips:
            raise BadInput(f"{path}: accuracy.{name}: {len(values)} for {clips} clips")


def _check_tags(accuracy: dict[str, Any], path: Path) -> None:
    """Raises BadInput where a clip has a label that is none, or the logits are not those of all clips and labels."""
    labels = len(accuracy["labels"])
    for clip, numbers in enumerate(accuracy["label_ids"]):
        if any(not 0 <= number < labels for number in numbers):
            raise BadInput(f"{path}: accuracy.label_ids[{clip}]: a label lies outside 0..{labels - 1}")
    for role, answers in accuracy["roles"].items():
        try:
            unpacked(answers["logits_float32"], len(accuracy["label_ids"]), labels)
        except ValueError as error:
            raise BadInput(f"{path}: accuracy.roles.{role}.logits_float32: {error}") from None
