"""The report's sections on what was kept and how large it is: widths, parameters, arithmetic, memory."""

from __future__ import annotations

from typing import Any

from leanear.benchmarks.analysis import (
    Analysis,
    graph_bytes,
    growth_bytes,
    memory_bytes,
    model_numbers,
    quotient,
    run_bytes,
)
from leanear.benchmarks.formatting import MEGA, PRUNED_PARTS, count, kilobytes, megabytes, precisions_text
from leanear.benchmarks.report.drawing.pictures import WidthCell, picture_ratios, picture_stacks, picture_widths
from leanear.benchmarks.report.headline import comparison_row, macs_name
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table, comparison_table, unmeasured
from leanear.benchmarks.speech_analysis import cache_bytes

KIND_NAMES = {
    "front_end": "audio front end",
    "patches": "patch embedding",
    "projections": "attention projections",
    "attention": "attention scores and sums",
    "mlp": "feed-forward",
    "head": "classifier",
    "convolutions": "convolutions",
    "encoder": "encoder layers",
    "cross_keys_values": "keys and values for the decoder",
    "decoder": "decoder layers",
}
SPEECH_KIND_NAMES = {**KIND_NAMES, "head": "token scores"}
KIND_TITLES = {
    "encoder": "encoder self-attention",
    "decoder": "decoder self-attention",
    "cross": "cross-attention, decoder to encoder",
}
FLAT_BYTES = 1e6


def widths_section(plan: dict[str, Any]) -> Section:
    width = int(plan["dense_head_width"])
    sites = plan["sites"]
    kinds = list(dict.fromkeys(str(site.get("kind", "encoder")) for site in sites))
    groups = [(KIND_TITLES.get(kind, kind) if len(kinds) > 1 else "", _layers(plan, kind)) for kind in kinds]
    named = [(f"{title}, {name}" if title else name, cells) for title, layers in groups for name, cells in layers]
    removed = sum(site["dense_heads"] - len(site["heads"]) for site in sites)
    kept = sum(site["dense_heads"] for site in sites) - removed
    parts = PRUNED_PARTS[plan.get("prune", "attention")]
    sparsity = f"{plan['sparsity']:.1%} of the {parts} blocks' parameters are removed. " if "sparsity" in plan else ""
    heads = f"All {kept} heads are kept" if not removed else f"{kept} heads are kept and {removed} are removed"
    gone = sum(not site["heads"] for site in sites)
    blocks = f" {gone} of {len(sites)} attention blocks are gone: the mean of what they gave is all that stays."
    rows = tuple(
        (
            name,
            f"{sum(cell.kept for cell in cells)} of {len(cells)}",
            ", ".join(str(cell.query_key) if cell.kept else "–" for cell in cells),
            ", ".join(str(cell.value_output) if cell.kept else "–" for cell in cells),
        )
        for name, cells in named
    )
    header = ("layer", "heads kept", "query/key channels, by head", "value/output channels, by head")
    return Section(
        "What was kept",
        (
            Paragraph(
                f"{sparsity}{heads}; a dense head has {width} query/key and {width} value/output channels."
                f"{blocks if gone else ''}"
            ),
            picture_widths(groups, width),
            *_kinds_table(plan),
            Table("Channels kept in every head (– for a removed head)", header, rows, folded=True),
            *_feed_forward_map(plan),
        ),
    )


def _layers(plan: dict[str, Any], kind: str) -> list[tuple[str, list[WidthCell]]]:
    sites = [site for site in plan["sites"] if site.get("kind", "encoder") == kind]
    return [(_layer_name(place, site), _cells(site, int(plan["dense_head_width"]))) for place, site in enumerate(sites)]


def _kinds_table(plan: dict[str, Any]) -> list[Table]:
    """How much of each kind of attention went, where a model has several."""
    by_kind = plan.get("by_kind", {})
    if len(by_kind) < 2:
        return []
    rows = tuple(
        (KIND_TITLES.get(kind, kind), f"{share['dense']:,}", f"{share['kept']:,}", f"{share['sparsity']:.1%}")
        for kind, share in by_kind.items()
    )
    return [Table("Parameters of each kind of attention", ("", "dense", "kept", "removed"), rows)]


def _cells(site: dict[str, Any], dense_width: int) -> list[WidthCell]:
    cells = [WidthCell(False, 0, 0)] * int(site["dense_heads"])
    for head in site["heads"]:
        query_key, value_output = len(head["query_key"]), len(head["value_output"])
        cells[head["head"]] = WidthCell(True, min(query_key, dense_width), min(value_output, dense_width))
    return cells


def _layer_name(place: int, site: dict[str, Any]) -> str:
    digits = [part for part in str(site["name"]).split(".") if part.isdigit()]
    return f"layer {digits[0] if digits else place}"


def _feed_forward_map(plan: dict[str, Any]) -> list[Block]:
    """A bar per feed-forward block, and their widths; nothing where they were left whole."""
    blocks = plan.get("feed_forward", [])
    if not any(len(block["channels"]) < block["dense_width"] for block in blocks):
        return []
    several = len({block["kind"] for block in blocks}) > 1
    named = [(_block_name(block, several), len(block["channels"]), int(block["dense_width"])) for block in blocks]
    kept, dense = sum(channels for _, channels, _ in named), sum(width for _, _, width in named)
    gone = sum(not channels for _, channels, _ in named)
    said = f"Of {dense:,} feed-forward channels {kept:,} are kept."
    if gone:
        said += f" {gone} of {len(named)} feed-forward blocks are gone: the mean of what they gave is all that stays."
    stacks = [
        (name, (("kept", float(channels)), ("removed", float(width - channels)))) for name, channels, width in named
    ]
    rows = tuple((name, f"{channels:,}" if channels else "–", f"{width:,}") for name, channels, width in named)
    return [
        Paragraph(said),
        picture_stacks(stacks, "channels", 1.0, "Feed-forward channels kept, layer by layer"),
        Table("Feed-forward channels kept (– for a removed block)", ("layer", "kept", "dense"), rows, folded=True),
    ]


def _block_name(block: dict[str, Any], several: bool) -> str:
    digits = [part for part in str(block["name"]).split(".") if part.isdigit()]
    return f"{block['kind']} layer {digits[0]}" if several else f"layer {digits[0]}"


def size_section(analysis: Analysis) -> Section:
    rows = [
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row("of them in attention", model_numbers(analysis, "attention_parameters"), count),
        comparison_row(macs_name(analysis), model_numbers(analysis, "macs"), count),
        comparison_row("weights as trained", model_numbers(analysis, "checkpoint_bytes"), megabytes),
        comparison_row("graph file" if analysis.speech is None else "graph files", graph_bytes(analysis), megabytes),
    ]
    blocks: list[Block] = [comparison_table(analysis, "Size and multiply-accumulates (MACs)", rows)]
    if analysis.paired:
        blocks.extend(_promise(analysis))
    stacks = _mac_stacks(analysis)
    if stacks:
        blocks.append(picture_stacks(stacks, "M", MEGA, macs_name(analysis)))
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
    picture = picture_ratios(
        (
            ("promised by MACs", promised, "dense"),
            ("measured (medians)", measured, "dense" if analysis.untrusted else "slim"),
        )
    )
    against = f"the measured time is {promised / measured:.3f}× what the MACs alone would give"
    sentence = {
        "faster": f"MACs promise {promised:.2f}×, and {measured:.2f}× was measured: {against}.",
        "slower": f"MACs promise {promised:.2f}×, but the slim model is slower ({measured:.2f}×): {against}.",
        "no change": f"MACs promise {promised:.2f}×, but there is no speed-up on this runtime and machine: {against}.",
        "not distinguishable": f"MACs promise {promised:.2f}×; {measured:.2f}× was measured, maybe by chance.",
    }[analysis.speed.verdict]
    why = "MACs count multiplications alone; memory traffic, normalisation, softmax and small matrices take time too."
    precisions = analysis.results.precisions
    if precisions["dense"] != precisions["slim"]:
        why += f" They count the same in {precisions['dense']} and in {precisions['slim']}, which take different time."
    return [picture, Paragraph(sentence, "" if analysis.speed.verdict == "faster" else "warning"), Paragraph(why)]


def _mac_stacks(analysis: Analysis) -> list[tuple[str, list[tuple[str, float]]]]:
    stacks: list[tuple[str, list[tuple[str, float]]]] = []
    for role in analysis.results.roles:
        kinds = analysis.content.artifacts[role].model.get("macs_by_kind")
        if not isinstance(kinds, dict) or not kinds:
            return []
        names = KIND_NAMES if analysis.speech is None else SPEECH_KIND_NAMES
        amounts = [(str(names.get(kind, kind)), float(macs)) for kind, macs in kinds.items()]
        stacks.append((analysis.name(role), amounts))
    same = all([kind for kind, _ in stack] == [kind for kind, _ in stacks[0][1]] for _, stack in stacks)
    return stacks if same else []


def memory_section(analysis: Analysis) -> Section:
    memory = analysis.content.memory
    if memory.status != "ok":
        return Section("Memory", unmeasured(memory))
    roles = memory.roles
    before = {role: megabytes(stages.rss_runtime_imported_bytes) for role, stages in roles.items()}
    rows = [
        ("Python, numpy and the runtime, which pruning does not change", before.get("dense", "-"), before["slim"], "-"),
        comparison_row("+ model loaded", memory_bytes(analysis, "rss_loaded_bytes"), megabytes),
    ]
    above: dict[str, float | None] = {
        role: stages.peak_rss_bytes - stages.rss_runtime_imported_bytes for role, stages in roles.items()
    }
    rows.append(comparison_row("+ first inference", run_bytes(analysis, 0), megabytes))
    rows.append(comparison_row("+ last inference", run_bytes(analysis, -1), megabytes))
    rows.append(comparison_row("peak", memory_bytes(analysis, "peak_rss_bytes"), megabytes))
    rows.append(comparison_row("peak above the imported runtime", above, megabytes))
    if analysis.speech is not None:
        rows.append(comparison_row("peak above the graph files", _above_files(analysis), megabytes))
    runs = ", ".join(f"{analysis.name(role)} {len(roles[role].rss_run_bytes)}" for role in analysis.results.roles)
    table = comparison_table(analysis, "Resident memory of one process (RSS, VmHWM)", rows)
    said = Paragraph(f"Measured in a pass of its own, one fresh process per model, over so many inferences: {runs}.")
    stacks = [(analysis.name(role), _memory_stack(vars(stages))) for role, stages in roles.items()]
    picture = picture_stacks(stacks, "MB", MEGA, "Resident memory at its peak")
    blocks: list[Block] = [said, picture, table, *_growth(analysis)]
    if analysis.speech is not None:
        blocks += _cache_blocks(analysis)
    return Section("Memory", tuple(blocks))


def _above_files(analysis: Analysis) -> dict[str, float | None]:
    """What a transcribing process takes beside its weights."""
    peaks, files = memory_bytes(analysis, "peak_rss_bytes"), graph_bytes(analysis)
    found: dict[str, float | None] = {}
    for role, peak in peaks.items():
        size = files[role]
        found[role] = None if peak is None or size is None else peak - size
    return found


def _growth(analysis: Analysis) -> list[Block]:
    """Whether memory stays flat from run to run."""
    said, grows = [], False
    for role, stages in analysis.content.memory.roles.items():
        grown = growth_bytes(stages.rss_run_bytes)
        if grown is not None:
            said.append(f"{analysis.name(role)} {grown / MEGA:+.1f} MB over {len(stages.rss_run_bytes)} inferences")
            grows = grows or grown > FLAT_BYTES
    if not said:
        return []
    verdict = "It grows" if grows else "It is flat"
    return [
        Paragraph(
            f"{verdict}: from the second quarter of the inferences to the last, the median changed by "
            f"{', '.join(said)} (up to {FLAT_BYTES / MEGA:g} MB is called flat).",
            "warning" if grows else "",
        )
    ]


def _cache_blocks(analysis: Analysis) -> list[Block]:
    """What the decoder keeps of a window, by the manifests."""
    sizes = cache_bytes(analysis.results)
    decoding = analysis.content.artifacts["slim"].decoding
    rows = [
        comparison_row("keys and values of one token", sizes["token"], kilobytes),
        comparison_row(f"of all {decoding.positions if decoding else 0} positions", sizes["tokens"], kilobytes),
        comparison_row("cross-attention, once per window", sizes["window"], kilobytes),
        comparison_row("all of it", sizes["all"], kilobytes),
        comparison_row("the same as the graphs hold it, padded", sizes["held"], kilobytes),
    ]
    artifacts = analysis.content.artifacts
    halves = {role: artifacts[role].graphs["decoder"].precision == "fp16" for role in analysis.results.roles}
    kinds = precisions_text({role: "float16" if half else "float32" for role, half in halves.items()})
    kept = ", which bf16 leaves them in" if "bf16" in analysis.results.precisions["slim"] else ""
    said = f"Counted from the manifests' shapes ({kinds}{kept}); graphs fill widths up to what their kernels like."
    return [comparison_table(analysis, "Cache of keys and values for one hypothesis", rows), Paragraph(said)]


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
