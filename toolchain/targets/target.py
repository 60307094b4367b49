"""A target: one TOML file in `targets/`, found by name, or a user's own by path."""

import os
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from leanear.runtimes.choose import MODULES, PRECISIONS, choose_runtime, graph_forms, graph_precision, offered_runtimes
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import Positive, read
from leanear.runtimes.sessions import MOST_THREADS

TARGETS = Path(__file__).parent
USUAL_FEED_FORWARD_MULTIPLE = 16  # where a file does not say: the float32 values of a 512-bit vector
USUAL_MULTIPLE = 4  # where a file does not say: the float32 values of a 128-bit vector
MOST_MULTIPLE = 256
FORM_COLUMNS = {"tensorrt": 16}  # forms of the graph that fill every width up to multiples of so many columns


def read_toml(path: Path) -> dict[str, Any]:
    """The document in the file.

    Raises:
        BadInput: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else error})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML ({error})") from None


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


@dataclass(frozen=True)
class TargetFile:
    """A target's TOML file, whose keys are those of `Target` but for `measured`; docs/targets.md explains them."""

    description: str
    runtime: str
    graph_form: str
    precision: str
    threads: Positive | Literal["all"]
    query_key_multiple: Positive
    value_output_multiple: Positive
    feed_forward_multiple: Positive
    one_width_per_head: bool
    measured: Literal["here", "device"]
    python: str
    compute_capabilities: tuple[str, ...]
    MAY_LACK: ClassVar[dict[str, Any]] = {
        "query_key_multiple": USUAL_MULTIPLE,
        "value_output_multiple": USUAL_MULTIPLE,
        "feed_forward_multiple": USUAL_FEED_FORWARD_MULTIPLE,
        "one_width_per_head": False,
        "measured": "here",
        "python": "python3",
        "compute_capabilities": (),
    }


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
    file = read(TargetFile, read_toml(path), path)
    _check_file(file, path)
    told = vars(file) | {"name": path.stem, "on_device": file.measured == "device"}
    if file.threads == "all":
        told |= {"threads": len(os.sched_getaffinity(0)), "all_threads": True}
    target = Target(**{key: value for key, value in told.items() if key != "measured"})
    if target.one_width_per_head:
        check_one_width(target, str(path))
    return target


def _check_file(file: TargetFile, path: Path) -> None:
    """Raises BadInput where a value is not offered, or two do not belong together."""
    offers = (("runtime", MODULES), ("graph_form", graph_forms()), ("precision", PRECISIONS))
    for key, offered in offers:
        if getattr(file, key) not in offered:
            told = ", ".join(offered_runtimes() if key == "runtime" else offered)
            raise BadInput(f"{path}: {key} is {getattr(file, key)!r}, expected one of {told}")
    _check_precision(file.precision, file.runtime, f"{path}: precision is {file.precision!r}")
    runtime = choose_runtime(file.runtime)
    if file.graph_form not in ("portable", runtime.FORM):
        raise BadInput(f"{path}: graph_form is {file.graph_form!r}, which is not meant for {file.runtime}")
    limits = [(key, MOST_MULTIPLE) for key in ("query_key_multiple", "value_output_multiple", "feed_forward_multiple")]
    for key, most in (*limits, ("threads", MOST_THREADS)):
        value = getattr(file, key)
        if value != "all" and value > most:
            raise BadInput(f"{path}: {key} is {value}, expected a number from 1 to {most}")
    if not file.python.strip() or file.python.startswith("-"):
        raise BadInput(f"{path}: python is {file.python!r}, not the name or the path of a program")
    if not all(re.fullmatch(r"\d+\.\d", one) for one in file.compute_capabilities):
        raise BadInput(f'{path}: compute_capabilities is not a list such as ["8.6", "12.0"]')
    if bool(file.compute_capabilities) != runtime.AHEAD_OF_TIME:
        ahead = ", ".join(name for name in MODULES if choose_runtime(name).AHEAD_OF_TIME)
        raise BadInput(f"{path}: compute_capabilities belong to the runtime {ahead}, which needs them")


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
