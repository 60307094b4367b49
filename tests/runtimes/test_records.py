"""Documents are read by the type hints of their dataclasses, and written as they were read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import Count, Positive, as_json, read, write


@dataclass(frozen=True)
class Cage:
    """A part."""

    doors: Count
    size_m: tuple[float, float]


@dataclass(frozen=True)
class Failure:
    """What stands in the place of a number."""

    reason: str


@dataclass(frozen=True)
class Zoo:
    """One field of each kind."""

    name: str
    open: bool
    visitors: Positive
    price: float | None
    weight_kg: float | Failure
    share: Annotated[float, 0]
    kind: Literal["public", "private", 3]
    cages: dict[str, Cage]
    names: tuple[str, ...]
    days: list[list[int]]
    note: Any
    owner: str | None
    founded: int = 0
    MAY_LACK: ClassVar[dict[str, Any]] = {"owner": None, "founded": 1900}
    OMIT_NONE: ClassVar[tuple[str, ...]] = ("owner",)


DOCUMENT = {
    "name": "Tiergärten", "open": True, "visitors": 7, "price": None, "weight_kg": 1, "share": 0.5, "kind": "public",
    "cages": {"lions": {"doors": 0, "size_m": [4.5, 3]}}, "names": ["a", "b"], "days": [[1, 2], []],
    "note": {"any": [None]}, "founded": 1907,
}  # fmt: skip


def test_what_is_read_is_written_byte_by_byte(tmp_path):
    zoo = read(Zoo, DOCUMENT, "zoo")
    assert zoo.cages["lions"] == Cage(0, (4.5, 3))
    assert (zoo.names, zoo.days, zoo.owner) == (("a", "b"), [[1, 2], []], None)
    write(tmp_path / "zoo.json", zoo)
    assert (tmp_path / "zoo.json").read_text() == json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n"
    assert read(Zoo, tmp_path / "zoo.json") == zoo


def test_a_key_that_may_lack_has_what_stands_for_it_and_a_union_is_told_apart():
    older = {key: value for key, value in DOCUMENT.items() if key != "founded"}
    assert read(Zoo, older, "zoo").founded == 1900
    zoo = read(Zoo, {**DOCUMENT, "weight_kg": {"reason": "no scale"}, "owner": "a city"}, "zoo")
    assert zoo.weight_kg == Failure("no scale")
    assert as_json(zoo)["owner"] == "a city"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": 7}, "zoo: name is 7, expected a text"),
        ({"name": None}, "zoo: name is None, expected a text"),
        ({"open": 1}, "zoo: open is 1, expected true or false"),
        ({"visitors": 0}, "zoo: visitors is 0, expected a whole number of at least 1"),
        ({"visitors": True}, "zoo: visitors is True, expected a whole number of at least 1"),
        ({"visitors": 1.0}, "zoo: visitors is 1.0, expected a whole number of at least 1"),
        ({"price": "1"}, "zoo: price is '1', expected a number or null"),
        ({"price": float("nan")}, "zoo: price is nan, expected a number or null"),
        ({"price": 10**400}, "zoo: price is 1000"),
        ({"share": -0.5}, "zoo: share is -0.5, expected a number of at least 0"),
        ({"weight_kg": {}}, "zoo: missing key 'weight_kg.reason'"),
        ({"weight_kg": []}, "zoo: weight_kg is [], expected a number or an object"),
        ({"kind": "secret"}, "zoo: kind is 'secret', expected one of public, private, 3"),
        ({"kind": ["public"]}, "zoo: kind is ['public'], expected one of"),
        ({"cages": []}, "zoo: cages is [], expected an object"),
        ({"cages": {"apes": 7}}, "zoo: cages.apes is 7, expected an object"),
        ({"cages": {"apes": {"doors": 1}}}, "zoo: missing key 'cages.apes.size_m'"),
        ({"cages": {"apes": {"doors": 1, "size_m": [1]}}}, "zoo: cages.apes.size_m is [1], expected a list of 2"),
        ({"cages": {"apes": {"doors": 1, "size_m": [1, "x"]}}}, "zoo: cages.apes.size_m[1] is 'x', expected a number"),
        ({"names": "ab"}, "zoo: names is 'ab', expected a list"),
        ({"days": [[1], [2, None]]}, "zoo: days[1][1] is None, expected a whole number"),
        ({"colour": 1}, "zoo: unknown key 'colour'"),
    ],
)
def test_what_is_wrong_is_named(change, complaint):
    with pytest.raises(BadInput) as caught:
        read(Zoo, {**DOCUMENT, **change}, "zoo")
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_a_file_that_is_no_object_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"^zoo: missing key 'name'$"):
        read(Zoo, {key: value for key, value in DOCUMENT.items() if key != "name"}, "zoo")
    path = tmp_path / "zoo.json"
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"zoo.json: not an object"):
        read(Zoo, path)
    path.write_text('{"name": "a", "name')
    with pytest.raises(BadInput, match=r"zoo.json: not JSON"):
        read(Zoo, path)
