"""Documents as frozen dataclasses: read strictly by their type hints, and written in the order of their fields.

A hint is `str`, `int`, `float`, `bool`, `Any`, another such dataclass, a `Literal`, `List`, `Dict[str, ...]`, `Tuple`,
`Optional`, a `Union` of what JSON tells apart, or a number with a least value (`Count`). A key that documents of before
did not have is named in the class's MAY_LACK, with what then stands for it; OMIT_NONE names those that are not written
where they are None; DERIVED, properties that are written for the reader and not read. What a device reads has hints for
Python 3.9, which evaluates no `X | Y`.
"""

from __future__ import annotations

import sys
import types
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Dict, Literal, Type, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object, write_json

Record = TypeVar("Record")
Count = Annotated[int, 0]
"""A whole number of at least 0; so is any `Annotated[int, least]` read, and any `Annotated[str, choices]` as one."""
Positive = Annotated[int, 1]
Amount = Annotated[float, 0]
UNIONS = (Union, getattr(types, "UnionType", Union))
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def read(record: Type[Record], source: Union[str, Path, Dict[str, Any]], name: object = None) -> Record:
    """The document of the class `record` in a JSON file, or in an object that was read from what is called `name`.

    Raises:
        BadInput: the file is missing or not JSON; a key is missing or unknown, or its value is not what its hint says:
            the text names the file and the key.
    """
    document = source if isinstance(source, dict) else read_object(Path(source))
    return cast(Record, _read_record(record, document, str(source if name is None else name), ""))


def read_fields(record: Any, values: Dict[str, Any], name: object) -> Dict[str, Any]:
    """Some fields of a document, by name, read as `read` reads them all."""
    return {key: _read_value(_hints(record)[key], value, str(name), key) for key, value in values.items()}


def check(record: Any, name: str) -> None:
    """Raises BadInput, as `read`, where a record that was made otherwise is not what its hints say."""
    kind: Any = type(record)
    for key, hint in _hints(kind).items():
        _read_value(hint, as_json(getattr(record, key)), name, key)


def as_json(value: Any) -> Any:
    """A document, or a part of one, as JSON has it."""
    if is_dataclass(value):
        omitted, names = getattr(value, "OMIT_NONE", ()), (field.name for field in fields(value))
        found = {name: as_json(getattr(value, name)) for name in (*names, *getattr(value, "DERIVED", ()))}
        return {key: item for key, item in found.items() if item is not None or key not in omitted}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def write(path: Path, record: Any) -> None:
    """Write a document to `path`, whole or not at all."""
    write_json(path, as_json(record))


@lru_cache(maxsize=None)
def _hints(record: Any) -> Dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {field.name: hints[field.name] for field in fields(record)}


def _read_record(record: Any, value: Any, name: str, key: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected("an object", value, name, key)
    hints, derived, found = _hints(record), getattr(record, "DERIVED", ()), {}
    may_lack = {**dict.fromkeys(getattr(record, "OMIT_NONE", ())), **getattr(record, "MAY_LACK", {})}
    for inner, hint in hints.items():
        if inner in value:
            found[inner] = _read_value(hint, value[inner], name, f"{key}.{inner}" if key else inner)
        elif inner in may_lack:
            found[inner] = may_lack[inner]
        else:
            raise BadInput(f"{name}: missing key {f'{key}.{inner}' if key else inner!r}")
    for inner in value:
        if inner not in hints and inner not in derived:
            raise BadInput(f"{name}: unknown key {f'{key}.{inner}' if key else inner!r}")
    return record(**found)


def _read_value(hint: Any, value: Any, name: str, key: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _read_record(hint, value, name, key)
    if not _fits(hint, value):
        raise _unexpected(_expected(hint), value, name, key)
    if origin in UNIONS:
        fitting = [choice for choice in inner if _fits(choice, value)]
        return _read_value(
            next(filter(lambda choice: _is_tagged(choice, value), fitting), fitting[0]), value, name, key
        )
    if origin is dict:
        for each in value:
            if not _fits(inner[0], each):
                raise BadInput(f"{name}: unknown key {f'{key}.{each}'!r}")
        return {each: _read_value(inner[1], item, name, f"{key}.{each}") for each, item in value.items()}
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        read_items = (_read_value(inner[0], item, name, f"{key}[{place}]") for place, item in enumerate(value))
        return list(read_items) if origin is list else tuple(read_items)
    if origin is tuple:
        return tuple(_read_value(*pair, name, f"{key}[{place}]") for place, pair in enumerate(zip(inner, value)))
    return value


def _is_tagged(choice: Any, value: Any) -> bool:
    """Whether an object has the literals of a dataclass, by which two in a union are told apart."""
    literals = (
        {}
        if not is_dataclass(choice)
        else {k: h for k, h in _hints(cast(Any, choice)).items() if get_origin(h) is Literal}
    )
    return bool(literals) and all(key in value and _fits(hint, value[key]) for key, hint in literals.items())


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the hint's kind; what is inside it is not looked at."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        return any(_fits(choice, value) for choice in inner)
    if origin is Annotated:
        limit = inner[1]
        return _fits(inner[0], value) and (value in limit if isinstance(limit, tuple) else bool(value >= limit))
    if origin is Literal:
        return any(value == choice and isinstance(value, type(choice)) for choice in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner)
    if origin in (list, tuple):
        return isinstance(value, list)
    if origin is dict or is_dataclass(hint):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))


def _expected(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(_expected(choice) for choice in inner))
    if origin is Annotated:
        limit = inner[1]
        return _one_of(limit) if isinstance(limit, tuple) else f"{_expected(inner[0])} of at least {limit}"
    if origin is Literal:
        return _one_of(inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}"
    if origin in (list, tuple):
        return "a list"
    return NAMES.get(hint, "an object")


def _one_of(choices: Any) -> str:
    return f"one of {', '.join(map(str, choices))}"


def _unexpected(expected: str, value: Any, name: str, key: str) -> BadInput:
    return BadInput(f"{name}: {key or 'the document'} is {repr(value)[:80]}, expected {expected}")
