"""A target: one TOML file in `targets/`, found by name, or a user's own by path."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanear.runtimes.choose import MODULES, choose_runtime, graph_forms
from leanear.runtimes.errors import BadInput
from leanear.runtimes.precisions import PRECISIONS, graph_precision

TARGETS = Path(__file__).parent
KEYS = ("description", "runtime", "graph_form", "precision", "threads")
OTHER_KEYS = (
    "query_key_multiple",
    "value_output_multiple",
    "feed_forward_multiple",
    "one_width_per_head",
    "measured",
    "python",
    "compute_capabilities",
)
PLACES = ("here", "device")
MOST_THREADS = 1024
USUAL_FEED_FORWARD_MULTIPLE = 16  # where a file does not say: the float32 values of a 512-bit vector
USUAL_MULTIPLE = 4  # where a file does not say: the float32 values of a 128-bit vector
MOST_MULTIPLE = 256
FORM_COLUMNS = {"tensorrt": 16}  # forms of the graph that fill every width up to multiples of so many columns


@dataclass(frozen=True)
class Target:
    """Where a model is going.

    runtime, graph_form, precision: as `leanear.runtimes.choose` has them; threads: how many, never left
    to the runtime; all_threads: the file says "all", which on a device means the device's. query_key_multiple,
    value_output_multiple: a head's widths are chosen among the multiples of these (and the dense head's width), because
    the widths in between save no time there; feed_forward_multiple: the same of hidden channels. one_width_per_head:
    the two widths of a head are one, because the graph holds them so: what is narrower is filled up. on_device: it is
    measured on a device that is reached over SSH or by hand, never on this machine; python: the device's Python.
    compute_capabilities: of the GPUs that engines are built for on this machine, ahead of time.
    """

    name: str
    description: str
    runtime: str
    graph_form: str
    precision: str
    threads: int
    query_key_multiple: int
    value_output_multiple: int
    all_threads: bool = False
    on_device: bool = False
    python: str = "python3"
    compute_capabilities: tuple[str, ...] = ()
    one_width_per_head: bool = False
    feed_forward_multiple: int = USUAL_FEED_FORWARD_MULTIPLE


def target_names() -> tuple[str, ...]:
    """The names of the targets that leanear brings."""
    return tuple(sorted(path.stem for path in TARGETS.glob("*.toml")))


def read_target(name: str) -> Target:
    """The target called `name`, or the one in the TOML file at that path.

    Raises:
        BadInput: no such target, or its file lacks a key, has an unknown one, or a value that is not offered.
    """
    path = Path(name) if name.endswith(".toml") else TARGETS / f"{name}.toml"
    if not name.endswith(".toml") and name not in target_names():
        raise BadInput(f"unknown target {name!r}; known are {', '.join(target_names())}, or the path of a .toml file")
    settings = {"measured": PLACES[0], "python": "python3", **_settings_in(path)}
    _check_offers(settings, path)
    target = Target(
        name=path.stem,
        description=str(settings["description"]),
        runtime=settings["runtime"],
        graph_form=settings["graph_form"],
        precision=settings["precision"],
        threads=_threads(settings["threads"], path),
        query_key_multiple=_multiple(settings, "query_key_multiple", path),
        value_output_multiple=_multiple(settings, "value_output_multiple", path),
        all_threads=settings["threads"] == "all",
        on_device=settings["measured"] == "device",
        python=_python(settings["python"], path),
        compute_capabilities=_capabilities(settings, path),
        one_width_per_head=_yes_or_no(settings, "one_width_per_head", path),
        feed_forward_multiple=_multiple(
            {"feed_forward_multiple": USUAL_FEED_FORWARD_MULTIPLE, **settings}, "feed_forward_multiple", path
        ),
    )
    if target.one_width_per_head:
        check_one_width(target, str(path))
    return target


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings of a target's file, none of them unknown and none of `KEYS` missing."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else error})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML ({error})") from None
    known = (*KEYS, *OTHER_KEYS)
    for key in settings:
        if key not in known:
            raise BadInput(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
    for key in KEYS:
        if key not in settings:
            raise BadInput(f"{path}: key {key!r} is missing")
    return settings


def _check_offers(settings: dict[str, Any], path: Path) -> None:
    """See that runtime, form, precision and place of measurement are ones that there are, and belong together."""
    offers = {"runtime": tuple(MODULES), "graph_form": graph_forms(), "precision": PRECISIONS, "measured": PLACES}
    for key, offered in offers.items():
        if settings[key] not in offered:
            raise BadInput(f"{path}: {key} = {settings[key]!r} is not one of {', '.join(offered)}")
    _check_precision(settings["precision"], settings["runtime"], f"{path}: precision = {settings['precision']!r}")
    if settings["graph_form"] not in ("portable", choose_runtime(settings["runtime"]).FORM):
        raise BadInput(f"{path}: graph_form = {settings['graph_form']!r} is not meant for {settings['runtime']}")


def check_one_width(target: Target, where: str) -> None:
    """See that the target's multiples are those of one width, and of the form of its graph.

    Raises:
        BadInput: they are not; the text begins with `where`.
    """
    step, other = target.query_key_multiple, target.value_output_multiple
    if step != other:
        raise BadInput(f"{where}: one width per head cannot be of multiples of {step} and of {other}: make them equal")
    columns = FORM_COLUMNS.get(target.graph_form, 1)
    if step % columns:
        raise BadInput(
            f"{where}: one width per head in multiples of {step}: a graph of the form {target.graph_form} fills up to"
            f" multiples of {columns}; choose among these"
        )


def _yes_or_no(settings: dict[str, Any], key: str, path: Path) -> bool:
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise BadInput(f"{path}: {key} = {value!r} is neither true nor false")
    return value


def with_precision(target: Target, precision: str | None) -> Target:
    """The target, computing in `precision` in place of its own where that is not None.

    Raises:
        BadInput: its runtime does not compute in that.
    """
    if precision is None:
        return target
    _check_precision(precision, target.runtime, f"--precision {precision}")
    return replace(target, precision=precision)


def require_timed_form(target: Target, flag: str) -> None:
    """Nothing, where the graphs that would be timed for a goal are those that ship.

    Raises:
        BadInput: the target's have products in float16, which are not timed before a model is exported.
    """
    if target.graph_form == "tensorrt" and graph_precision(target.precision) != "fp32":
        raise BadInput(
            f"{flag}: engines in {target.precision}, the precision of target {target.name}, are not timed before a"
            " model is exported; use --sparsity, --macs or --max-drop"
        )


def _check_precision(precision: str, runtime: str, what: str) -> None:
    offered = choose_runtime(runtime).PRECISIONS
    if precision not in offered:
        raise BadInput(f"{what}: {runtime} computes in {', '.join(offered)}")


def _capabilities(settings: dict[str, Any], path: Path) -> tuple[str, ...]:
    value = settings.get("compute_capabilities", [])
    if not isinstance(value, list) or not all(isinstance(one, str) and re.fullmatch(r"\d+\.\d", one) for one in value):
        raise BadInput(f'{path}: compute_capabilities = {value!r} is not a list such as ["8.6", "12.0"]')
    if bool(value) != choose_runtime(settings["runtime"]).AHEAD_OF_TIME:
        ahead = ", ".join(name for name in MODULES if choose_runtime(name).AHEAD_OF_TIME)
        raise BadInput(f"{path}: compute_capabilities belong to the runtime {ahead}, which needs them")
    return tuple(value)


def _python(value: object, path: Path) -> str:
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise BadInput(f"{path}: python = {value!r} is not the name or the path of a program")
    return value


def _multiple(settings: dict[str, Any], key: str, path: Path) -> int:
    value = settings.get(key, USUAL_MULTIPLE)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_MULTIPLE:
        raise BadInput(f"{path}: {key} = {value!r} is not a number from 1 to {MOST_MULTIPLE}")
    return value


def _threads(value: object, path: Path) -> int:
    if value == "all":
        return len(os.sched_getaffinity(0))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_THREADS:
        raise BadInput(f'{path}: threads = {value!r} is neither "all" nor a number from 1 to {MOST_THREADS}')
    return value
