"""The report's section on time."""

from __future__ import annotations

import numpy as np

from leanear.benchmarks.analysis import Analysis, all_samples, medians_ms, quotient
from leanear.benchmarks.formatting import factor, median_and_span, per_second, percentile
from leanear.benchmarks.report.drawing.pictures import picture_latency, picture_processes
from leanear.benchmarks.report.page import Block, Paragraph, Section, Table, figures, unmeasured
from leanear.benchmarks.summary import SAMPLES_NEEDED


def latency_section(analysis: Analysis) -> Section:
    latency = analysis.content.latency
    title = "Latency"
    if latency.status != "ok":
        return Section(title, unmeasured(latency))
    flat = {role: np.array(all_samples(analysis.results.samples_ms(role))) for role in analysis.results.roles}
    named = {analysis.name(role): samples for role, samples in flat.items()}
    medians = {analysis.name(role): median for role, median in medians_ms(analysis).items()}
    processes = [
        (analysis.name(repeat.role), np.array(repeat.samples_ms)) for repeat in latency.repeats if repeat.status == "ok"
    ]
    audio_s = latency.input.audio_s
    blocks: list[Block] = [
        Paragraph(_one_inference(analysis, audio_s)),
        *_warnings(analysis),
        picture_latency(named, medians),
        _latency_table(analysis),
        *_gpu_table(analysis),
    ]
    if analysis.speed is not None:
        pairs = ", ".join(f"{ratio:.3f}×" for ratio in analysis.speed.per_repeat)
        blocks.append(Paragraph(f"Speed-up within each neighbouring pair of processes: {pairs}."))
    blocks.append(
        Paragraph(
            "Each row below is one fresh process: the dot is its median, the line spans its 10th to 90th percentile."
        )
    )
    blocks.append(picture_processes(processes))
    blocks.append(_cold_table(analysis))
    return Section(title, tuple(blocks))


def _one_inference(analysis: Analysis, audio_s: float) -> str:
    tokens = analysis.content.latency.settings.tokens
    if tokens is None:
        return (
            f"One inference is one synchronous call, from {audio_s:g} s of waveform to the label scores, front end "
            "included, one at a time."
        )
    return (
        f"One inference is one window, from {audio_s:g} s of waveform to the last of {tokens} generated tokens, front "
        "end included, one at a time."
    )


def _warnings(analysis: Analysis) -> list[Block]:
    said = [f"The device is emulated: {analysis.emulated}."] if analysis.emulated else []
    if analysis.noisy:
        said.append(f"The timings were disturbed: {analysis.noisy}. Do not decide by them.")
    return [Paragraph(text, "warning") for text in said]


def _latency_table(analysis: Analysis) -> Table:
    names = ["samples", "least", "mean", "standard deviation", "coefficient of variation"]
    names += [f"p{percent}" for percent in SAMPLES_NEEDED]
    columns = []
    for role, summary in analysis.latency.items():
        times = (f"{value:.2f}" for value in (summary.min_ms, summary.mean_ms, summary.sd_ms))
        percentiles = (percentile(summary, percent) for percent in SAMPLES_NEEDED)
        columns.append((analysis.name(role), f"{summary.n:,}", *times, f"{summary.cv:.1%}", *percentiles))
    if analysis.speech is None:  # of speech it stands beside the stages
        names += ["real-time factor (RTF)", "RTFx, its inverse"]
        factors = analysis.real_time_factors
        columns = [
            (*column, factor(rtf), per_second(quotient(1.0, rtf)))
            for column, rtf in zip(columns, (factors[role] for role in analysis.latency))
        ]
    return figures("Steady state, ms (RTF: seconds of compute per second of audio, by the median)", names, columns)


def _gpu_table(analysis: Analysis) -> list[Block]:
    """The GPU's own time beside the wall clock's, where the runtime told it."""
    results, rows = analysis.results, []
    for role in results.roles:
        gpu = results.gpu_ms(role)
        walls = {stage: all_samples(results.stages_ms(role, stage)) for stage in gpu}
        if len(gpu) > 1:
            rows.append((analysis.name(role), "whole", all_samples(results.samples_ms(role)), _sums(gpu)))
        for stage, samples in gpu.items():
            wall = walls[stage] or all_samples(results.samples_ms(role))
            rows.append((analysis.name(role), stage.replace("_", " "), wall, samples))
    if not rows:
        return []
    caption = (
        "The GPU's own time of the engines' runs, by CUDA events, beside the wall clock, medians, ms; the rest is "
        "copies, starting, and what Python does"
    )
    told = []
    for name, stage, wall, gpu_samples in rows:
        medians = float(np.median(wall)), float(np.median(gpu_samples))
        told.append((name, stage, *(f"{median:.3f}" for median in medians), f"{medians[1] / medians[0]:.1%}"))
    return [Table(caption, ("", "stage", "wall clock", "GPU", "GPU's share"), tuple(told))]


def _sums(by_stage: dict[str, list[float]]) -> list[float]:
    return [sum(sample) for sample in zip(*by_stage.values())]


def _cold_table(analysis: Analysis) -> Table:
    names = ("import of the runtime, ms", "load, ms", "first inference, ms", "warm-up runs (median)", "settled")
    columns = []
    processes = []
    for role in analysis.results.roles:
        repeats = analysis.results.repeats(role)
        processes.append(f"{len(repeats)}")
        warm = [repeat.warm_up for repeat in repeats if repeat.warm_up is not None]
        runs, seconds = (np.median([getattr(one, key) for one in warm]) for key in ("runs", "seconds"))
        once = (
            median_and_span([getattr(repeat, key) for repeat in repeats])
            for key in ("import_ms", "load_ms", "first_inference_ms")
        )
        settled = f"{sum(one.settled for one in warm)} of {len(warm)}"
        columns.append((analysis.name(role), *once, f"{runs:g} in {seconds:.2f} s", settled))
    return figures(
        f"Cold path, median of {' and '.join(dict.fromkeys(processes))} fresh processes (least to most)", names, columns
    )
