"""The report's sections on how it was measured: machine, method, what is missing, and where everything is from."""

from __future__ import annotations

from typing import Any

from leanear.benchmarks.analysis import Analysis
from leanear.benchmarks.formatting import fact_name, fact_text, parity_text, reason_of, runtime_text
from leanear.benchmarks.measure.latency import WARM_UP_RUNS, WARM_UP_S, WARM_UP_SETTLED, WARM_UP_SHARE
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table
from leanear.benchmarks.report.speech_sections import NO_FRONT_END
from leanear.benchmarks.report.state_section import state_missing
from leanear.benchmarks.results import parts
from leanear.benchmarks.sensors.device import is_measured
from leanear.benchmarks.summary import RESAMPLES, SAMPLES_NEEDED, WORD_RESAMPLES, Gate
from leanear.runtimes.process.notes import plural

MAIN_PARTS = ("latency", "memory", "accuracy")
MISSING_TITLE = "What was not measured, and why"


def environment_section(analysis: Analysis) -> Section:
    document = analysis.content
    blocks: list[Block] = []
    if str(document.device.get("virtual_machine")).startswith("yes"):
        said = "This is a virtual machine: neighbours that cannot be seen from inside may have taken time."
        blocks.append(Paragraph(said, "warning"))
    if document.latency.session:
        blocks.append(_session_table(analysis))
    machine, before, after = document.device, vars(document.device_before), vars(document.device_after)
    rows = tuple((fact_name(name), fact_text(name, value)) for name, value in machine.items() if is_measured(value))
    states = tuple(
        (fact_name(name), fact_text(name, before[name]), fact_text(name, after[name]))
        for name in before
        if is_measured(before[name]) or is_measured(after[name])
    )
    blocks += [Table("Machine", ("", ""), rows), Table("Its state", ("", "before", "after"), states)]
    if len(rows) < len(machine) or len(states) < len(before):
        blocks.append(Paragraph(f"What the machine does not tell is named in \u201c{MISSING_TITLE}\u201d."))
    return Section("Environment", tuple(blocks))


def _session_table(analysis: Analysis) -> Table:
    """What the runtime reports of its sessions; a fact that is the same for both is said once."""
    session = analysis.content.latency.session
    rows = []
    for key in dict.fromkeys(key for facts in session.values() for key in facts):
        told = {analysis.name(role): fact_text(key, facts.get(key, "-")) for role, facts in session.items()}
        same = len(set(told.values())) == 1
        text = next(iter(told.values())) if same else "; ".join(f"{name}: {text}" for name, text in told.items())
        rows.append((fact_name(key), text))
    return Table(f"What {runtime_text(analysis.content.runtime)} says that it used", ("", ""), tuple(rows))


def method_section(analysis: Analysis, gate: Gate | None) -> Section:
    latency = analysis.content.latency
    settings, order = latency.settings, latency.order
    needed = ", ".join(f"p{percent} from {count}" for percent, count in SAMPLES_NEEDED.items())
    loss = f"drop of {analysis.metric}" if analysis.speech is None else "rise of the word error rate"
    turns = f", in the order {', '.join(order)}, so that a slow drift of the machine falls on both alike"
    turns = turns if analysis.paired else ""
    said = (
        f"Every measurement has a fresh process. Latency took {plural(len(order), 'turn')}{turns}.",
        "Each process imports the runtime, loads the graph and makes a first inference; it then warms up for at least "
        f"{WARM_UP_RUNS} runs and {WARM_UP_S:g} s, until the medians of its last two groups of five differ by at most "
        f"{WARM_UP_SETTLED:.0%} (or {WARM_UP_SHARE:.0%} of its time is spent), and only after that takes samples.",
        f"{settings.samples_wanted} samples per model were wanted within {settings.budget_s:g} s for all. "
        "Every sample is in the results file; none is discarded.",
        f"Input: {latency.input.source} ({latency.input.samples:,} samples).",
        "A percentile is printed only where there are enough samples for it, by the counts of MLPerf's early stopping: "
        f"{needed}.",
        f"The interval of the speed-up is a bootstrap of {RESAMPLES:,} resamples, over processes and then over samples "
        "within them. A difference under 2% is called no change.",
        _quality_method(analysis),
        f"The gate compares the measured {loss} itself with the limit: PASS at or under it, FAIL above it, "
        "INCONCLUSIVE where it was not measured. Beside it stands whether the whole interval is on that side."
        if gate is not None
        else "No gate was set.",
    )
    return Section("Method", tuple(Paragraph(text) for text in said))


def _quality_method(analysis: Analysis) -> str:
    if analysis.tags is not None:
        return (
            "mAP: every evaluation clip goes through the very artifact that ships, on its runtime. A label's average "
            "precision is the mean, over the clips that have it, of the share of clips scoring as high or higher that "
            "have it too; the mean over labels leaves out those that no clip has. Intervals are a bootstrap over clips,"
            " the same draws for both models where two are compared; that of one model is moved by what draws are "
            "better than the clips themselves."
        )
    if analysis.speech is None:
        return (
            "Accuracy: every evaluation clip goes through the very artifact that ships, on its runtime. One model's "
            "interval is Wilson's; the paired difference of two has Tango's score interval."
        )
    return (
        "Word errors: every evaluation clip is transcribed by the very artifact that ships, on its runtime; transcript "
        "and reference are normalised and compared afterwards. The rate is of all words together, its interval a "
        f"bootstrap of {WORD_RESAMPLES:,} resamples over clips, paired where two models are compared."
    )


def missing_section(analysis: Analysis) -> Section:
    """Everything that was not measured, each thing once; what has the same reason is in one row."""
    document = analysis.content
    failed = [(name, part) for name, part in parts(document) if name in MAIN_PARTS and part.status != "ok"]
    rows = [(name, f"{part.status}: {part.reason}") for name, part in failed]
    rows += [*document.not_measured.items(), *state_missing(document)]
    for facts in (document.device, vars(document.device_after)):
        for name, fact in facts.items():
            if not is_measured(fact) and fact_name(name) not in dict(rows):
                rows.append((fact_name(name), reason_of(fact)))
    if analysis.speech is not None and any(w.front_end_ms is None for w in analysis.speech.windows.values()):
        rows.append(("front end by itself", NO_FRONT_END))
    for role, summary in analysis.latency.items():
        absent = [f"p{percent}" for percent, value in summary.percentiles_ms.items() if value is None]
        if absent:
            rows.append((f"{', '.join(absent)} of {analysis.name(role)}", f"{summary.n} samples are too few"))
    by_reason: dict[str, list[str]] = {}
    for what, why in rows:
        by_reason.setdefault(why, []).append(what)
    grouped = tuple((", ".join(what), why) for why, what in by_reason.items())
    return Section(MISSING_TITLE, (Table("", ("what", "why"), grouped),))


def provenance_section(analysis: Analysis, plan: dict[str, Any] | None, said: dict[str, str]) -> Section:
    document = analysis.content
    rows = [
        ("tool", f"{document.tool.name} {document.tool.version}"),
        ("command", " ".join(document.command) or "called from Python"),
        ("started, finished (UTC)", f"{document.started_utc}, {document.finished_utc}"),
    ]
    for role, artifact in document.artifacts.items():
        name = analysis.name(role)
        for graph_role, graph in artifact.graphs.items():
            named = f"{name} graph" if len(artifact.graphs) == 1 else f"{name} {graph_role} graph"
            rows.append((f"{named}, sha256", graph.sha256))
            rows.append((named, f"form {graph.form}, opset {graph.opset}, nodes {graph.nodes}"))
        rows.append((f"{name} parity with the checkpoint", parity_text(artifact.parity)))
        for key, value in artifact.made_from.items():
            rows.append((f"{name} made from {key}", str(value)))
    if document.clips:
        clips = document.clips
        rows.append(
            (
                "evaluation clips",
                f"{plural(clips.clips, 'clip')}, {clips.audio_s:,.0f} s at {clips.sample_rate_hz:,} Hz",
            )
        )
        rows.append(("evaluation clips, sha256", clips.sha256))
    if plan is not None:
        rows += [
            (f"recipe: {_recipe_name(key)}", "as needed" if value is None else fact_text(key, value))
            for key, value in plan.get("recipe", {}).items()
        ]
    rows += list(said.items())
    return Section("Provenance", (Table("", ("", ""), tuple(rows)),))


def _recipe_name(key: str) -> str:
    """A recipe's key as words. How many clips were used is said elsewhere; the recipe says how many they may be."""
    return "calibration clips, at most" if key == "calibration_clips" else fact_name(key)
