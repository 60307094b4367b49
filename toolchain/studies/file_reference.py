"""docs/files.md: every key of the JSON files that leanear writes, from the dataclasses that read them."""

from __future__ import annotations

import inspect
import types
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from leanear.benchmarks.results import RESULTS_SCHEMA
from leanear.benchmarks.results_document import LabelsDocument, SpeechDocument, TagsDocument
from leanear.plan import DERIVED_KEYS, PLAN_SCHEMA, Plan
from leanear.prune.document import PRUNING_SCHEMA, PruningDocument
from leanear.runtimes.manifest import MANIFEST_SCHEMA, ClassifierManifest, SpeechManifest

PREFACE = """# The files

Made from the dataclasses that read them. Each file is read strictly: a missing key, an unknown one or a value of
another kind ends with a line that names file and key. In Python the same dataclasses are the objects: what is an
array here is a tuple or a list there, `null` is `None`, and a key is an attribute
(`pruning.loss.finished.divergence`). A key in brackets is left out where it is `null`; keys marked "derived" are
written for the reader and counted anew when read. Names that end in `_ms`, `_s`, `_hz`, `_bytes` say the unit.

| file | where | schema | in Python |
| --- | --- | --- | --- |
"""
FILES: tuple[tuple[str, str, str, str, tuple[Any, ...]], ...] = (
    ("plan.json", "a slim checkpoint", PLAN_SCHEMA, "Model.plan", (Plan,)),
    ("pruning.json", "a slim checkpoint", PRUNING_SCHEMA, "Model.pruning", (PruningDocument,)),
    ("manifest.json", "an artifact", MANIFEST_SCHEMA, "Artifact.files.manifest", (ClassifierManifest, SpeechManifest)),
    ("RUNTIME-PRECISION.json", "results/ of a deployment, or what bench --out names", RESULTS_SCHEMA,
     "Measured.results.content", (LabelsDocument, TagsDocument, SpeechDocument)),
)  # fmt: skip
NOTES = {  # of classes whose names say almost all
    "ClipsFacts": "The clips that were answered: clips.npz, its hash, how many and how long.",
    "LatencySettings": "repeats: processes of each role; samples_wanted: of each at most, within `budget_s` in all.",
    "TimedInput": "The clip that latency is measured on.",
    "WarmUp": "Runs before the samples; settled: whether they had become steady.",
    "Throttling": "Whether the device slowed itself down, why that is thought, and which signs were looked at.",
    "RoleMemory": "Resident memory of a fresh process at each stage, after every run, and its peak.",
    "Answers": "Clip by clip: the label, and the cross-entropy with the clip's own.",
    "ErrorCounts": "Words, clip by clip.",
    "Work": "inferences: in all, and their medians by tenths of them; first, last: the first and last `window_s`.",
    "Stretch": "n: how many inferences; their median and the longest.",
    "Trend": "ratio: the median of the last stretch over that of the first.",
    "Check": "Golden clips on the engine that the device made, beside the checkpoint's answers.",
}
DERIVED = {Plan: ("schema", *DERIVED_KEYS)}  # beyond a class's own
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any", type(None): "null"}


def file_reference() -> str:
    """Markdown: a table of the files, and for each its dataclasses in the order in which they are met."""
    rows = [f"| `{file}` | {where} | `{schema}` | `{python}` |" for file, where, schema, python, _ in FILES]
    parts, met = [PREFACE + "\n".join(rows) + "\n"], []
    for file, *_, roots in FILES:
        found = [record for record in _reached(roots) if record not in met]
        met += found
        parts.append(f"## {file}\n\n" + "\n".join(_told(record) for record in found))
    return "\n".join(parts)


def _reached(roots: tuple[Any, ...]) -> list[Any]:
    """The dataclasses of a file, breadth first, what a class is based on before it."""
    found = list(dict.fromkeys(each for root in roots for each in (*_bases(root), root)))
    for record in found:
        hints = get_type_hints(record, include_extras=True)
        inner = [each for field in fields(record) for each in _records_in(hints[field.name])]
        found += [each for each in dict.fromkeys(inner) if each not in found]
    return found


def _bases(record: Any) -> list[Any]:
    return [each for each in record.__bases__ if is_dataclass(each)]


def _records_in(hint: Any) -> list[Any]:
    if is_dataclass(hint):
        return [*_bases(hint), hint]
    return [record for inner in get_args(hint) for record in _records_in(inner)]


def _told(record: Any) -> str:
    hints, omitted = get_type_hints(record, include_extras=True), getattr(record, "OMIT_NONE", ())
    bases = _bases(record)
    said = "" if (record.__doc__ or "").startswith(f"{record.__name__}(") else inspect.getdoc(record)
    of_bases = {each.name for base in bases for each in fields(base)}
    own = [each.name for each in fields(record) if each.name not in of_bases or each.name in record.__annotations__]
    keys = [f"all keys of {base.__name__}" for base in bases]
    keys += [f"{f'[{name}]' if name in omitted else name}: {_kind(hints[name])}" for name in own]
    keys += [f"{name}: derived" for name in (*getattr(record, "DERIVED", ()), *DERIVED.get(record, ()))]
    about = NOTES.get(record.__name__) or said
    text = "\n".join([*([about, ""] if about else []), *keys])
    return f"### {record.__name__}\n\n```\n{text}\n```\n"


def _kind(hint: Any) -> str:
    """A type hint in JSON's words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        least = inner[1]
        return _one_of(least) if isinstance(least, tuple) else f"{_kind(inner[0])}, at least {least}"
    if origin is Literal:
        return _one_of(inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in inner)
    if origin is dict:
        return f"{{{_kind(inner[0])}: {_kind(inner[1])}}}"
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"array of {_kind(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, inner))}]"
    return KINDS.get(hint, getattr(hint, "__name__", str(hint)))


def _one_of(choices: Any) -> str:
    return " or ".join(f'"{each}"' for each in choices)
