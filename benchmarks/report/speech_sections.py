"""The report's sections that only speech has: the stages of a window, and the words that were got wrong."""

from __future__ import annotations

import math
from typing import Any, Callable, Sequence

from leanear.benchmarks.analysis import Analysis, quotient
from leanear.benchmarks.formatting import (
    NO_RATE_INTERVAL,
    WORD_ERROR_RATE,
    factor,
    milliseconds,
    per_second,
    runtime_text,
    signed,
)
from leanear.benchmarks.measure.answers import MOST_S
from leanear.benchmarks.report.drawing.pictures import picture_intervals, picture_stacks
from leanear.benchmarks.report.headline import comparison_row, rtf_of
from leanear.benchmarks.report.page import (
    Block,
    Paragraph,
    Section,
    Table,
    comparison_table,
    figures,
    gate_paragraph,
    unmeasured,
)
from leanear.benchmarks.speech_analysis import LOOP_COMPRESSION_RATIO, SpeechAnalysis, WindowTimes, Words, clip_errors
from leanear.benchmarks.summary import Gate, Interval
from leanear.benchmarks.verdict import loss_text
from leanear.runtimes.process.notes import plural
from leanear.runtimes.speech.encoder_windows import FEWEST_TOKENS, FULL, TOKENS_PER_MINUTE

WORST_CLIPS = 8
NO_FRONT_END = "it is part of the encoder's graph, and the runtime does not tell its share"


def stages_section(analysis: Analysis) -> Section:
    """Where the time of a window of speech goes, and how that compares with the time of the speech."""
    latency, speech = analysis.content.latency, analysis.speech
    assert speech is not None
    title = "Stages of a window"
    if latency.status != "ok":
        return Section(title, unmeasured(latency))
    tokens, audio_s = latency.settings.tokens, latency.input.audio_s
    factors = analysis.real_time_factors

    def row(
        name: str, pick: Callable[[WindowTimes], float | None], text: Callable[[float | None], str]
    ) -> tuple[str, str, str, str]:
        return comparison_row(name, {role: pick(times) for role, times in speech.windows.items()}, text)

    rows = [
        row("encoder (front end, and keys and values for the decoder)", lambda t: t.encoder_ms, milliseconds),
        row("first token (the prompt goes through the decoder)", lambda t: t.first_token_ms, milliseconds),
        row("each later token", lambda t: t.per_token_ms, milliseconds),
        row("tokens per second of decoder time", lambda t: t.tokens_per_second, per_second),
        comparison_row("real-time factor (RTF)", factors, factor),
        comparison_row("RTFx, its inverse", {role: quotient(1.0, rtf) for role, rtf in factors.items()}, per_second),
    ]
    blocks: list[Block] = [
        Paragraph(
            f"A window is {audio_s:g} s of audio{_windows_clause(analysis)} and {tokens} generated tokens, the "
            "likeliest text token each time (1 beam); the end is not listened to, so that every model does the same "
            f"work. That is {TOKENS_PER_MINUTE:g} tokens per minute of audio, at least {FEWEST_TOKENS}, and no more "
            "than the model has positions for."
        ),
        *_stack_picture(analysis, speech),
        comparison_table(analysis, "Medians over all samples", rows),
        Paragraph(
            f"The real-time factor is seconds of compute per second of audio, here of {rtf_of(analysis)}"
            f"{', one after the other, each as long as it is' if speech.counts else ''}; below 1 is faster than speech."
        ),
        Paragraph(_front_end_sentence(analysis, speech)),
    ]
    return Section(title, tuple(blocks))


def _windows_clause(analysis: Analysis) -> str:
    """In which windows it was heard, where that is not the same of all models, or not the full one."""
    windows = analysis.content.options.windows
    if all(text.startswith(FULL) for text in windows.values()):
        return ""
    return f" (heard by {', by '.join(f'{analysis.name(role)} in: {text}' for role, text in windows.items())})"


def _front_end_sentence(analysis: Analysis, speech: SpeechAnalysis) -> str:
    if any(times.front_end_ms is None for times in speech.windows.values()):
        return f"The front end by itself was not measured: {NO_FRONT_END}."
    took = ", ".join(f"{analysis.name(role)} {milliseconds(w.front_end_ms)}" for role, w in speech.windows.items())
    return (
        f"The front end is part of the encoder's graph, and pruning does not change it ({took}: the encoder's time, "
        "times the share that the runtime's own profiler gives to the front end's nodes in a pass of its own)."
    )


def _stack_picture(analysis: Analysis, speech: SpeechAnalysis) -> list[Block]:
    stacks = []
    for role, times in speech.windows.items():
        parts = (
            ("encoder", times.encoder_ms),
            ("first token", times.first_token_ms),
            ("later tokens", times.later_tokens_ms),
        )
        if any(part is None for _, part in parts):
            return []
        stacks.append((analysis.name(role), [(name, float(part or 0.0)) for name, part in parts]))
    return [picture_stacks(stacks, "ms", 1.0, "Median time of each stage of a window")]


def words_section(analysis: Analysis, gate: Gate | None) -> Section:
    """Word error rates with intervals, dense against slim, and signs of a decoder that went astray."""
    accuracy, speech = analysis.content.accuracy, analysis.speech
    assert speech is not None
    title = "Word errors"
    if accuracy.status != "ok":
        return Section(title, unmeasured(accuracy))
    blocks: list[Block] = [] if gate is None else [gate_paragraph(gate)]
    if accuracy.word_errors is None:
        said = (
            "The transcripts are in the results file, but their word errors were not counted: that takes Whisper's "
            "text normaliser, which devices do not have. `leanear report` on a workstation counts them."
        )
        return Section(title, (*blocks, Paragraph(said, "warning")))
    runtime = runtime_text(analysis.content.runtime)
    rates = [(f"{analysis.name(role)} artifact", role, rate) for role, rate in speech.rates.items()]
    blocks += [
        picture_intervals(
            [(name, role, 100 * rate.estimate, 100 * rate.low, 100 * rate.high) for name, role, rate in rates],
            "% of the reference words",
            "Word error rate with 95% intervals",
        ),
        _rate_table(rates, speech, runtime),
        Paragraph(f"Metric: {accuracy.word_errors.metric}. {_decoding_sentence(accuracy.decoding)}"),
    ]
    if speech.change is not None:
        blocks.append(_change_table(analysis, speech))
    blocks += [_windows_table(analysis), _astray_table(analysis, speech)]
    if speech.change is not None:
        worst = _worst_clips(analysis)
        if worst is not None:
            blocks.append(worst)
    return Section(title, tuple(blocks))


def _rate_table(rates: list[tuple[str, str, Interval]], speech: Words, runtime: str, of: str = "clips") -> Table:
    names = (WORD_ERROR_RATE, "95% interval", "errors, of reference words", "substituted / deleted / inserted (S/D/I)")
    columns = []
    for name, role, rate in rates:
        counts = speech.counts[role]
        span = f"{rate.low:.2%} to {rate.high:.2%}" if rate.has_spread else NO_RATE_INTERVAL
        errors = f"{counts.errors:,} of {counts.reference_words:,}"
        columns.append((name, f"{rate.estimate:.2%}", span, errors, counts.by_kind))
    return figures(f"The artifact that ships, on {runtime} (interval: bootstrap over {of})", names, columns)


def _decoding_sentence(decoding: dict[str, Any]) -> str:
    how = "greedily" if decoding["beams"] == 1 else f"with {decoding['beams']} beams"
    stamps = "with" if decoding["timestamps"] else "without"
    asked = "".join(f", {name} {decoding[name]}" for name in ("task", "language") if decoding.get(name))
    return (
        f"Decoded {how}, {stamps} timestamps{asked}, at temperature "
        f"{', '.join(f'{temperature:g}' for temperature in decoding['temperatures'])}, with no fallback and no test "
        "for silence, so that the rate is the model's own. What is heard a second time is counted below."
    )


def _change_table(analysis: Analysis, speech: SpeechAnalysis) -> Table:
    change = speech.change
    assert change is not None
    texts = {role: analysis.content.accuracy.roles[role].texts for role in ("dense", "slim")}
    same = sum(a == b for a, b in zip(texts["dense"], texts["slim"])) / len(texts["dense"])
    relative = change.relative
    rows = (
        ("word error rate, slim against dense", loss_text(change.change)),
        (
            "the same, relative to dense",
            "dense makes no errors" if relative is None else f"{signed(relative.estimate)}%{_relative_span(relative)}",
        ),
        ("clips on which dense has fewer errors", f"{change.only_dense_better:,}"),
        ("clips on which slim has fewer errors", f"{change.only_slim_better:,}"),
        ("clips with the very same transcript", f"{same:.2%}"),
    )
    return Table("Slim against dense, clip by clip (paired bootstrap over clips)", ("", ""), rows)


def recordings_section(analysis: Analysis) -> Section | None:
    """The rates on the clips joined, or why there are none; nothing where the clips gave no answers either."""
    joined, speech, title = analysis.content.recordings, analysis.speech, "Long recordings"
    assert speech is not None
    if joined is None or speech.recordings is None:
        if analysis.content.accuracy.status != "ok":
            return None
        said = "Long recordings were not measured: the clips do not make one of three windows."
        return Section(title, (Paragraph(said),))
    if joined.status != "ok":
        return Section(title, unmeasured(joined))
    rates = [(f"{analysis.name(role)} artifact", role, rate) for role, rate in speech.recordings.rates.items()]
    lengths = " to ".join(dict.fromkeys(f"{each:.0f}" for each in (min(joined.audio_s), max(joined.audio_s))))
    said = (
        f"The clips joined to {plural(len(joined.names), 'recording')} of {lengths} s, heard window after window: "
        "short clips alone do not show what a model does with a full window, nor with the seam to the next one."
        f"{_left_out(analysis.content.accuracy.names, joined.names)}"
    )
    change = speech.recordings.change
    lost = () if change is None else (Paragraph(f"Slim against dense on them: {loss_text(change.change)}."),)
    table = _rate_table(rates, speech.recordings, runtime_text(analysis.content.runtime), "recordings")
    return Section(title, (Paragraph(said), *((table,) if rates else ()), *lost))


def _left_out(clips: Sequence[str], recordings: Sequence[str]) -> str:
    """How many clips are in no recording, which have the names of their first and last ones."""
    joined = max((place + 1 for place, clip in enumerate(clips) if recordings[-1].endswith(f" to {clip}")), default=0)
    if joined in (0, len(clips)):
        return ""
    left = f"Not joined: the last {len(clips) - joined:,} of {len(clips):,} clips"
    return f" {left}, which would not make another one, or all would be longer than {MOST_S:.0f} s."


def _relative_span(relative: Interval) -> str:
    if not relative.has_spread:
        return ""
    high = "any rise" if math.isinf(relative.high) else signed(relative.high)
    return f" (95% between {signed(relative.low)} and {high})"


def _windows_table(analysis: Analysis) -> Table:
    rows = tuple(
        (
            analysis.name(role),
            analysis.content.options.windows.get(role, "-"),
            f"{sum(answers.windows):,}",
            f"{sum(answers.second_tries):,}",
        )
        for role, answers in analysis.content.accuracy.roles.items()
    )
    caption = (
        "The encoder's window: of several a clip is heard in the shortest one that holds it and a tail of silence, and "
        "a second time in full where its text has too many or too few tokens for so much audio, or repeats itself; a "
        "full window is heard again, in two parts, where its text is too short"
    )
    return Table(caption, ("", "windows", "heard", "second tries"), rows)


def _astray_table(analysis: Analysis, speech: SpeechAnalysis) -> Table:
    columns = [
        (
            analysis.name(role),
            f"{counts.deletions / counts.reference_words:.2%}",
            f"{counts.loops:,} ({counts.loops / analysis.clips:.2%})",
            f"{counts.empty:,} ({counts.empty / analysis.clips:.2%})",
        )
        for role, counts in speech.counts.items()
    ]
    caption = (
        f"Signs of a decoder gone astray, over {analysis.clips:,} clips (a loop: a text that compresses more than "
        f"{LOOP_COMPRESSION_RATIO:g} times)"
    )
    return figures(caption, ("words left out", "loops", "nothing heard"), columns)


def _worst_clips(analysis: Analysis) -> Table | None:
    """The clips that lost the most, word for word, so that a rate hides nothing."""
    accuracy = analysis.content.accuracy
    dense, slim = clip_errors(accuracy, "dense"), clip_errors(accuracy, "slim")
    order = sorted(range(len(dense)), key=lambda clip: (dense[clip] - slim[clip], clip))
    rows = tuple(
        (
            accuracy.names[clip],
            accuracy.references[clip],
            accuracy.roles["dense"].texts[clip] or "(nothing)",
            accuracy.roles["slim"].texts[clip] or "(nothing)",
            f"{dense[clip]} → {slim[clip]}",
        )
        for clip in order[:WORST_CLIPS]
        if slim[clip] > dense[clip]
    )
    if not rows:
        return None
    return Table("Clips that lost the most", ("clip", "said", "dense heard", "slim heard", "errors"), rows, folded=True)
