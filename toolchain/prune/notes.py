"""What a report says of how the slim model came about: goal, search, recovery, and prediction against measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanear.benchmarks.formatting import PRUNED_PARTS, WORD_ERROR_RATE
from leanear.benchmarks.report.loss_section import blocks_nats, nats
from leanear.benchmarks.summary import Interval, how_surely
from leanear.benchmarks.verdict import quality_verdict
from leanear.runtimes.process.notes import plural

PRUNING_SCHEMA = "leanear-pruning-1"
HELD_OUT = "held-out calibration clip"


def pruning_notes(pruning: Mapping[str, Any] | None, medians_ms: Mapping[str, float | None]) -> list[str]:
    """Sentences from pruning.json; medians_ms: measured latency by "dense" and "slim", where it was measured."""
    if pruning is None:
        return []
    notes = []
    if len(pruning.get("by_kind", {})) > 1:
        notes.append(_kinds_sentence(pruning["by_kind"]))
    if pruning.get("feed_forward_by_kind"):
        notes.append(_feed_forward_sentence(pruning))
    measured = loss_sentence(pruning)
    if measured is not None:
        notes.append(measured)
    if pruning["method"] != "rotated":
        return notes
    widths = pruning.get("widths", {})
    if widths.get("one_per_head"):
        notes.append(_one_width_sentence(widths))
    if pruning.get("search"):
        notes.append(_search_sentence(pruning))
    cost = pruning.get("cost", {})
    if cost.get("unit") == "ms" and "tokens" not in pruning.get("timed", {}):
        notes.append(_latency_sentence(cost, medians_ms))
    if pruning.get("latency_checks") and "timed" in pruning:
        notes.append(_checked_sentence(pruning))
    recovery = pruning.get("recovery")
    if recovery and recovery["held_out_kls"]:
        before, after = recovery["held_out_kls"][0], recovery["held_out_kls"][recovery["best_epoch"]]
        if recovery["best_epoch"] == 0:
            notes.append(
                f"Recovery made nothing better and was taken back: {recovery['updates']} updates did not bring"
                f" the divergence from the dense model on held-out calibration clips below {before:.4f} nats."
            )
            return notes
        notes.append(
            f"Recovery took {recovery['updates']} updates; the divergence from the dense model on held-out calibration"
            f" clips went from {before:.4f} to {after:.4f} nats."
        )
    return notes


def loss_warning(pruning: Mapping[str, Any] | None) -> str | None:
    """In plain words what the finished model has lost, where that matters; None where it does not."""
    loss = (pruning or {}).get("loss", {})
    finished = loss.get("finished")
    if pruning is None or finished is None or not finished["matters"]:
        return None
    before, after = (100 * finished[key] / finished["counted"] for key in ("dense_mistakes", "slim_mistakes"))
    prune = pruning.get("prune", "attention")
    parts = PRUNED_PARTS[prune] if prune == "attention" else f"{PRUNED_PARTS[prune]} parameters"
    removed = f"Removing {100 * pruning['sparsity']:.0f} % of the {parts} does damage here"
    if finished["divergence"] is None:
        return f"{removed}: the pruned model's answers are not numbers. Do not use it."
    said = (
        f"{removed}: on {plural(finished['clips'], HELD_OUT)} {_rate_moved(pruning, before, after)},"
        f" and the model's answers diverge from the dense model's by {finished['divergence']:.3g} nats"
    )
    begins = loss.get("begins_at")
    if begins is None:
        return f"{said}."
    if finished["standard_error_points"] is None:
        return f"{said}. So few clips cannot tell where that begins: give more."
    if begins <= 0:
        return f"{said}. By the corrected estimates no share is free of that."
    fitted = "" if pruning.get("recovery") else ", or fit it again with --recovery full"
    if begins >= pruning["sparsity"]:
        return f"{said}. The corrected estimates did not tell: keep more of the model{fitted}."
    better = fitted or ", or keep more of the model"
    return (
        f"{said}. By the corrected estimates such a loss begins at about {100 * begins:.0f} %: stay below"
        f" --sparsity {begins:.2f}{better}."
    )


def loss_sentence(pruning: Mapping[str, Any]) -> str | None:
    """What was measured of the finished model; and before, what was estimated, and how the closed loop got there."""
    loss = pruning.get("loss", {})
    finished = loss.get("finished")
    if finished is None or finished["divergence"] is None:
        return None
    before, after = (100 * finished[key] / finished["counted"] for key in ("dense_mistakes", "slim_mistakes"))
    said = (
        f"Measured on {plural(finished['clips'], HELD_OUT)}{_after(pruning)}: {nats(finished['divergence'])} nats from"
        f" the dense model's answers; {_rate_moved(pruning, before, after)}{_uncertain(finished)}."
    )
    rounds = loss.get("rounds")
    if not rounds:
        return said
    chosen, first = rounds[loss["best"]], rounds[0]
    said += f" {'Before that, the' if _after(pruning) else 'The'} plan's estimate was {nats(chosen['estimated'])} nats,"
    said += f" and {nats(chosen['measured'])} were measured"
    off = chosen["measured"] > 2 * chosen["estimated"] or chosen["estimated"] > 2 * chosen["measured"]
    said += f"; its blocks, cut one by one, lose {nats(blocks_nats(chosen))} together." if off else "."
    least = min(round["measured"] for round in rounds)
    if len(rounds) > 1 and chosen["measured"] > least:
        said += f" Round {loss['best'] + 1} of {len(rounds)} stays: compensated, it loses the least, or as little as"
        said += " any, with estimates that held."
    elif len(rounds) > 1 and not loss["best"]:
        said += f" Widths were chosen again {len(rounds) - 1}\u00d7, which made nothing better."
    elif len(rounds) > 1:
        said += (
            f" It is round {loss['best'] + 1} of {len(rounds)}: the first plan, estimated at"
            f" {nats(first['estimated'])}, measured {nats(first['measured'])}, so blocks were measured one by one and"
            " widths chosen again."
        )
    return said


def _after(pruning: Mapping[str, Any]) -> str:
    """What the finished model went through that was measured before."""
    kept = any(block["kept"] for block in (pruning.get("compensation") or {}).get("blocks", ()))
    trained = (pruning.get("recovery") or {}).get("best_epoch")
    done = [*(["compensation"] if kept else []), *(["recovery"] if trained else [])]
    return f", after {' and '.join(done)}" if done else ""


def _uncertain(finished: Mapping[str, Any]) -> str:
    if finished["standard_error_points"] is None:
        return "; so few clips decide nothing, give more"
    if "low_points" not in finished:  # of a file from before there was an interval
        return f" (standard error {finished['standard_error_points']:.2f} points)"
    ends = (finished[key] for key in ("points", "low_points", "high_points"))
    loss = Interval(*(finished["points"] / 100 if end is None else end / 100 for end in ends))
    return f", {quality_verdict(loss, finished['clips'], None).text}"


def _rate_moved(pruning: Mapping[str, Any], before: float, after: float) -> str:
    metric = pruning.get("metric", "accuracy")
    name, ends = f"the {metric}", (f"{before:.1f}", f"{after:.1f}")
    if metric != WORD_ERROR_RATE:
        name, ends = metric, (f"{100 - before:.1f}", f"{100 - after:.1f}")
    return f"{name} stayed at {ends[0]} %" if len(set(ends)) == 1 else f"{name} went from {ends[0]} to {ends[1]} %"


def _kinds_sentence(by_kind: Mapping[str, float]) -> str:
    names = {"encoder": "the encoder's self-attention", "decoder": "the decoder's", "cross": "cross-attention"}
    said = ", ".join(f"{100 * share:.1f} % of {names[kind]}" for kind, share in by_kind.items())
    return f"Removed are {said}."


def _feed_forward_sentence(pruning: Mapping[str, Any]) -> str:
    """Of which blocks how much went: of a model with one kind of attention, of attention too."""
    names = {"encoder": "the encoder's feed-forward channels", "decoder": "the decoder's"}
    shares, attention = pruning["feed_forward_by_kind"], pruning["by_kind"]
    if len(shares) == 1:
        (share,), (of_attention,) = shares.values(), attention.values()
        return f"Removed are {100 * of_attention:.1f} % of attention and {100 * share:.1f} % of feed-forward channels."
    return f"Removed are {', '.join(f'{100 * share:.1f} % of {names[kind]}' for kind, share in shares.items())}."


def _one_width_sentence(widths: Mapping[str, Any]) -> str:
    said = f"Query/key and value/output width of a head are one, a multiple of {widths['multiples'][0]}"
    form = widths.get("not_filled_up_by")
    if form is None:
        return f"{said}."
    return (
        f"{said}, and the graph of form {form} fills no head up, so that parameters and MACs are those that the target"
        " has."
    )


def _search_sentence(pruning: Mapping[str, Any]) -> str:
    trials = sorted(pruning["search"], key=lambda trial: trial["sparsity"])
    metric = pruning.get("metric", "accuracy")
    moved, sign = ("rose", 1) if metric == WORD_ERROR_RATE else ("fell", -1)
    tried = "; ".join(
        f"{100 * trial['sparsity']:.0f} %: {sign * trial['drop_points'] + 0.0:+.2f}, expected"
        f" {sign * trial['expected_drop_points']:+.2f}"
        f" ± {trial['standard_error_points']:.2f}"
        for trial in trials
    )
    return (
        f"The sparsity of {100 * pruning['sparsity']:.1f} % is the largest tried whose {metric} on {trials[0]['clips']}"
        f" held-out calibration clips {moved} by at most {pruning['goal']['value']:g} points, as counted and as"
        f" expected (sparsity: change in points: {tried}).{_chosen_sentence(pruning, trials)}"
    )


def _chosen_sentence(pruning: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """How surely the drop of the sparsity that was chosen is within the goal, as counted."""
    chosen = [trial for trial in trials if trial["within"] and "low_points" in trial]
    if not chosen:
        return ""
    ends = (chosen[-1][key] for key in ("drop_points", "low_points", "high_points"))
    estimate, low, high = (chosen[-1]["drop_points"] if end is None else end for end in ends)
    surely = how_surely(Interval(estimate / 100, low / 100, high / 100), pruning["goal"]["value"])
    return f" As counted at {100 * chosen[-1]['sparsity']:.0f} %, {surely}."


def _checked_sentence(pruning: Mapping[str, Any]) -> str:
    """The finished model's time beside the prediction, and what was timed; before anything was fitted or trained."""
    timed, check = pruning["timed"], pruning["latency_checks"][-1]
    heard = f"{timed['audio_s']:g} s of audio"
    if "tokens" in timed:
        heard += f" in a window of {timed['window_s']:g} s and {timed['tokens']} tokens"
    dense, slim = check["measured_dense_ms"], check["measured_ms"]
    ratio, predicted = dense / slim, check["predicted_dense_ms"] / check["predicted_ms"]
    tried, doubt = len(pruning["latency_checks"]), check.get("doubt")
    return (
        f"Timed when it was pruned, {heard}, in {timed['precision']}: predicted {check['predicted_dense_ms']:.4g} ms"
        f" dense and {check['predicted_ms']:.4g} ms slim, measured {dense:.4g} and {slim:.4g} ms in turn"
        f" ({100 * (check['predicted_ms'] / slim - 1):+.1f} %); {ratio:.3f}\u00d7 as fast"
        f" ({100 * (predicted / ratio - 1):+.1f} %), real-time factor {slim / 1000 / timed['audio_s']:.4g}. The goal"
        f" was {'met' if check['met'] else 'NOT met'}, by plan {tried} of {tried}."
        + (f" These times are not to be trusted: {doubt}." if doubt else "")
    )


def _latency_sentence(cost: Mapping[str, Any], medians_ms: Mapping[str, float | None]) -> str:
    predicted = f"The latency table predicted {cost['dense']:.4g} ms dense and {cost['slim']:.4g} ms slim"
    predicted += f", {cost['dense'] / cost['slim']:.3f}×"
    dense, slim = medians_ms.get("dense"), medians_ms.get("slim")
    if not dense or not slim:
        return predicted + "; the latency was not measured."
    off = 100 * ((dense / slim) / (cost["dense"] / cost["slim"]) - 1)
    return (
        predicted
        + f"; measured were {dense:.4g} ms and {slim:.4g} ms, {dense / slim:.3f}× ({off:+.1f} % of the ratio)."
    )
