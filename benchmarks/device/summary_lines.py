"""What `bench` prints of the results that it has just written."""

from __future__ import annotations

from leanear.benchmarks.formatting import rate_between
from leanear.benchmarks.results import Results
from leanear.benchmarks.summary import Interval, accuracy_change, speed_up, summarise_latency, wilson_interval
from leanear.benchmarks.tag_analysis import logits_of, truth_of
from leanear.benchmarks.tagging import MEAN_AP, TagQuality, tag_change, tag_quality
from leanear.benchmarks.verdict import loss_of, loss_text


def print_summary(results: Results) -> None:
    """Print each model's figures, what changed between the two, and where the results are."""
    accuracy = results.content.accuracy
    for role in results.roles:
        latency = summarise_latency([sample for samples in results.samples_ms(role) for sample in samples])
        median = latency.percentiles_ms[50]
        name = role if len(results.roles) == 2 else "model"
        line = f"{name:6} median {'n/a' if median is None else f'{median:.2f} ms'} (n={latency.n})"
        if role in results.content.memory.roles:
            line += f", peak memory {results.content.memory.roles[role].peak_rss_bytes / 1e6:.0f} MB"
        if role in accuracy.roles and results.is_speech:
            line += f", {len(accuracy.roles[role].texts)} transcripts"
        elif role in accuracy.roles and results.is_tagging:
            line += f", {tags_text(tag_quality(logits_of(results, role), truth_of(results)))}"
        elif role in accuracy.roles:
            predicted = accuracy.roles[role].predicted_ids
            correct = sum(a == b for a, b in zip(predicted, accuracy.label_ids))
            share = wilson_interval(correct, len(predicted))
            line += f", accuracy {share.estimate:.2%} (95% {share.low:.2%} to {share.high:.2%})"
        print(line)
    if len(results.roles) == 2:
        faster = speed_up(results.samples_ms("dense"), results.samples_ms("slim"))
        ratio = faster.ratio
        print(f"speed-up {ratio.estimate:.3f} (95% {ratio.low:.3f} to {ratio.high:.3f}): {faster.verdict}")
        if accuracy.status == "ok" and not results.is_speech:
            change = _change(results)
            metric = MEAN_AP if results.is_tagging else "accuracy"
            print(f"{metric}: {loss_text(loss_of(change, metric))}")
    print(results.path)


def _change(results: Results) -> Interval:
    """From dense to slim, a share."""
    if results.is_tagging:
        return tag_change(logits_of(results, "dense"), logits_of(results, "slim"), truth_of(results)).interval
    accuracy = results.content.accuracy
    ids = [accuracy.roles[role].predicted_ids for role in ("dense", "slim")]
    return accuracy_change(ids[0], ids[1], accuracy.label_ids).change


def tags_text(quality: TagQuality) -> str:
    """Mean average precision with its interval."""
    share = quality.mean_ap
    return f"{MEAN_AP} {share.estimate:.2%} ({rate_between(share, 2)}) over {quality.labels} labels"
