"""The first things a reader sees: a few figures, and the same in plain sentences."""

from __future__ import annotations

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
    between,
    count,
    factor,
    kilobytes,
    megabytes,
    milliseconds,
    rate_between,
    signed,
    signed_points,
)
from leanear.benchmarks.report.page import Card
from leanear.benchmarks.results import Results
from leanear.benchmarks.speech_analysis import SpeechAnalysis, cache_bytes
from leanear.benchmarks.summary import Gate, Interval
from leanear.benchmarks.tag_analysis import TagAnalysis
from leanear.benchmarks.tagging import MEAN_AP


def headline_rows(results: Results) -> tuple[tuple[str, str, str, str], ...]:
    """A short table for a terminal: what, dense, slim, change; "not measured" where a part is missing."""
    analysis = analyse(results)
    if analysis.speech is not None:
        return _speech_rows(analysis, analysis.speech)
    moved, shares = analysis.quality_change, analysis.qualities
    change = f"{signed(moved.estimate)} points" if moved is not None else "-"
    dense, slim = (f"{shares[role].estimate:.2%}" if role in shares else "not measured" for role in ("dense", "slim"))
    return (
        *_precision_row(analysis),
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row("MACs per inference", model_numbers(analysis, "macs"), count),
        comparison_row("graph file", graph_bytes(analysis), megabytes),
        comparison_row(_timed("median latency", analysis), medians_ms(analysis), milliseconds),
        comparison_row("peak memory", memory_bytes(analysis, "peak_rss_bytes"), megabytes),
        (analysis.metric, dense, slim, change),
    )


def _speech_rows(analysis: Analysis, speech: SpeechAnalysis) -> tuple[tuple[str, str, str, str], ...]:
    tokens = analysis.document["latency"]["settings"]["tokens"]
    windows, rates, change = speech.windows, speech.rates, speech.change
    transcribed = "not counted" if analysis.document["accuracy"]["roles"] else "not measured"
    dense, slim = (f"{rates[role].estimate:.2%}" if role in rates else transcribed for role in ("dense", "slim"))
    return (
        *_precision_row(analysis),
        comparison_row("parameters", model_numbers(analysis, "parameters"), count),
        comparison_row(macs_name(analysis), model_numbers(analysis, "macs"), count),
        comparison_row("graph files", graph_bytes(analysis), megabytes),
        comparison_row("cache of keys and values", cache_bytes(analysis.results)["all"], kilobytes),
        comparison_row(_timed(f"window, {tokens} tokens", analysis), medians_ms(analysis), milliseconds),
        comparison_row("of it, encoder", {role: each.encoder_ms for role, each in windows.items()}, milliseconds),
        comparison_row("each token", {role: each.per_token_ms for role, each in windows.items()}, milliseconds),
        comparison_row("real-time factor", {role: each.real_time_factor for role, each in windows.items()}, factor),
        comparison_row("peak memory", memory_bytes(analysis, "peak_rss_bytes"), megabytes),
        ("word error rate", dense, slim, f"{signed(change.change.estimate)} points" if change else "-"),
    )


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
    return "MACs per inference" if tokens is None else f"MACs, {tokens:g} tokens"


def comparison_row(
    name: str, values: dict[str, float | None], text: Callable[[float | None], str]
) -> tuple[str, str, str, str]:
    """A row of a comparison: name, dense, slim, slim divided by dense."""
    dense, slim = values.get("dense"), values.get("slim")
    ratio = quotient(slim, dense)
    return (name, text(dense), text(slim), "-" if ratio is None else f"{ratio:.3f}×")


def summary_sentences(analysis: Analysis) -> list[str]:
    """The result in plain sentences, for who reads nothing else."""
    if not analysis.paired:
        return ["One artifact was measured by itself, so nothing here is a comparison."]
    said = []
    precisions = analysis.results.precisions
    if precisions["dense"] != precisions["slim"]:
        said.append(
            f"The slim model computes in {precisions['slim']}, the dense one in {precisions['dense']}: every "
            "comparison is between these two, and holds what the change of precision saves and costs."
        )
    sizes = graph_bytes(analysis)
    smaller = quotient(sizes["dense"], sizes["slim"])
    if smaller is not None:
        word = "smaller" if smaller > 1 else "larger"
        said.append(f"The slim model's file is {abs(1 - 1 / smaller):.1%} {word} than the dense one's.")
    if analysis.speed is not None:
        ratio = analysis.speed.ratio
        span = f"(95% between {ratio.low:.2f}× and {ratio.high:.2f}×)"
        said.append(
            {
                "faster": f"It answers {ratio.estimate:.2f}× as fast {span}.",
                "slower": f"It is slower: {ratio.estimate:.2f}× the dense model's speed {span}.",
                "no change": f"There is no speed-up: {ratio.estimate:.3f}× is within 2% of the dense model's speed.",
                "not distinguishable": f"No speed-up can be told from the noise: {ratio.estimate:.2f}× {span}.",
            }[analysis.speed.verdict]
        )
    if analysis.change is not None:
        change, dense, slim = analysis.change.change, analysis.accuracy["dense"], analysis.accuracy["slim"]
        clips = len(analysis.document["accuracy"]["label_ids"])
        said.append(
            f"It is right on {slim.estimate:.2%} of {clips:,} clips, the dense model on {dense.estimate:.2%}: "
            f"{signed_points(change.estimate)} ({between(change)})."
        )
    if analysis.speech is not None and analysis.speech.change is not None:
        said.append(_word_sentence(analysis, analysis.speech))
    if analysis.tags is not None and analysis.tags.change is not None:
        said.append(_tags_sentence(analysis.tags, analysis.tags.change))
    if analysis.emulated:
        said.append(f"The device is emulated: {analysis.emulated}.")
    if analysis.noisy:
        said.append(f"The timings are less certain than usual: {analysis.noisy}.")
    for part, reason in analysis.results.failures().items():
        what = "check of the engines" if part == "check" else f"{part} measurement"
        said.append(f"The {what} failed: {reason}.")
    return said


def _word_sentence(analysis: Analysis, speech: SpeechAnalysis) -> str:
    change, clips = speech.change, len(analysis.document["accuracy"]["names"])
    assert change is not None
    points, relative = change.change, change.relative
    more = "" if relative is None else f", which is {signed(relative.estimate)}% of the dense model's rate"
    return (
        f"It gets {speech.rates['slim'].estimate:.2%} of the words of {clips:,} clips wrong, the dense model "
        f"{speech.rates['dense'].estimate:.2%}: {signed_points(points.estimate)} ({between(points)}){more}."
    )


def _tags_sentence(tags: TagAnalysis, change: Interval) -> str:
    dense, slim = tags.quality["dense"], tags.quality["slim"]
    return (
        f"Its {MEAN_AP} over {slim.labels:,} labels is {slim.mean_ap.estimate:.2%} on {slim.clips:,} clips, the dense "
        f"model's {dense.mean_ap.estimate:.2%}: {signed_points(change.estimate)} ({between(change)})."
    )


def headline_cards(analysis: Analysis, gate: Gate | None) -> tuple[Card, ...]:
    """The headline: size, speed, accuracy and the gate's verdict."""
    cards = _comparison_cards(analysis, gate) if analysis.paired else _single_cards(analysis)
    if gate is not None:
        tone = {"PASS": "good", "FAIL": "bad"}.get(gate.verdict, "flat")
        cards.append(Card(gate.verdict, _gate_name(analysis), gate.sentence, tone))
    else:
        loss = f"the {analysis.metric} drop" if analysis.speech is None else "the rise of the word error rate"
        cards.append(Card("none", _gate_name(analysis), f"no limit was set for {loss}", ""))
    return tuple(cards)


def _gate_name(analysis: Analysis) -> str:
    return f"{analysis.metric} gate" if analysis.speech is None else "word error gate"


def _comparison_cards(analysis: Analysis, gate: Gate | None) -> list[Card]:
    sizes = graph_bytes(analysis)
    smaller = quotient(sizes["dense"], sizes["slim"])
    cards = []
    if smaller is None:
        cards.append(Card("not known", "file size", "the manifests do not say", "flat"))
    else:
        word = "smaller" if smaller > 1 else "larger"
        detail = f"{megabytes(sizes['dense'])} → {megabytes(sizes['slim'])}, {smaller:.2f}× smaller"
        cards.append(Card(f"{abs(1 - 1 / smaller):.0%}", f"{word} file", detail, "good" if smaller > 1 else "bad"))
    cards.append(_speed_card(analysis))
    if analysis.speech is not None:
        cards.append(_word_card(analysis, analysis.speech, gate))
    elif analysis.quality_change is None:
        reason = analysis.document["accuracy"]["reason"]
        cards.append(Card("not measured", f"{analysis.metric} change", reason, "flat"))
    else:
        change, shares = analysis.quality_change, analysis.qualities
        detail = f"{shares['dense'].estimate:.1%} → {shares['slim'].estimate:.1%}, {between(change)}"
        cards.append(Card(signed(change.estimate), f"points of {analysis.metric}", detail, _change_tone(change, gate)))
    return cards


def _word_card(analysis: Analysis, speech: SpeechAnalysis, gate: Gate | None) -> Card:
    if speech.change is None:
        reason = analysis.document["accuracy"]["reason"] or "word errors were not counted"
        return Card("not measured", "change of the word error rate", reason, "flat")
    change, dense, slim = speech.change.change, speech.rates["dense"], speech.rates["slim"]
    gain = Interval(-change.estimate, -change.high, -change.low)
    detail = f"{dense.estimate:.1%} → {slim.estimate:.1%}, {between(change)}"
    return Card(signed(change.estimate), "points of word error rate", detail, _change_tone(gain, gate))


def _change_tone(change: Interval, gate: Gate | None) -> str:
    """A loss that the gate allows is no alarm; without a gate, a loss that cannot be chance is."""
    if change.low > 0:
        return "good"
    if gate is not None:
        return "bad" if gate.verdict == "FAIL" else ""
    return "bad" if change.high < 0 else "flat"


def _speed_card(analysis: Analysis) -> Card:
    if analysis.speed is None:
        return Card("not measured", "speed", analysis.document["latency"]["reason"], "flat")
    ratio = analysis.speed.ratio
    medians = " → ".join(milliseconds(medians_ms(analysis)[role]) for role in ("dense", "slim"))
    detail = f"{_timed('median', analysis)} {medians}, 95% between {ratio.low:.2f}× and {ratio.high:.2f}×"
    if analysis.speed.verdict in ("faster", "slower"):
        tone = "good" if analysis.speed.verdict == "faster" else "bad"
        return Card(f"{ratio.estimate:.2f}×", "faster" if tone == "good" else "the speed (slower)", detail, tone)
    what = "no speed-up" if analysis.speed.verdict == "no change" else "speed, within the noise"
    return Card(f"{ratio.estimate:.2f}×", what, detail, "flat")


def _single_cards(analysis: Analysis) -> list[Card]:
    what, detail = ("file", "weights and audio front end in one graph")
    if analysis.speech is not None:
        what, detail = ("files", "encoder, with the audio front end in it, and decoder")
    cards = [Card(megabytes(graph_bytes(analysis)["slim"]), what, detail)]
    if "slim" in analysis.latency:
        n = analysis.latency["slim"].n
        cards.append(Card(milliseconds(medians_ms(analysis)["slim"]), _timed("median latency", analysis), f"n = {n}"))
    else:
        cards.append(Card("not measured", "latency", analysis.document["latency"]["reason"], "flat"))
    if analysis.speech is not None:
        cards.append(_single_word_card(analysis, analysis.speech))
    elif "slim" in analysis.qualities:
        share = analysis.qualities["slim"]
        cards.append(Card(f"{share.estimate:.1%}", analysis.metric, rate_between(share)))
    else:
        cards.append(Card("not measured", analysis.metric, analysis.document["accuracy"]["reason"], "flat"))
    return cards


def _single_word_card(analysis: Analysis, speech: SpeechAnalysis) -> Card:
    if "slim" not in speech.rates:
        reason = analysis.document["accuracy"]["reason"] or "word errors were not counted"
        return Card("not measured", "word error rate", reason, "flat")
    rate = speech.rates["slim"]
    return Card(f"{rate.estimate:.1%}", "word error rate", rate_between(rate))
