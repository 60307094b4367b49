"""Engines that are built on this machine, ahead of time, for GPUs that need not be here."""

from pathlib import Path
from typing import Any

from leanear.benchmarks.formatting import megabytes
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.progress import Narrator
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.backends.engines import (
    BF16,
    ahead_of_time,
    build_engines,
    engine_precision,
    import_library,
    kept_engines,
    unsupported_nodes,
)
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, write_json
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target

ENGINES_FILE, ENGINES_SCHEMA = "engines.json", "leanear-engines-1"
ROLES = ("dense", "slim")


def engines_stage(folder: Path, device: Target, reason: str, narrator: Narrator) -> bool:
    """dense/*.engine and slim/*.engine of a deployment folder, and engines.json; whether one had to be built.

    Every graph is first shown to the library's own ONNX parser, which has to take every node. reason: why none of the
    engines is run on this machine, "" if they are.

    Raises:
        BadInput: a graph has a node that the parser does not take, or a compute capability is not offered.
        RuntimeUnavailable: the library is missing; the text has the command that installs it.
        MeasurementFailed: an engine could not be built.
    """
    version = str(import_library(device.runtime).__version__)
    place = ahead_of_time(device.compute_capabilities)
    built, engines, precisions = False, {}, []
    for role in ROLES:
        artifact = read_artifact(folder / role)
        in_bf16 = (role, device.precision) == ("slim", BF16)  # its graphs do not say so
        options = SessionOptions(threads=device.threads, precision=BF16 if in_bf16 else engine_precision(artifact))
        precisions.append(options.precision)
        kept = kept_engines(device.runtime, artifact, options, place, artifact.folder)
        if kept is None:
            built = True
            wanted = ", ".join(place.capabilities)
            with narrator.step(f"parsing {role} and building its engines for {wanted}") as report:
                for path in artifact.folder.glob("*.engine"):  # of another version, or for other GPUs
                    path.with_suffix(".json").unlink(missing_ok=True)
                    path.unlink()
                for graph in artifact.graphs.values():
                    _require_supported(device.runtime, graph)
                kept = build_engines(device.runtime, artifact, options, place, artifact.folder, report)
        parity = artifact.manifest.parity or {}
        engines[role] = {
            name: {
                **engine.facts,
                "graph_bytes": artifact.manifest.graphs[name].bytes,
                "parity": parity.get("relative_difference"),
            }
            for name, engine in kept.items()
        }
    document = {
        "schema": ENGINES_SCHEMA,
        "library": [device.runtime, version],
        "compute_capabilities": list(device.compute_capabilities),
        "precision": " and ".join(dict.fromkeys(precisions)),
        "execution": {"status": "not measured" if reason else "ok", "reason": reason},
        "engines": engines,
    }
    write_json(folder / ENGINES_FILE, document)
    return built


def read_engines(folder: Path) -> dict[str, Any]:
    """What engines.json of a deployment folder says."""
    return read_json(folder / ENGINES_FILE, ENGINES_SCHEMA, ("library", "execution", "engines"))


def engine_rows(document: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """A row for each engine: name, size, its graph's size and parity, build time, fused attention, layers."""
    rows = []
    for role, engines in document["engines"].items():
        for name, facts in engines.items():
            fused = f"{len(facts['fused_attention'])} of {facts['attention']}"
            kernels = str(sum(facts["layers"].values()))
            parity = "not proved" if facts["parity"] is None else f"{facts['parity']:.1e}"
            sizes = megabytes(facts["bytes"]), megabytes(facts["graph_bytes"])
            rows.append((f"{role} {name}", *sizes, parity, f"{facts['build_s']:.1f} s", fused, kernels))
    return tuple(rows)


def engine_sections(folder: Path) -> tuple[Section, ...]:
    """What a report of a deployment folder says of its engines, nothing where there are none."""
    if not (folder / ENGINES_FILE).is_file():
        return ()
    document = read_engines(folder)
    (name, version), capabilities = document["library"], ", ".join(document["compute_capabilities"])
    blocks: list[Block] = [
        Paragraph(
            f"Built on this machine by {name} {version} for compute capabilities "
            f"{capabilities}, in {document['precision']} as the graphs say it. Its ONNX "
            "parser takes every node of every graph."
        ),
        Table(
            "An attention block is fused where scores, softmax and values are one kernel; the layers are those that "
            "the builder lists. Parity is how far the logits of the graph on ONNX Runtime, which rounds weights to "
            "float16 and computes in float32, are from the checkpoint's, as a share of the largest",
            ("engine", "size", "graph", "parity", "build time", "fused attention", "layers"),
            engine_rows(document),
        ),
    ]
    reason = document["execution"]["reason"]
    if reason:
        said = f"Execution on the machine that built them: not measured ({reason})."
        blocks.append(Paragraph(said, "warning"))
    return (Section("Engines", tuple(blocks)),)


def say_engines(folder: Path, narrator: Narrator) -> None:
    """Print what was built."""
    document = read_engines(folder)
    reason = document["execution"]["reason"]
    for name, size, _, _, seconds, fused, layers in engine_rows(document):
        narrator.say(f"  {name:16} {size:>9}, built in {seconds}; {fused} attention blocks fused, {layers} layers")
    if reason:
        narrator.say(f"  execution: not measured ({reason})")


def _require_supported(library: str, graph: Path) -> None:
    refused = unsupported_nodes(library, graph)
    if refused:
        raise BadInput(f"{graph}: {library}'s parser does not take {', '.join(refused[:5])}")
