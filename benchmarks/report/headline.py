"""The first things a reader sees: a few figures, and the same in plain sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

from leanear.benchmarks.analysis import (
    Analysis,
    analyse,
    graph_bytes,
    medians_ms,
    memory_bytes,
    model_numbers,
    quotient,
)
from leanear.benchmarks.formatting import (
    WORD_ERROR_RATE,
    count,
    factor,
    kilobytes,
    megabytes,
    milliseconds,
    per_second,
    rate_between,
    signed,
)
from leanear.benchmarks.report.page import Card
from leanear.benchmarks.results import Results
from leanear.benchmarks.speech_analysis import SpeechAnalysis, cache_bytes
from leanear.benchmarks.summary import Interval
from leanear.benchmarks.tagging import MEAN_AP
from leanear.benchmarks.verdict import DECIDABLE_POINTS, Verdict, loss_text, points_moved, quality_verdict
from leanear.runtimes.process.notes import plural

ROLES = ("dense", "slim")
RECORDINGS = "clips joined to long recordings"
ERROR_KINDS = "words substituted / deleted / inserted"
COUNTED_FLOOR = 0.005  # less would be shown as 0%
MEMORY_FLOOR = 0.02  # one measurement each, so less than this is no difference


def headline_text(results: Results, max_drop: float | None = None) -> str:
    """The short table for a terminal, of one column where there is nothing to compare with, and the verdict below it.

    max_drop: the gate in points, if any.
    """
    analysis = analyse(results)
    rows: list[tuple[str, ...]] = [("", *ROLES, "change"), *headline_rows(analysis)]
    if not analysis.paired:
        rows = [("", "model"), *((name, slim) for name, _, slim, _ in rows[1:])]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows)
    return "\n".join((*lines, headline_verdict(analysis, max_drop).text))


def headline_rows(analysis: Analysis) -> tuple[tuple[str, str, str, str], ...]:
    """A short table: what, dense, slim, change; "not measured" where a part is missing."""
    if analysis.speech is not None:
        return _speech_rows(analysis, analysis.speech)
    shares = analysis.qualities
    dense, slim = (f"{shares[role].estimate:.2%}" if role in shares else "not measured" for role in ROLES)
    return (
        *_precision_row(analysis),
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row("MACs per inference", model_numbers(analysis, "macs"), count),
        comparison_row("graph file", graph_bytes(analysis), megabytes),
        _time_row("median latency", analysis),
        comparison_row("peak memory", memory_bytes(analysis, "peak_rss_bytes"), megabytes),
        (analysis.metric, dense, slim, _lost(analysis)),
    )


def _speech_rows(analysis: Analysis, speech: SpeechAnalysis) -> tuple[tuple[str, str, str, str], ...]:
    tokens = analysis.content.latency.settings.tokens
    windows, rates, counts, rtf = speech.windows, speech.rates, speech.counts, analysis.real_time_factors
    transcribed = "not counted" if analysis.content.accuracy.roles else "not measured"
    dense, slim = (f"{rates[role].estimate:.2%}" if role in rates else transcribed for role in ROLES)
    kinds = {role: counts[role].by_kind if role in counts else transcribed for role in ROLES}
    return (
        *_precision_row(analysis),
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row(macs_name(analysis), model_numbers(analysis, "macs"), count),
        comparison_row("graph files", graph_bytes(analysis), megabytes),
        comparison_row("cache of keys and values", cache_bytes(analysis.results)["all"], kilobytes),
        _time_row(f"window, {tokens} tokens", analysis),
        comparison_row("of it, encoder", {role: each.encoder_ms for role, each in windows.items()}, milliseconds),
        comparison_row("each token", {role: each.per_token_ms for role, each in windows.items()}, milliseconds),
        comparison_row(f"real-time factor (RTF), {rtf_of(analysis)}", rtf, factor),
        comparison_row("RTFx, its inverse", {role: quotient(1.0, each) for role, each in rtf.items()}, per_second),
        comparison_row("peak memory", memory_bytes(analysis, "peak_rss_bytes"), megabytes),
        (WORD_ERROR_RATE, dense, slim, _lost(analysis)),
        (ERROR_KINDS, kinds["dense"], kinds["slim"], "-"),
        *_recordings_row(speech),
    )


def _recordings_row(speech: SpeechAnalysis) -> tuple[tuple[str, str, str, str], ...]:
    if speech.recordings is None or not speech.recordings.rates:
        return ()
    rates, change = speech.recordings.rates, speech.recordings.change
    dense, slim = (f"{rates[role].estimate:.2%}" if role in rates else "not measured" for role in ROLES)
    lost = "-" if change is None else points_moved(change.change.estimate)
    return ((f"{WORD_ERROR_RATE}, {RECORDINGS}", dense, slim, lost),)


def rtf_of(analysis: Analysis) -> str:
    """Of what audio the real-time factor is."""
    return "evaluation clips" if analysis.speech is not None and analysis.speech.counts else "one full window"


def _lost(analysis: Analysis) -> str:
    return "-" if analysis.loss is None else points_moved(analysis.loss.estimate)


def _time_row(name: str, analysis: Analysis) -> tuple[str, str, str, str]:
    return (*comparison_row(_timed(name, analysis), medians_ms(analysis), milliseconds)[:3], time_change(analysis))


def time_change(analysis: Analysis) -> str:
    """Slim's median over dense's, with what makes it doubtful."""
    medians = medians_ms(analysis)
    ratio = quotient(medians.get("slim"), medians.get("dense"))
    if ratio is None or analysis.speed is None:
        return "-"
    undecided = analysis.speed.verdict == "not distinguishable"
    return f"{ratio:.3f}×{', not trusted' if analysis.untrusted else ', within the noise' if undecided else ''}"


def _timed(name: str, analysis: Analysis) -> str:
    """The name of a time; a time on an emulated device is called one."""
    return f"{name} (emulated)" if analysis.emulated else name


def _precision_row(analysis: Analysis) -> tuple[tuple[str, str, str, str], ...]:
    """In what each was measured, where that is not float32 for all."""
    precisions = analysis.results.precisions
    if set(precisions.values()) == {"fp32"}:
        return ()
    return (("precision", precisions.get("dense", "not measured"), precisions["slim"], "-"),)


def macs_name(analysis: Analysis) -> str:
    """What MACs are counted of: an inference, or a window of speech and so many tokens."""
    tokens = model_numbers(analysis, "macs_tokens")["slim"]
    return "MACs per inference" if tokens is None else f"MACs, full window, {tokens:g} tokens"


def comparison_row(
    name: str, values: dict[str, float | None], text: Callable[[float | None], str]
) -> tuple[str, str, str, str]:
    """A row of a comparison: name, dense, slim, slim divided by dense."""
    dense, slim = values.get("dense"), values.get("slim")
    ratio = quotient(slim, dense)
    return (name, text(dense), text(slim), "-" if ratio is None else f"{ratio:.3f}×")


def summary_sentences(analysis: Analysis) -> list[str]:
    """What stands below the verdict: what was compared, how well it answers, and what failed."""
    said = []
    precisions = analysis.results.precisions
    if analysis.paired and precisions["dense"] != precisions["slim"]:
        said.append(
            f"The slim model computes in {precisions['slim']}, the dense one in {precisions['dense']}: every "
            "comparison is between these two, and holds what the change of precision saves and costs."
        )
    if analysis.loss is not None:
        said.append(_quality_sentence(analysis, analysis.loss))
    lost = _lost_on_recordings(analysis)
    if lost is not None:
        said.append(f"On {RECORDINGS} it loses more: {loss_text(lost)}.")
    said += _another_processor(analysis)
    if analysis.emulated:
        said.append(f"The device is emulated: {analysis.emulated}.")
    for part, reason in analysis.results.failures().items():
        what = "check of the engines" if part == "check" else f"{part} measurement"
        said.append(f"The {what} failed: {reason}.")
    return said


def _lost_on_recordings(analysis: Analysis) -> Interval | None:
    """The loss, a share, where it is larger than on the clips themselves by what matters."""
    joined = None if analysis.speech is None else analysis.speech.recordings
    if joined is None or joined.change is None or analysis.loss is None:
        return None
    more = joined.change.change.estimate - analysis.loss.estimate
    return joined.change.change if more > DECIDABLE_POINTS / 100 else None


def _another_processor(analysis: Analysis) -> list[str]:
    """That the graphs were proved on a CPU of another architecture than the one that was measured, if so."""
    here, check = analysis.content.device.get("architecture"), analysis.content.check
    proofs = [artifact.parity or {} for artifact in analysis.content.artifacts.values()]
    others = {str(proof["architecture"]) for proof in proofs if proof.get("architecture") not in (None, "", here)}
    if not others:
        return []
    seen = f"{'the' if check.status == 'ok' else 'no'} check of the engines was passed on it"
    return [f"Measured on {here}, while the graphs were proved on {' and '.join(sorted(others))}; {seen}."]


def _quality_sentence(analysis: Analysis, loss: Interval) -> str:
    dense, slim = (f"{analysis.qualities[role].estimate:.2%}" for role in ROLES)
    clips, lost = plural(analysis.clips, "clip"), loss_text(loss)
    if analysis.tags is not None:
        labels = analysis.tags.quality["slim"].labels
        return f"Its {MEAN_AP} over {plural(labels, 'label')} is {slim} on {clips}, the dense model's {dense}: {lost}."
    if analysis.speech is None or analysis.speech.change is None:
        return f"It is right on {slim} of {clips}, the dense model on {dense}: {lost}."
    relative = analysis.speech.change.relative
    more = "" if relative is None else f", which is {signed(relative.estimate)}% of the dense model's rate"
    return f"Its {WORD_ERROR_RATE} is {slim} on {clips}, the dense model's {dense}: {lost}{more}."


def headline_verdict(analysis: Analysis, limit_points: float | None) -> Verdict:
    """Quality, speed and size in one sentence; limit_points: of the gate, if any."""
    if not analysis.paired:
        gate = "" if limit_points is None else "; the gate cannot be judged: there is no dense artifact to compare with"
        doubt = f" Its times are not to be trusted: {analysis.untrusted}." if analysis.untrusted else ""
        return Verdict(f"Measured by itself: nothing here is a comparison{gate}.{doubt}")
    quality = _quality_verdict(analysis, limit_points)
    speed = _speed_verdict(analysis)
    said = "; ".join(filter(None, (quality.text, speed.text, _size_text(analysis))))
    tones = {quality.tone, speed.tone}
    tone = "bad" if "bad" in tones else "good" if tones == {"good"} else ""
    said = f"{said[0].upper()}{said[1:]}" if said[:2].islower() else said  # mAP is written so
    return Verdict(f"{said}.", tone)


def _quality_verdict(analysis: Analysis, limit_points: float | None) -> Verdict:
    if analysis.loss is None:
        reason = analysis.content.accuracy.reason or f"the {analysis.metric} was not counted"
        return Verdict(f"{analysis.metric} not measured: {reason}")
    said = quality_verdict(analysis.loss, analysis.clips, limit_points)
    lost = _lost_on_recordings(analysis)
    if lost is None:
        return replace(said, text=f"{analysis.metric}: {said.text}")
    return Verdict(f"{analysis.metric}: {said.text}, and on {RECORDINGS} {points_moved(lost.estimate)}", "bad")


def _speed_verdict(analysis: Analysis) -> Verdict:
    if analysis.speed is None:
        return Verdict("speed not measured")
    ratio = analysis.speed.ratio
    measured = f"{ratio.estimate:.2f}× as fast ({ratio.low:.2f} to {ratio.high:.2f})"
    if analysis.untrusted:
        return Verdict(f"speed not to be trusted, {measured} as measured: {analysis.untrusted}")
    return {
        "faster": Verdict(measured, "good"),
        "slower": Verdict(f"slower, {measured}", "bad"),
        "no change": Verdict("no faster"),
        "not distinguishable": Verdict(f"speed not decided: {measured}"),
    }[analysis.speed.verdict]


def _size_text(analysis: Analysis) -> str:
    sizes = graph_bytes(analysis)
    share = quotient(sizes["slim"], sizes["dense"])
    if share is None:
        return ""
    moved = f"{abs(1 - share):.0%}"
    return "as large" if moved == "0%" else f"{moved} {'smaller' if share < 1 else 'larger'}"


def headline_cards(analysis: Analysis, limit_points: float | None) -> tuple[Card, ...]:
    """Four figures: quality, speed, size and memory."""
    if not analysis.paired:
        return tuple(_single_cards(analysis))
    return (
        _quality_card(analysis, limit_points),
        _speed_card(analysis),
        _ratio_card("file", "file size", graph_bytes(analysis), "the manifests do not say"),
        _ratio_card(
            "peak memory",
            "peak memory",
            memory_bytes(analysis, "peak_rss_bytes"),
            analysis.content.memory.reason,
            MEMORY_FLOOR,
        ),
    )


def _quality_card(analysis: Analysis, limit_points: float | None) -> Card:
    said = _quality_verdict(analysis, limit_points)
    if analysis.loss is None:
        return Card("not measured", analysis.metric, said.text.partition(": ")[2])
    dense, slim = (f"{analysis.qualities[role].estimate:.1%}" for role in ROLES)
    detail = f"{dense} → {slim} on {plural(analysis.clips, 'clip')}, {loss_text(analysis.loss)}"
    if analysis.speech is not None:
        kinds = " → ".join(analysis.speech.counts[role].by_kind for role in ROLES)
        detail += f"; S/D/I {kinds}"
    lost = _lost_on_recordings(analysis)
    if lost is not None:
        return Card(points_moved(lost.estimate), f"{analysis.metric} on {RECORDINGS}", f"on clips {detail}", said.tone)
    figure = "not decided" if "not decided" in said.text else points_moved(analysis.loss.estimate)
    return Card(figure, analysis.metric, detail, said.tone)


def _ratio_card(name: str, missing: str, sizes: dict[str, float | None], reason: str, floor: float = 0.0) -> Card:
    """How much smaller the slim model is in one respect; grey where it is by less than `floor`."""
    share = quotient(sizes.get("slim"), sizes.get("dense"))
    if share is None:
        return Card("not measured", missing, reason)
    detail = f"{megabytes(sizes['dense'])} → {megabytes(sizes['slim'])}"
    if abs(1 - share) <= max(floor, COUNTED_FLOOR):
        return Card("the same", name, detail)
    word = "smaller" if share < 1 else "larger"
    return Card(f"{abs(1 - share):.0%}", f"{word} {name}", detail, "good" if share < 1 else "bad")


def _speed_card(analysis: Analysis) -> Card:
    if analysis.speed is None:
        return Card("not measured", "speed", analysis.content.latency.reason)
    ratio = analysis.speed.ratio
    medians = " → ".join(milliseconds(medians_ms(analysis)[role]) for role in ROLES)
    detail = f"{_timed('median', analysis)} {medians}, 95% between {ratio.low:.2f}× and {ratio.high:.2f}×"
    what = {
        "faster": "faster",
        "slower": "the speed (slower)",
        "no change": "no speed-up",
        "not distinguishable": "speed, within the noise",
    }[analysis.speed.verdict]
    if analysis.untrusted:
        return Card("not trusted", "speed", f"{analysis.untrusted}; {ratio.estimate:.2f}×, {detail}")
    return Card(f"{ratio.estimate:.2f}×", what, detail, _speed_verdict(analysis).tone)


def _single_cards(analysis: Analysis) -> list[Card]:
    quality = analysis.qualities.get("slim")
    reason = analysis.content.accuracy.reason or "word errors were not counted"
    cards = [Card("not measured", analysis.metric, reason)]
    if quality is not None:
        cards = [Card(f"{quality.estimate:.1%}", analysis.metric, rate_between(quality))]
    if "slim" in analysis.latency:
        n = analysis.latency["slim"].n
        said = f"n = {n}; {analysis.untrusted}" if analysis.untrusted else f"n = {n}"
        cards.append(Card(milliseconds(medians_ms(analysis)["slim"]), _timed("median latency", analysis), said))
    else:
        cards.append(Card("not measured", "latency", analysis.content.latency.reason))
    whole = (
        "front end and weights in one graph" if analysis.speech is None else "encoder, with the front end, and decoder"
    )
    cards.append(Card(megabytes(graph_bytes(analysis)["slim"]), "file" if analysis.speech is None else "files", whole))
    peak = memory_bytes(analysis, "peak_rss_bytes").get("slim")
    detail = "of one process, Python and the runtime in it" if peak else analysis.content.memory.reason
    return [*cards, Card(megabytes(peak), "peak memory", detail)]
