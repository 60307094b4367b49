"""Under what circumstances the two sides of a comparison were measured, and why their timings may not be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanear.benchmarks.analysis import disturbance
from leanear.benchmarks.compare.compare_rows import NOISE, NOT_MEASURED, Side, Sides
from leanear.benchmarks.compare.compare_times import control_row, graph_hashes, runtime_version, why_no_control
from leanear.benchmarks.sensors.device import is_measured
from leanear.benchmarks.summary import summarise_latency
from leanear.runtimes.records import as_json

LEAST_PROCESSES = 3
DEVICE_MARKS = ("board", "cpu", "architecture", "cores_usable")


@dataclass(frozen=True)
class Circumstance:
    """Something that bears on the figures, as each side says it; None where it says nothing."""

    name: str
    a: Any
    b: Any

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return bool(self.a == self.b)


def two_devices(sides: Sides) -> tuple[str, ...]:
    """What shows that A and B were measured on two devices; nothing where they may be one, or two of a kind."""
    a, b = (side.content.device for side in sides)
    return tuple(
        f"{mark.replace('_', ' ')}: {a[mark]} and {b[mark]}"
        for mark in DEVICE_MARKS
        if mark in a and mark in b and is_measured(a[mark]) and is_measured(b[mark]) and a[mark] != b[mark]
    )


def doubts(sides: Sides) -> list[str]:
    """Why the timings of a side are not to be trusted."""
    said = []
    for side in sides:
        document, latency = side.content, side.content.latency
        processes = side.results.samples_ms(side.role) if latency.status == "ok" else []
        summaries = [summarise_latency([sample for samples in processes for sample in samples])] if processes else []
        disturbed = disturbance(summaries, document)
        if disturbed:
            said.append(f"{side.name}: {disturbed}")
        if processes and len(processes) < LEAST_PROCESSES:
            said.append(f"{side.name}: {len(processes)} processes are too few to show how much they differ")
        throttled = {"latency was measured": latency.sensors.throttling}
        if side.role in document.sustained.roles:
            throttled["it worked without a pause"] = document.sustained.roles[side.role].throttling
        for when, throttling in throttled.items():
            if throttling.verdict == "throttled":
                reasons = "; ".join(throttling.reasons)
                said.append(f"{side.name}: the device was held back while {when}: {reasons}")
        emulation = document.device.get("emulation")
        if isinstance(emulation, str) and emulation.startswith("yes"):
            said.append(f"{side.name}: emulated ({emulation})")
    return said


def unequal_machine(sides: Sides) -> str:
    """What the dense model, the same file in both runs, says of the machine, where that was not equally fast."""
    if why_no_control(sides):
        return ""
    control = control_row(sides)
    if control.change is None or control.verdict in (NOISE, NOT_MEASURED):
        return ""
    return (
        f"the dense graph, the same in both, took {control.change:.3f}× as long in B as in A "
        f"(95% {control.low:.3f} to {control.high:.3f}): the machine was not equally fast, which --over-dense takes out"
    )


def circumstances(sides: Sides) -> list[Circumstance]:
    a, b = (_own_circumstances(side) for side in sides)
    return [Circumstance(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])]


def _own_circumstances(side: Side) -> dict[str, Any]:
    document, artifact = side.content, side.content.artifacts[side.role]
    model, latency = artifact.model, document.latency
    facts = {name: value for name, value in document.device.items() if name != "libraries"}
    session = latency.session.get(side.role, {})
    found = {
        "device": document.device_name,
        **facts,
        "numpy": document.device.get("libraries", {}).get("numpy"),
        "leanear": document.tool.version,
        "runtime": runtime_version(side, side.role),
        **{f"runtime: {name}": value for name, value in session.items() if name not in ("runtime", "version")},
        "precision": side.results.precisions[side.role],
        "threads": document.options.threads,
        "model": model.get("source"),
        "pruning": model.get("recipe"),
        **{f"made from {name}": value for name, value in artifact.made_from.items()},
        **{f"{name} graph": hashes for name, hashes in graph_hashes(side, side.role).items()},
        "graph form": [graph.form for graph in artifact.graphs.values()],
        "evaluation clips": document.clips and document.clips.sha256,
        "timed input": latency.input.source,
        "throttling": latency.sensors.throttling.verdict,
    }
    if side.results.is_speech:
        counted = document.accuracy.word_errors
        found["word error metric"] = counted and counted.metric
        found["decoding of the model"] = as_json(artifact.decoding)
        found["decoding of the clips"] = document.accuracy.decoding
        found["encoder's window"] = document.options.windows.get(side.role)
        tries = document.accuracy.roles[side.role].second_tries if side.role in document.accuracy.roles else None
        found["windows heard again"] = tries and sum(tries)
    return found
