"""What the attention blocks of a model cost on this device and runtime, timed through the exporter, as a table.

A block's cost is a sum of parts that a least-squares fit takes from timings of blocks of many widths: one for the
block, one for every further group of heads, one for every head, and ones in proportion to the heads' widths. So the
cost of a plan adds up over its heads, as a search needs it. What the parts leave unexplained is in the table too.

Dimension letters: T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.measure.processes import absolute, part_of, run_fresh
from leanear.benchmarks.measure.rounds import quiet_samples
from leanear.benchmarks.sensors.device import device_facts
from leanear.export.ast.graph import export_ast, patch_size, token_count
from leanear.export.blocks import EXPORTER, KINDS, export_blocks, exported_groups
from leanear.export.onnx.heads import VECTOR_COLUMNS, read_widths
from leanear.families.family import Checkpoint
from leanear.progress import Report, quiet
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.files import read_json, sha256_json, write_json
from leanear.runtimes.process.kept_work import remember_kept
from leanear.runtimes.sessions import SessionOptions
from leanear.targets.target import Target

TABLE_SCHEMA = "leanear-latency-table-1"
TABLE_KEYS = ("key", "rest_ms", "model", "parts", "probes", "others_share")
PROCESSES = 2  # timings of one process can all be off by how its memory happened to be laid out
ROUNDS = 6
SHARE_S = 55.0
STACK_MACS = 5_000_000_000  # of a stack of dense blocks: enough that starting it does not show
FEWEST_COPIES, MOST_COPIES = 4, 12
BUSY_SHARE = 0.1
WORKER = "leanear.benchmarks.measure.rounds"

Widths = Sequence[tuple[int, int]]
"""(K, V) of every kept head of one attention block."""


@dataclass(frozen=True)
class Geometry:
    """All of a dense model's dimensions on which its latency depends; the widths that a plan keeps are not among them.

    clip_samples: a waveform that fills the model's window; patch_values: mel bins times frames of one patch.
    """

    tokens: int
    model_width: int
    heads: int
    head_width: int
    layers: int
    feed_forward_width: int
    frames: int
    mel_bins: int
    patch_values: int
    labels: int
    clip_samples: int


@dataclass(frozen=True)
class Parts:
    """What an attention block's milliseconds are made of.

    block_ms: layer norm, residual and starting; group_ms: every group after the first; cut_ms: every column that is cut
    into groups and joined again; head_ms: every head; query_key_ms, value_output_ms: every column of K or V; vector_ms:
    every column of V filled up to whole vectors.
    """

    block_ms: float
    group_ms: float
    cut_ms: float
    head_ms: float
    query_key_ms: float
    value_output_ms: float
    vector_ms: float


@dataclass(frozen=True)
class Probe:
    """Blocks of some widths as they were timed: the median of one block, its quartiles, and what the parts say."""

    kind: str
    widths: tuple[tuple[int, int], ...]
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    fitted_ms: float


@dataclass(frozen=True)
class ModelTiming:
    """The whole model that was timed in turn with the blocks: the widths of its layers' heads, median and quartiles."""

    sites: tuple[tuple[tuple[int, int], ...], ...]
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of attention blocks on one device, runtime, precision and number of threads.

    rest_ms: all of the model that is not an attention block: front end, patches, MLPs and head; parts: by kind,
    "ordinary" for all layers but the "last", which is computed for the tokens that the classifier reads; others_share:
    of all cores, what other programs used while it was timed.
    """

    geometry: Geometry
    graph_form: str
    rest_ms: float
    parts: dict[str, Parts]
    model: ModelTiming
    probes: tuple[Probe, ...]
    others_share: float
    key: dict[str, Any]

    def head_ms(self, kind: str, query_key_width: int, value_output_width: int) -> float:
        """What one head of these widths adds to a block whose heads are all in one group."""
        group = exported_groups(
            kind,
            [(query_key_width, value_output_width)],
            self.geometry.tokens,
            self.geometry.model_width,
            self.graph_form,
        )[0]
        return _group_ms(self.parts[kind], 1, group.query_key_width, group.value_output_width)

    def block_ms(self, kind: str) -> float:
        """What a block costs apart from its heads."""
        return self.parts[kind].block_ms

    def site_ms(self, kind: str, widths: Widths) -> float:
        """One block with heads of these widths, in the groups and filled up as the exporter does."""
        features = _features(kind, widths, self.geometry, self.graph_form)
        parts = asdict(self.parts[kind])
        return sum(parts[name] * value for name, value in features.items())

    def model_ms(self, sites: Sequence[Widths]) -> float:
        """A whole model with heads of these widths, layer by layer."""
        if len(sites) != self.geometry.layers:
            raise BadInput(f"latency table: widths of {len(sites)} layers for a model of {self.geometry.layers}")
        return self.rest_ms + sum(
            self.site_ms(site_kind(number, len(sites)), widths) for number, widths in enumerate(sites)
        )

    def worst_fit(self) -> float:
        """How far the parts are from the timed blocks at most, as a share of a dense ordinary block."""
        dense_ms = self.site_ms("ordinary", [(self.geometry.head_width,) * 2] * self.geometry.heads)
        return max(abs(probe.fitted_ms - probe.median_ms) for probe in self.probes) / dense_ms


def site_kind(layer: int, layers: int) -> str:
    """The kind of a layer's attention block."""
    return "last" if layer + 1 == layers else "ordinary"


def _group_ms(parts: Parts, heads: int, query_key_width: int, value_output_width: int) -> float:
    return heads * (
        parts.head_ms
        + parts.query_key_ms * query_key_width
        + parts.value_output_ms * value_output_width
        + parts.vector_ms * _whole_vectors(value_output_width)
    )


def _whole_vectors(width: int) -> int:
    return -(-width // VECTOR_COLUMNS) * VECTOR_COLUMNS


def _features(kind: str, widths: Widths, geometry: Geometry, form: str) -> dict[str, int]:
    """How often every one of `Parts` is in a block with heads of these widths."""
    groups = exported_groups(kind, widths, geometry.tokens, geometry.model_width, form)
    query_key = sum(len(group.heads) * group.query_key_width for group in groups)
    value_output = sum(len(group.heads) * group.value_output_width for group in groups)
    return {
        "block_ms": 1,
        "group_ms": len(groups) - 1,
        "cut_ms": 2 * (query_key + value_output) if len(groups) > 1 else 0,
        "head_ms": len(widths),
        "query_key_ms": query_key,
        "value_output_ms": value_output,
        "vector_ms": 0
        if kind == "last"
        else sum(len(group.heads) * _whole_vectors(group.value_output_width) for group in groups),
    }


def fit_parts(kind: str, timed: Sequence[tuple[Widths, float]], geometry: Geometry, form: str) -> Parts:
    """The parts, none of them negative, whose sums are nearest to timed blocks: least squares of relative errors."""
    rows = [_features(kind, widths, geometry, form) for widths, _ in timed]
    names = list(rows[0])
    milliseconds = np.array([ms for _, ms in timed])
    matrix = np.array([[row[name] for name in names] for row in rows], dtype=np.float64) / milliseconds[:, None]
    used = [column for column in range(len(names)) if matrix[:, column].any()]
    while True:
        scale = np.abs(matrix[:, used]).max(axis=0)
        solution = np.linalg.lstsq(matrix[:, used] / scale, np.ones(len(timed)), rcond=None)[0] / scale
        if (solution >= 0).all():
            break
        # A cost below zero is noise: the part that is furthest below, by its share of a block, is not there.
        used.remove(used[int(np.argmin(solution * scale))])
    found = dict.fromkeys(names, 0.0) | {
        names[column]: float(value) for column, value in zip(used, solution, strict=True)
    }
    return Parts(**found)


def candidate_widths(target: Target, head_width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query/key widths and value/output widths to choose among for one head: the target's multiples up to the whole."""

    def multiples(step: int) -> tuple[int, ...]:
        return (*range(step, head_width, step), head_width)

    return multiples(target.query_key_multiple), multiples(target.value_output_multiple)


def tie_widths(table: LatencyTable, kind: str, widths: Widths) -> list[tuple[int, int]]:
    """Widths at least as large in every head, whose block costs no more: what the exporter fills with zeros is kept.

    Of the groups that the exporter makes and of one group of all heads the faster is taken, as the table has it; then
    value widths grow to the whole vector where that is free. No width exceeds the dense head's.
    """
    geometry = table.geometry
    limit = geometry.head_width
    filled = list(widths)
    for group in exported_groups(kind, widths, geometry.tokens, geometry.model_width, table.graph_form):
        for head in group.heads:
            filled[head] = (min(group.query_key_width, limit), min(group.value_output_width, limit))
    most = (max(width for width, _ in filled), max(width for _, width in filled))
    candidates = [filled, [most] * len(filled)]
    candidates += [[(key, min(_whole_vectors(value), limit)) for key, value in each] for each in candidates]
    bound = table.site_ms(kind, widths) * (1 + 1e-9)
    cheap = [each for each in candidates if table.site_ms(kind, each) <= bound] or [list(widths)]
    return max(cheap, key=lambda each: (-round(table.site_ms(kind, each), 6), sum(map(sum, each))))


def read_geometry(checkpoint: Checkpoint) -> Geometry:
    """The dimensions of a loaded checkpoint, dense or slim; a slim one still says how wide its dense heads were."""
    config, extractor = checkpoint.model.config, checkpoint.feature_extractor
    height, length = patch_size(config)
    return Geometry(
        tokens=token_count(config),
        model_width=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        head_width=int(config.hidden_size) // int(config.num_attention_heads),
        layers=int(config.num_hidden_layers),
        feed_forward_width=int(config.intermediate_size),
        frames=int(config.max_length),
        mel_bins=int(config.num_mel_bins),
        patch_values=height * length,
        labels=int(config.num_labels),
        clip_samples=int(config.max_length) * (extractor.sampling_rate // 100),
    )


def cache_folder() -> Path:
    """Where tables are kept: latency/ in $LEANEAR_CACHE, or in leanear/ of the user's cache folder."""
    own = os.environ.get("LEANEAR_CACHE")
    if own:
        return Path(own) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanear" / "latency"


def latency_table(
    checkpoint: Checkpoint,
    target: Target,
    *,
    cache: Path | None = None,
    fresh: bool = False,
    keep_busy: bool = False,
    report: Report = quiet,
) -> LatencyTable:
    """The table of this device for models of the checkpoint's dimensions: from the cache, or timed here (minutes).

    cache: a folder, `cache_folder()` if None. A file there that is damaged, or that was timed on another device,
    runtime, precision or form of the graph, is not used; `fresh` times again in any case. A table that was timed while
    other programs used the CPU is not kept, unless `keep_busy`.

    Raises:
        RuntimeUnavailable: the target's runtime does not work here.
        MeasurementFailed: the timing process ended without an answer.
    """
    geometry = read_geometry(checkpoint)
    key = table_key(geometry, target)
    path = _table_path(key, cache)
    if not fresh and path.is_file():
        try:
            return read_table(path, key)
        except BadInput as error:
            report(f"measuring again: {error}", 0.0)
    table = measure_table(checkpoint, target, geometry, key, report)
    if table.others_share > BUSY_SHARE:
        report(f"other programs used {table.others_share:.0%} of the CPU meanwhile", 1.0)
    if keep_busy or table.others_share <= BUSY_SHARE:
        write_json(path, table_to_json(table))
        remember_kept(path)
    return table


def kept_table(checkpoint: Checkpoint, target: Target, cache: Path | None = None) -> LatencyTable | None:
    """The table that `latency_table` would take from the cache, or None where it would have to time."""
    key = table_key(read_geometry(checkpoint), target)
    try:
        return read_table(_table_path(key, cache), key)
    except BadInput:
        return None


def _table_path(key: dict[str, Any], cache: Path | None) -> Path:
    return (cache or cache_folder()) / f"{key['runtime']}-{sha256_json(key)[:20]}.json"


def table_key(geometry: Geometry, target: Target) -> dict[str, Any]:
    """All that a table depends on; a table is used for nothing else."""
    facts = device_facts()
    return {
        "cpu": facts["cpu"],
        "instructions": facts["instructions"],
        "cores_usable": facts["cores_usable"],
        "runtime": target.runtime,
        "runtime_version": facts["libraries"].get(target.runtime, "none"),
        "precision": target.precision,
        "threads": target.threads,
        "graph_form": target.graph_form,
        "exporter": EXPORTER,
        "geometry": asdict(geometry),
    }


def measure_table(
    checkpoint: Checkpoint, target: Target, geometry: Geometry, key: dict[str, Any], report: Report = quiet
) -> LatencyTable:
    """The table, timed here and now: stacks of blocks and the checkpoint's own model take turns in fresh processes."""
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    probes = [(kind, widths) for kind in KINDS for widths in probe_widths(kind, geometry)]
    copies = stack_copies(geometry)
    sites = model_sites(checkpoint)
    with tempfile.TemporaryDirectory(prefix="leanear-blocks-") as name:
        graphs: list[dict[str, Any]] = []
        for number, (kind, widths) in enumerate(probes):
            report("building blocks", 0.1 * number / len(probes))
            path = Path(name) / f"{number}.onnx"
            export_blocks(kind, widths, geometry.tokens, geometry.model_width, copies, target.graph_form, path)
            graphs.append({"file": absolute(path), "labels": 1, "samples": geometry.model_width})
        path = Path(name) / "model.onnx"
        export_ast(checkpoint.model, checkpoint.feature_extractor, path, target.graph_form)
        graphs.append({"file": absolute(path), "labels": geometry.labels, "samples": geometry.clip_samples})
        samples_ms, others_share = time_in_turn(graphs, target, report)
    block_ms = [np.quantile(samples, [0.25, 0.5, 0.75]) / copies for samples in samples_ms[:-1]]
    parts = {}
    for kind in KINDS:
        timed = [(widths, float(ms[1])) for (of, widths), ms in zip(probes, block_ms, strict=True) if of == kind]
        parts[kind] = fit_parts(kind, timed, geometry, target.graph_form)
    low, middle, high = (float(value) for value in np.quantile(samples_ms[-1], [0.25, 0.5, 0.75]))
    unfinished = LatencyTable(
        geometry=geometry,
        graph_form=target.graph_form,
        rest_ms=0.0,
        parts=parts,
        model=ModelTiming(sites, middle, low, high),
        probes=(),
        others_share=others_share,
        key=key,
    )
    fitted = [
        Probe(kind, tuple(widths), float(ms[1]), float(ms[0]), float(ms[2]), unfinished.site_ms(kind, widths))
        for (kind, widths), ms in zip(probes, block_ms, strict=True)
    ]
    blocks_ms = unfinished.model_ms(sites)
    if blocks_ms >= middle:
        raise MeasurementFailed(
            f"latency table: the attention blocks took {blocks_ms:.2f} ms and the whole model {middle:.2f} ms;"
            " measure again while nothing else runs"
        )
    return replace(unfinished, rest_ms=middle - blocks_ms, probes=tuple(fitted))


def time_in_turn(
    graphs: Sequence[dict[str, Any]], target: Target, report: Report = quiet, share_s: float = SHARE_S
) -> tuple[list[list[float]], float]:
    """Milliseconds of every graph from several processes' rounds, and the share of all cores that others used.

    Samples that other programs disturbed are left out where enough remain; see benchmarks/measure/rounds.py.

    Raises:
        MeasurementFailed: a process ended without an answer.
    """
    request = {
        "graphs": list(graphs),
        "runtime": target.runtime,
        "threads": target.threads,
        "precision": target.precision,
        "rounds": ROUNDS,
        "share_s": share_s,
    }
    samples_ms: list[list[float]] = [[] for _ in graphs]
    others_share: list[list[float]] = [[] for _ in graphs]
    for number in range(PROCESSES):
        start = 0.1 + 0.9 * number / PROCESSES
        outcome = run_fresh(WORKER, request, part_of(report, start, start + 0.9 / PROCESSES, "timing blocks: "))
        if outcome.answer is None:
            raise MeasurementFailed(f"latency table on {target.runtime}: {outcome.reason}")
        for number, samples in enumerate(outcome.answer["samples_ms"]):
            samples_ms[number] += samples
            others_share[number] += outcome.answer["others_share"][number]
    kept = [quiet_samples(samples, shares) for samples, shares in zip(samples_ms, others_share, strict=True)]
    return kept, statistics.median(share for shares in others_share for share in shares)


def stack_copies(geometry: Geometry) -> int:
    """How many blocks are timed at a time."""
    columns = geometry.heads * geometry.head_width
    macs = geometry.tokens * columns * (4 * geometry.model_width + 2 * geometry.tokens)
    return min(max(FEWEST_COPIES, -(-STACK_MACS // macs)), MOST_COPIES)


def probe_widths(kind: str, geometry: Geometry) -> list[list[tuple[int, int]]]:
    """Widths of the blocks that are timed: equal ones, fewer heads, several groups and ragged ones, none twice."""
    heads, full = geometry.heads, geometry.head_width

    def share(eighths: float) -> int:
        return max(1, round(full * eighths / 8))

    def equal(count: int, query_key: float, value_output: float) -> list[tuple[int, int]]:
        return [(share(query_key), share(value_output))] * max(1, count)

    if kind == "last":
        wanted = [
            equal(heads, 8, 8),
            equal(heads, 2, 8),
            equal(heads, 8, 2),
            equal(heads, 2, 2),
            equal(heads // 4, 8, 8),
        ]
    else:
        wanted = [
            equal(heads, 8, 8),
            equal(heads, 6, 8),
            equal(heads, 4, 8),
            equal(heads, 2, 8),
            equal(heads, 8, 6),
            equal(heads, 8, 4),
            equal(heads, 8, 2),
            equal(heads, 4, 4),
            equal(heads, 2, 2),
            equal(heads, 6, 4.5),
            equal(heads, 4, 2.5),
            equal(heads, 3, 6.5),
            equal(heads // 2, 8, 8),
            equal(heads // 4, 8, 8),
            equal(heads // 2, 4, 4),
            equal(heads // 2, 8, 8) + equal(heads - heads // 2, 2, 2),
            equal(heads // 2, 4, 8) + equal(heads - heads // 2, 4, 2),
            *(_ragged(geometry, seed) for seed in range(4)),
        ]
    distinct: list[list[tuple[int, int]]] = []
    for widths in wanted:
        if len(widths) <= heads and widths not in distinct:
            distinct.append(widths)
    return distinct


def _ragged(geometry: Geometry, seed: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, 9, (geometry.heads, 2))
    return [
        (max(1, geometry.head_width * int(key) // 8), max(1, geometry.head_width * int(value) // 8))
        for key, value in steps
    ]


def table_to_json(table: LatencyTable) -> dict[str, Any]:
    """The table as its file holds it."""
    return {
        "schema": TABLE_SCHEMA,
        "key": table.key,
        "rest_ms": table.rest_ms,
        "model": asdict(table.model),
        "parts": {kind: asdict(parts) for kind, parts in table.parts.items()},
        "probes": [asdict(probe) for probe in table.probes],
        "others_share": table.others_share,
    }


def read_table(path: Path, key: dict[str, Any] | None = None) -> LatencyTable:
    """The table in `path`, which must have been timed for `key` where one is given.

    Raises:
        BadInput: the file is missing, malformed, or for something else.
    """
    value = read_json(path, TABLE_SCHEMA, TABLE_KEYS)
    if set(value) != {"schema", *TABLE_KEYS}:
        raise BadInput(f"{path}: unknown key {min(set(value) - {'schema', *TABLE_KEYS})!r}")
    if key is not None and value["key"] != json.loads(json.dumps(key)):
        raise BadInput(f"{path}: key 'key' is another device, runtime or model than asked for")
    try:
        table = LatencyTable(
            geometry=Geometry(**{name: _whole(number) for name, number in value["key"]["geometry"].items()}),
            graph_form=str(value["key"]["graph_form"]),
            rest_ms=_number(value["rest_ms"]),
            parts={kind: Parts(**_all_numbers(value["parts"][kind])) for kind in KINDS},
            model=ModelTiming(
                sites=tuple(_read_widths(site) for site in value["model"].pop("sites")),
                **_all_numbers(value["model"]),
            ),
            probes=tuple(
                Probe(kind=probe.pop("kind"), widths=_read_widths(probe.pop("widths")), **_all_numbers(probe))
                for probe in value["probes"]
            ),
            others_share=_number(value["others_share"]),
            key=value["key"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: malformed table ({error})") from None
    if set(value["parts"]) != set(KINDS) or any(probe.kind not in KINDS for probe in table.probes):
        raise BadInput(f"{path}: a kind of block is not one of {', '.join(KINDS)}")
    return table


def _read_widths(site: Any) -> tuple[tuple[int, int], ...]:
    return tuple((_whole(query_key), _whole(value_output)) for query_key, value_output in site)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def _all_numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is not a number of at least 0")
    return float(value)


def model_sites(checkpoint: Checkpoint) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(K, V) of every head of every layer of a loaded checkpoint."""
    layers = checkpoint.model.audio_spectrogram_transformer.layers
    return tuple(tuple(zip(*read_widths(layer.attention), strict=True)) for layer in layers)
