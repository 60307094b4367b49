"""The sections of a report: results turned into tables, pictures and plain sentences, whatever the page's format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

import numpy as np

from benchmarks.analysis import (
    Analysis,
    all_samples,
    analyse,
    correct_answers,
    graph_bytes,
    medians_ms,
    memory_bytes,
    model_numbers,
    quotient,
)
from benchmarks.device import is_measured
from benchmarks.headline import comparison_row, headline_cards, summary_sentences
from benchmarks.latency import WARM_UP_RUNS, WARM_UP_S, WARM_UP_SETTLED, WARM_UP_SHARE
from benchmarks.page import Block, Log, Paragraph, Report, Section, Table
from benchmarks.pictures import (
    WidthCell,
    picture_intervals,
    picture_latency,
    picture_processes,
    picture_ratios,
    picture_stacks,
    picture_widths,
)
from benchmarks.results import Results
from benchmarks.summary import RESAMPLES, SAMPLES_NEEDED, Gate, Interval, judge_gate, wilson_interval
from benchmarks.wording import (
    MEGA,
    count,
    fact_name,
    fact_text,
    median_and_span,
    megabytes,
    parity_text,
    percentile,
    runtime_text,
    signed,
    signed_points,
    threads_text,
)

KIND_NAMES = {
    "front_end": "audio front end",
    "patches": "patch embedding",
    "projections": "attention projections",
    "attention": "attention scores and sums",
    "mlp": "feed-forward",
    "head": "classifier",
}
WORST_LABELS = 6


@dataclass(frozen=True)
class Extra:
    """What a report may say beyond its results.

    title: of the page; torch_accuracy: role to (correct, clips) of the checkpoints in PyTorch on the same clips;
    provenance: name to text; notes: sentences that the reader should see first.
    """

    title: str = ""
    torch_accuracy: dict[str, tuple[int, int]] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def compose_report(results: Results, *, plan: dict[str, Any] | None, max_drop: float | None, extra: Extra) -> Report:
    """The report of a results file; `plan` is the content of plan.json, `max_drop` the gate in accuracy points."""
    analysis = analyse(results)
    gate = None if max_drop is None else _judge(analysis, max_drop)
    makers: list[Callable[[], Section | None]] = [
        lambda: _latency_section(analysis),
        lambda: None if plan is None else _widths_section(plan),
        lambda: _size_section(analysis),
        lambda: _accuracy_section(analysis, extra, gate),
        lambda: _memory_section(analysis),
        lambda: _environment_section(analysis),
        lambda: _method_section(analysis, gate),
        lambda: _missing_section(analysis),
        lambda: _provenance_section(analysis, plan, extra),
    ]
    document = results.document
    source = str(document["artifacts"]["slim"]["model"].get("source") or document["artifacts"]["slim"]["folder"])
    cpu = document["device"].get("cpu")
    machine = cpu if isinstance(cpu, str) else document["device_name"]
    return Report(
        title=extra.title or f"{source} on {runtime_text(document['runtime'])}",
        subtitle=(
            f"{machine}, {threads_text(document['options']['threads'])}, {document['options']['precision']}, "
            f"measured {document['finished_utc'][:10]}"
        ),
        summary=" ".join((*summary_sentences(analysis), *extra.notes)),
        cards=headline_cards(analysis, gate),
        gate=gate,
        sections=tuple(section for section in (make() for make in makers) if section is not None),
    )


def _judge(analysis: Analysis, max_drop: float) -> Gate:
    reason = analysis.document["accuracy"]["reason"]
    if not analysis.paired:
        reason = "there is no dense artifact to compare with"
    return judge_gate(analysis.change.change if analysis.change else None, max_drop, reason)


def _latency_section(analysis: Analysis) -> Section:
    latency = analysis.document["latency"]
    title = "Latency"
    if latency["status"] != "ok":
        return Section(title, _unmeasured(latency))
    flat = {role: np.array(all_samples(analysis.results.samples_ms(role))) for role in analysis.results.roles}
    named = {analysis.name(role): samples for role, samples in flat.items()}
    medians = {analysis.name(role): median for role, median in medians_ms(analysis).items()}
    processes = [
        (analysis.name(repeat["role"]), np.array(repeat["samples_ms"]))
        for repeat in latency["repeats"]
        if repeat["status"] == "ok"
    ]
    audio_s = latency["input"]["audio_s"]
    blocks: list[Block] = [
        Paragraph(
            f"One inference is one synchronous call, from {audio_s:g} s of waveform to the label scores, front end "
            "included, one at a time."
        ),
        *_noise_warning(analysis),
        picture_latency(named, medians),
        _latency_table(analysis, audio_s),
    ]
    if analysis.speed is not None:
        pairs = ", ".join(f"{ratio:.3f}×" for ratio in analysis.speed.per_repeat)
        blocks.append(Paragraph(f"Speed-up within each neighbouring pair of processes: {pairs}."))
    blocks.append(
        Paragraph(
            "Each column below is one fresh process: the dot is its median, the line spans its 10th to 90th percentile."
        )
    )
    blocks.append(picture_processes(processes))
    blocks.append(_cold_table(analysis))
    return Section(title, tuple(blocks))


def _noise_warning(analysis: Analysis) -> list[Block]:
    if not analysis.noisy:
        return []
    said = f"The timings were disturbed: {analysis.noisy}. Read the interval, not the figure alone."
    return [Paragraph(said, "warning")]


def _latency_table(analysis: Analysis, audio_s: float) -> Table:
    rows = []
    for role, summary in analysis.latency.items():
        median = summary.percentiles_ms[50]
        rows.append(
            (
                analysis.name(role),
                f"{summary.n:,}",
                *(f"{value:.2f}" for value in (summary.min_ms, summary.mean_ms, summary.sd_ms)),
                f"{summary.cv:.1%}",
                *(percentile(summary, percent) for percent in SAMPLES_NEEDED),
                "n/a" if median is None else f"{median / 1000 / audio_s:.4f}",
            )
        )
    header = ("", "n", "min", "mean", "sd", "CV", *(f"p{percent}" for percent in SAMPLES_NEEDED), "real-time factor")
    return Table("Steady state, ms (real-time factor: median compute time per second of audio)", header, tuple(rows))


def _cold_table(analysis: Analysis) -> Table:
    rows = []
    for role in analysis.results.roles:
        repeats = analysis.results.repeats(role)
        warm = [repeat["warm_up"] for repeat in repeats]
        settled = sum(one["settled"] for one in warm)
        rows.append(
            (
                analysis.name(role),
                *(
                    median_and_span([repeat[key] for repeat in repeats])
                    for key in ("import_ms", "load_ms", "first_inference_ms")
                ),
                f"{np.median([one['runs'] for one in warm]):g} in {np.median([one['seconds'] for one in warm]):.2f} s",
                f"{settled} of {len(warm)}",
            )
        )
    header = ("", "import of the runtime, ms", "load, ms", "first inference, ms", "warm-up runs (median)", "settled")
    return Table(f"Cold path, median of {len(repeats)} fresh processes (least to most)", header, tuple(rows))


def _widths_section(plan: dict[str, Any]) -> Section:
    width = int(plan["dense_head_width"])
    layers = [(_layer_name(place, site), _cells(site, width)) for place, site in enumerate(plan["sites"])]
    sites = plan["sites"]
    removed = sum(site["dense_heads"] - len(site["heads"]) for site in sites)
    kept = sum(site["dense_heads"] for site in sites) - removed
    sparsity = f"{plan['sparsity']:.1%} of the attention blocks' parameters are removed. " if "sparsity" in plan else ""
    heads = f"All {kept} heads are kept" if not removed else f"{kept} heads are kept and {removed} are removed"
    rows = tuple(
        (
            name,
            f"{sum(cell.kept for cell in cells)} of {len(cells)}",
            ", ".join(str(cell.query_key) if cell.kept else "–" for cell in cells),
            ", ".join(str(cell.value_output) if cell.kept else "–" for cell in cells),
        )
        for name, cells in layers
    )
    header = ("layer", "heads kept", "query/key channels, by head", "value/output channels, by head")
    return Section(
        "What was kept",
        (
            Paragraph(f"{sparsity}{heads}; a dense head has {width} query/key and {width} value/output channels."),
            picture_widths(layers, width),
            Table("Channels kept in every head (– for a removed head)", header, rows, folded=True),
        ),
    )


def _size_section(analysis: Analysis) -> Section:
    rows = [
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row("of them in attention", model_numbers(analysis, "attention_parameters"), count),
        comparison_row("MACs per inference", model_numbers(analysis, "macs"), count),
        comparison_row("weights as trained", model_numbers(analysis, "checkpoint_bytes"), megabytes),
        comparison_row("graph file", graph_bytes(analysis), megabytes),
    ]
    blocks: list[Block] = [_comparison(analysis, "Size and multiply-accumulates (MACs)", rows)]
    if analysis.paired:
        blocks.extend(_promise(analysis))
    stacks = _mac_stacks(analysis)
    if stacks:
        blocks.append(picture_stacks(stacks, "M", MEGA, "MACs per inference"))
    return Section("Size and arithmetic", tuple(blocks))


def _promise(analysis: Analysis) -> list[Block]:
    macs = model_numbers(analysis, "macs")
    promised = quotient(macs["dense"], macs["slim"])
    if promised is None:
        return [Paragraph("The manifests do not say how many MACs the models have, so no speed-up can be promised.")]
    if analysis.speed is None:
        return [
            Paragraph(f"Fewer MACs promise a speed-up of {promised:.2f}×; no latency was measured to hold against it.")
        ]
    measured = analysis.speed.ratio.estimate
    picture = picture_ratios((("promised by MACs", promised, "promised"), ("measured (medians)", measured, "measured")))
    against = f"the measured time is {promised / measured:.3f}× what the MACs alone would give"
    sentence = {
        "faster": f"MACs promise {promised:.2f}×, and {measured:.2f}× was measured: {against}.",
        "slower": f"MACs promise {promised:.2f}×, but the slim model is slower ({measured:.2f}×): {against}.",
        "no change": f"MACs promise {promised:.2f}×, but there is no speed-up on this runtime and machine: {against}.",
        "not distinguishable": f"MACs promise {promised:.2f}×; the {measured:.2f}× measured is within the noise.",
    }[analysis.speed.verdict]
    why = "MACs count multiplications alone; memory traffic, normalisation, softmax and small matrices take time too."
    return [picture, Paragraph(sentence, "" if analysis.speed.verdict == "faster" else "warning"), Paragraph(why)]


def _mac_stacks(analysis: Analysis) -> list[tuple[str, list[tuple[str, float]]]]:
    stacks: list[tuple[str, list[tuple[str, float]]]] = []
    for role in analysis.results.roles:
        kinds = analysis.document["artifacts"][role]["model"].get("macs_by_kind")
        if not isinstance(kinds, dict) or not kinds:
            return []
        amounts = [(str(KIND_NAMES.get(kind, kind)), float(macs)) for kind, macs in kinds.items()]
        stacks.append((analysis.name(role), amounts))
    same = all([kind for kind, _ in stack] == [kind for kind, _ in stacks[0][1]] for _, stack in stacks)
    return stacks if same else []


def _accuracy_section(analysis: Analysis, extra: Extra, gate: Gate | None) -> Section:
    accuracy, document = analysis.document["accuracy"], analysis.document
    if accuracy["status"] != "ok":
        return Section("Accuracy", _unmeasured(accuracy))
    runtime = runtime_text(document["runtime"])
    torch = {role: wilson_interval(*extra.torch_accuracy[role]) for role in extra.torch_accuracy}
    rows: list[tuple[str, str, Interval, tuple[int, int], float | None]] = [
        (f"{role} checkpoint, PyTorch", role, torch[role], extra.torch_accuracy[role], None)
        for role in ("dense", "slim")
        if role in torch
    ]
    for role in analysis.results.roles:
        right = correct_answers(accuracy["roles"][role]["predicted_ids"], accuracy["label_ids"])
        entropy = float(np.mean(accuracy["roles"][role]["cross_entropy_nats"]))
        counts = (right, len(accuracy["label_ids"]))
        rows.append((f"{analysis.name(role)} artifact, {runtime}", role, analysis.accuracy[role], counts, entropy))
    table = tuple(
        (
            name,
            f"{counts[0]:,} of {counts[1]:,}",
            f"{share.estimate:.2%}",
            f"{share.low:.2%} to {share.high:.2%}",
            "not measured" if entropy is None else f"{entropy:.4f}",
        )
        for name, _, share, counts, entropy in rows
    )
    header = ("", "right", "accuracy", "95% interval (Wilson)", "cross-entropy, nats")
    picture_rows = [
        (name, role, 100 * share.estimate, 100 * share.low, 100 * share.high) for name, role, share, *_ in rows
    ]
    blocks: list[Block] = []
    if gate is not None:
        blocks.append(
            Paragraph(f"Gate: {gate.verdict}. {gate.sentence[0].upper()}{gate.sentence[1:]}.", _gate_tone(gate))
        )
    blocks += [
        picture_intervals(picture_rows, "% of the clips"),
        Table(f"The artifact that ships, on {runtime}", header, table),
    ]
    if analysis.change is not None:
        blocks.append(_change_table(analysis))
        worst = _label_table(analysis)
        if worst is not None:
            blocks.append(worst)
    return Section("Accuracy", tuple(blocks))


def _gate_tone(gate: Gate) -> str:
    return "" if gate.verdict == "PASS" else "warning"


def _change_table(analysis: Analysis) -> Table:
    change = analysis.change
    assert change is not None
    difference = change.change
    kl = analysis.document["accuracy"]["kl_dense_slim_nats"]
    rows = [
        (
            "accuracy, slim minus dense",
            f"{signed_points(difference.estimate)} (95% {signed(difference.low)} to {signed(difference.high)})",
        ),
        ("clips that only dense gets right", f"{change.only_dense_right:,}"),
        ("clips that only slim gets right", f"{change.only_slim_right:,}"),
        ("McNemar's exact test, two-sided p", f"{change.p_value:.3g}"),
        ("clips with the same answer", f"{change.agreement:.2%}"),
        ("mean KL(dense ‖ slim)", "not measured" if kl is None else f"{float(np.mean(kl)):.4f} nats"),
    ]
    return Table("Slim against dense, clip by clip", ("", ""), tuple(rows))


def _label_table(analysis: Analysis) -> Table | None:
    """The labels that lost the most, so that an average hides nobody."""
    accuracy = analysis.document["accuracy"]
    truth = np.array(accuracy["label_ids"])
    right = {role: np.array(accuracy["roles"][role]["predicted_ids"]) == truth for role in ("dense", "slim")}
    lost = []
    for label in np.unique(truth):
        chosen = truth == label
        dense, slim = int(right["dense"][chosen].sum()), int(right["slim"][chosen].sum())
        lost.append((slim - dense, accuracy["labels"][label], int(chosen.sum()), dense, slim))
    worst = [entry for entry in sorted(lost) if entry[0] < 0][:WORST_LABELS]
    if not worst:
        return None
    rows = tuple(
        (name, str(clips), str(dense), str(slim), f"{change:+d}") for change, name, clips, dense, slim in worst
    )
    return Table(
        "Labels that lost the most",
        ("label", "clips", "dense right", "slim right", "change"),
        rows,
        folded=len(lost) > 2,
    )


def _memory_section(analysis: Analysis) -> Section:
    memory = analysis.document["memory"]
    if memory["status"] != "ok":
        return Section("Memory", _unmeasured(memory))
    names = (
        ("Python and numpy alone", "rss_interpreter_bytes"),
        ("+ runtime imported", "rss_runtime_imported_bytes"),
        ("+ model loaded", "rss_loaded_bytes"),
        ("+ first inference", "rss_first_run_bytes"),
        ("+ last inference", "rss_last_run_bytes"),
        ("peak", "peak_rss_bytes"),
    )
    roles = memory["roles"]
    rows = [comparison_row(name, memory_bytes(analysis, key), megabytes) for name, key in names]
    above: dict[str, float | None] = {
        role: stages["peak_rss_bytes"] - stages["rss_runtime_imported_bytes"] for role, stages in roles.items()
    }
    rows.append(comparison_row("peak above the imported runtime", above, megabytes))
    runs = ", ".join(f"{analysis.name(role)} {roles[role]['runs']}" for role in analysis.results.roles)
    table = _comparison(analysis, "Resident memory of one process (RSS, VmHWM)", rows)
    said = Paragraph(f"Measured in a pass of its own, one fresh process per model, over so many inferences: {runs}.")
    stacks = [(analysis.name(role), _memory_stack(stages)) for role, stages in roles.items()]
    return Section("Memory", (said, picture_stacks(stacks, "MB", MEGA, "Resident memory at its peak"), table))


def _memory_stack(stages: dict[str, int]) -> list[tuple[str, float]]:
    """The peak, split by the stage in which memory was taken; a stage that gave memory back counts as 0."""
    reached, stack = 0, []
    for name, key in (
        ("Python and numpy", "rss_interpreter_bytes"),
        ("runtime", "rss_runtime_imported_bytes"),
        ("model", "rss_loaded_bytes"),
        ("inference, peak", "peak_rss_bytes"),
    ):
        stack.append((name, float(max(stages[key] - reached, 0))))
        reached = max(reached, stages[key])
    return stack


def _environment_section(analysis: Analysis) -> Section:
    document = analysis.document
    blocks: list[Block] = []
    if str(document["device"].get("virtual_machine")).startswith("yes"):
        said = "This is a virtual machine: neighbours that cannot be seen from inside may have taken time."
        blocks.append(Paragraph(said, "warning"))
    if document["latency"]["session"]:
        blocks.append(_session_table(analysis))
    rows = tuple((fact_name(name), fact_text(name, value)) for name, value in document["device"].items())
    before, after = document["device_before"], document["device_after"]
    states = tuple((fact_name(name), fact_text(name, before[name]), fact_text(name, after[name])) for name in before)
    blocks += [Table("Machine", ("", ""), rows), Table("Its state", ("", "before", "after"), states)]
    return Section("Environment", tuple(blocks))


def _session_table(analysis: Analysis) -> Table:
    """What the runtime reports of its sessions; a fact that is the same for both is said once."""
    session: dict[str, dict[str, Any]] = analysis.document["latency"]["session"]
    rows = []
    for key in dict.fromkeys(key for facts in session.values() for key in facts):
        told = {analysis.name(role): fact_text(key, facts.get(key, "-")) for role, facts in session.items()}
        same = len(set(told.values())) == 1
        text = next(iter(told.values())) if same else "; ".join(f"{name}: {text}" for name, text in told.items())
        rows.append((fact_name(key), text))
    return Table(f"What {runtime_text(analysis.document['runtime'])} says that it used", ("", ""), tuple(rows))


def _method_section(analysis: Analysis, gate: Gate | None) -> Section:
    latency = analysis.document["latency"]
    settings, order = latency["settings"], latency["order"]
    needed = ", ".join(f"p{percent} from {count}" for percent, count in SAMPLES_NEEDED.items())
    turns = ", so that a slow drift of the machine falls on both alike" if analysis.paired else ""
    said = (
        f"Every measurement has a fresh process. Latency took {len(order)}, in the order {', '.join(order)}{turns}.",
        "Each process imports the runtime, loads the graph and makes a first inference; it then warms up for at least "
        f"{WARM_UP_RUNS} runs and {WARM_UP_S:g} s, until the medians of its last two groups of five differ by at most "
        f"{WARM_UP_SETTLED:.0%} (or {WARM_UP_SHARE:.0%} of its time is spent), and only after that takes samples.",
        f"{settings['samples_wanted']} samples per model were wanted within {settings['budget_s']:g} s for all. "
        "Every sample is in the results file; none is discarded.",
        f"Input: {latency['input']['source']} ({latency['input']['samples']:,} samples).",
        "A percentile is printed only where there are enough samples for it, by the counts of MLPerf's early stopping: "
        f"{needed}.",
        f"The interval of the speed-up is a bootstrap of {RESAMPLES:,} resamples, over processes and then over samples "
        "within them. A difference under 2% is called no change.",
        "Accuracy: every evaluation clip goes through the very artifact that ships, on its runtime. One model's "
        "interval is Wilson's; the difference of two is a bootstrap over clips.",
        "The gate compares the measured drop itself with the limit: PASS at or under it, FAIL above it, INCONCLUSIVE "
        "where accuracy was not measured. The interval is shown beside it."
        if gate is not None
        else "No accuracy gate was set.",
    )
    return Section("Method", tuple(Paragraph(text) for text in said))


def _missing_section(analysis: Analysis) -> Section:
    document = analysis.document
    parts = [part for part in ("latency", "memory", "accuracy") if document[part]["status"] != "ok"]
    rows = [(part, f"{document[part]['status']}: {document[part]['reason']}") for part in parts]
    rows += list(document["not_measured"].items())
    for facts in (document["device"], document["device_after"]):
        rows += [(fact_name(name), fact["reason"]) for name, fact in facts.items() if not is_measured(fact)]
    for role, summary in analysis.latency.items():
        absent = [f"p{percent}" for percent, value in summary.percentiles_ms.items() if value is None]
        if absent:
            rows.append((f"{', '.join(absent)} of {analysis.name(role)}", f"{summary.n} samples are too few"))
    return Section("What was not measured, and why", (Table("", ("what", "why"), tuple(rows)),))


def _provenance_section(analysis: Analysis, plan: dict[str, Any] | None, extra: Extra) -> Section:
    document = analysis.document
    rows = [
        ("tool", f"{document['tool']['name']} {document['tool']['version']}"),
        ("command", " ".join(document["command"]) or "called from Python"),
        ("started, finished (UTC)", f"{document['started_utc']}, {document['finished_utc']}"),
    ]
    for role, artifact in document["artifacts"].items():
        name = analysis.name(role)
        for graph_role, graph in artifact["graphs"].items():
            named = f"{name} graph" if len(artifact["graphs"]) == 1 else f"{name} {graph_role} graph"
            rows.append((f"{named}, sha256", str(graph.get("sha256", "-"))))
            described = ", ".join(f"{key} {graph[key]}" for key in ("form", "opset", "nodes") if key in graph)
            rows.append((named, described or "-"))
        rows.append((f"{name} parity with the checkpoint", parity_text(artifact["parity"])))
        for key, value in artifact["made_from"].items():
            rows.append((f"{name} made from {key}", str(value)))
    if document["clips"]:
        clips = document["clips"]
        rows.append(
            (
                "evaluation clips",
                f"{clips['clips']:,} clips, {clips['audio_s']:,.0f} s at {clips['sample_rate_hz']:,} Hz",
            )
        )
        rows.append(("evaluation clips, sha256", clips["sha256"]))
    if plan is not None:
        rows += [(f"recipe: {fact_name(key)}", fact_text(key, value)) for key, value in plan.get("recipe", {}).items()]
    rows += list(extra.provenance.items())
    return Section("Provenance", (Table("", ("", ""), tuple(rows)),))


def _unmeasured(part: dict[str, Any]) -> tuple[Block, ...]:
    said = f"{part['status'].capitalize()}: {part['reason']}."
    blocks: list[Block] = [Paragraph(said, "warning")]
    if part["log_tail"]:
        blocks.append(Log("\n".join(part["log_tail"])))
    return tuple(blocks)


def _cells(site: dict[str, Any], dense_width: int) -> list[WidthCell]:
    cells = [WidthCell(False, 0, 0)] * int(site["dense_heads"])
    for head in site["heads"]:
        query_key, value_output = len(head["query_key"]), len(head["value_output"])
        cells[head["head"]] = WidthCell(True, min(query_key, dense_width), min(value_output, dense_width))
    return cells


def _layer_name(place: int, site: dict[str, Any]) -> str:
    digits = [part for part in str(site["name"]).split(".") if part.isdigit()]
    return f"layer {digits[0] if digits else place}"


def _comparison(analysis: Analysis, caption: str, rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """The rows of `_pair_row` as a table, or its one column of values where there is nothing to compare with."""
    if analysis.paired:
        return Table(caption, ("", "dense", "slim", "slim ÷ dense"), tuple(rows))
    return Table(caption, ("", "model"), tuple((row[0], row[2]) for row in rows))
