"""The report of speech: word errors with interval and gate, stages, cache, and the three kinds of attention."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from leanear.benchmarks.analysis import analyse
from leanear.benchmarks.inference import STAGES
from leanear.benchmarks.report.headline import headline_cards, headline_rows
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.results import read_results, write_results
from leanear.benchmarks.summary import judge_word_gate, word_error_change
from tests.benchmarks.report.test_report import Page

SENTENCES = 13
TOKENS = 4
PLAN = {
    "schema": "leanear-plan-1",
    "dense_head_width": 16,
    "sparsity": 0.5,
    "by_kind": {
        "encoder": {"dense": 1000, "kept": 600, "sparsity": 0.4},
        "decoder": {"dense": 1000, "kept": 500, "sparsity": 0.5},
        "cross": {"dense": 1000, "kept": 400, "sparsity": 0.6},
    },
    "recipe": {},
    "sites": [
        {
            "name": name,
            "kind": kind,
            "dense_heads": 2,
            "heads": [
                {"head": head, "query_key": list(range(4 + head)), "value_output": list(range(8))}
                for head in range(2 if kind != "cross" else 1)
            ],
        }
        for name, kind in (
            ("encoder.layers.0.self_attn", "encoder"),
            ("encoder.layers.1.self_attn", "encoder"),
            ("decoder.layers.0.self_attn", "decoder"),
            ("decoder.layers.0.encoder_attn", "cross"),
        )
    ],
}


@pytest.fixture
def document(speech_results):
    """Results that a test may change: dense at 100 ms a window, slim at 80, word errors counted."""
    return with_word_errors(speech_results.document)


def with_word_errors(speech):
    changed = copy.deepcopy(speech)
    template = changed["latency"]["repeats"][0]
    changed["latency"]["order"] = ["dense", "slim", "slim", "dense"]
    changed["latency"]["repeats"] = []
    for place, role in enumerate(changed["latency"]["order"]):
        scale = {"dense": 1.0, "slim": 0.8}[role]
        stages = {"encoder": 60.0, "first_token": 10.0, "later_tokens": 30.0}
        samples = {name: [scale * ms] * 20 for name, ms in stages.items()}
        totals = [float(sum(parts)) for parts in zip(*samples.values())]
        changed["latency"]["repeats"].append(
            {**template, "role": role, "repeat": place // 2, "samples_ms": totals, "stages_ms": samples}
        )
    changed["device_before"]["cpu_busy_share"] = 0.01
    words = [3, 2, 4] * 4 + [1]
    changed["accuracy"]["word_errors"] = {
        "metric": "word error rate by hand",
        "reference_words": words,
        "roles": {
            "dense": {"substitutions": [1] + [0] * 12, "deletions": [0] * 13, "insertions": [0] * 13},
            "slim": {"substitutions": [1] + [0] * 12, "deletions": [0] * 12 + [1], "insertions": [0] * 12 + [2]},
        },
    }
    count = len(changed["recordings"]["names"])
    none, one = [0] * count, [1] + [0] * (count - 1)
    right = {"substitutions": none, "deletions": none, "insertions": none}
    changed["recordings"]["word_errors"] = {
        "metric": "word error rate by hand",
        "reference_words": [6] * count,
        "roles": {"dense": {**right, "deletions": one}, "slim": {**right, "insertions": one}},
    }
    return changed


@pytest.fixture
def report(document, tmp_path):
    def write(**options):
        write_results(tmp_path / "results.json", document)
        paths = write_report(tmp_path / "results.json", tmp_path / "out", **{"plan": PLAN, **options})
        return Page(paths.html.read_text()), paths.markdown.read_text(), paths

    return write


def test_the_page_is_whole(report):
    page, markdown, paths = report(max_drop=20.0)
    assert page.open == []
    assert not re.search(r"https?:|url\((?!#)|\b(src|href)=(?!\"#)", paths.html.read_text())
    assert "| " in markdown
    titles = re.findall("^## (.*)$", markdown, re.MULTILINE)
    assert titles[:7] == [
        "Word errors",
        "Long recordings",
        "Latency",
        "Stages of a window",
        "What was kept",
        "Size and arithmetic",
        "Memory",
    ]


def test_what_a_pruned_model_loses_on_long_recordings_is_said_first(report, document, tmp_path, markdown_alone):
    _, markdown, _ = report(max_drop=60.0)
    count = len(document["recordings"]["names"])
    rate = f"{1 / (6 * count):.2%}"
    assert f"joined to {count} recordings of" in markdown.partition("## Long recordings")[2].partition("\n## ")[0]
    joined = 1 + document["accuracy"]["names"].index(document["recordings"]["names"][-1].partition(" to ")[2])
    left = len(document["accuracy"]["names"]) - joined
    assert (f"Not joined: the last {left} of 13 clips" in markdown) == (left > 0)
    assert f"| {rate} |" in markdown
    assert "it loses more" not in markdown
    document["recordings"]["word_errors"]["roles"]["slim"]["deletions"] = [6] * count
    _, markdown, _ = report(max_drop=60.0)
    lost = f"{100 * (6 * count + 1 - 1) / (6 * count):g} points lost"
    before = markdown.partition("## Word errors")[0]
    assert f"and on clips joined to long recordings {lost}" in before
    assert "On clips joined to long recordings it loses more: a loss of 100 points" in before
    analysis = analyse(read_results(tmp_path / "results.json"))
    card, rows = headline_cards(analysis, 60.0)[0], headline_rows(analysis)
    assert (card.figure, card.what, card.tone) == (lost, "word error rate on clips joined to long recordings", "bad")
    slim = f"{1 + 1 / (6 * count):.2%}"
    assert rows[-1] == ("word error rate, clips joined to long recordings", rate, slim, lost)
    document["recordings"] = None
    assert "Long recordings were not measured" in report()[1]


def test_the_stages_and_what_follows_from_them(report, document, markdown_alone):
    _, markdown, _ = report()
    seconds = {role: sum(document["accuracy"]["roles"][role]["seconds"]) for role in ("dense", "slim")}
    factors = [seconds[role] / sum(document["accuracy"]["audio_s"]) for role in ("dense", "slim")]
    ratio = factors[1] / factors[0]
    for row in (
        "| encoder (front end, and keys and values for the decoder) | 60.00 ms | 48.00 ms | 0.800× |",
        "| first token (the prompt goes through the decoder) | 10.00 ms | 8.00 ms | 0.800× |",
        "| each later token | 10.00 ms | 8.00 ms | 0.800× |",
        f"| tokens per second of decoder time | {TOKENS / 0.04:.1f} | {TOKENS / 0.032:.1f} | 1.250× |",
        f"| real-time factor (RTF) | {factors[0]:.4f} | {factors[1]:.4f} | {ratio:.3f}× |",
        f"| RTFx, its inverse | {1 / factors[0]:,.1f} | {1 / factors[1]:,.1f} | {1 / ratio:.3f}× |",
    ):
        assert row in markdown, row
    assert f"{TOKENS} generated tokens" in markdown
    assert markdown.count("| real-time factor") == 1, "there is one definition, and it stands once"
    assert "of evaluation clips, one after the other" in markdown
    document["accuracy"]["word_errors"] = None
    audio_s = document["latency"]["input"]["audio_s"]
    _, markdown, _ = report()
    assert f"| real-time factor (RTF) | {0.1 / audio_s:.4f} | {0.08 / audio_s:.4f} | 0.800× |" in markdown
    assert "of one full window;" in markdown
    assert set(STAGES) == set(document["latency"]["repeats"][0]["stages_ms"])


def test_the_front_end_is_a_share_of_the_encoder(report, document, markdown_alone):
    assert "front end by itself was not measured" in report()[1]
    document["latency"]["front_end_share"] = {"dense": 0.25, "slim": 0.5}
    _, markdown, _ = report()
    assert "pruning does not change it (dense 15.00 ms, slim 24.00 ms:" in markdown
    assert "| of it, front end" not in markdown
    assert "runtime's own profiler" in markdown


def test_word_errors_are_of_all_words_together(report, document, without_pictures):
    page, markdown, _ = report()
    words = sum(document["accuracy"]["word_errors"]["reference_words"])
    assert words == 37
    assert "| word error rate | 2.70% | 10.81% |" in markdown
    assert "| errors, of reference words | 1 of 37 | 4 of 37 |" in markdown
    assert "| substituted / deleted / inserted (S/D/I) | 1 / 0 / 0 | 1 / 1 / 2 |" in markdown
    assert "a loss of 8.11 points" in page.text
    assert "S/D/I 1 / 0 / 0 → 1 / 1 / 2" in page.text
    assert "| the same, relative to dense | +300.00%" in markdown
    assert "Metric: word error rate by hand" in markdown
    for row in (
        "words left out | 0.00% | 2.70%",
        "loops | 0 (0.00%) | 0 (0.00%)",
        "nothing heard | 1 (7.69%) | 1 (7.69%)",
    ):
        assert f"| {row} |" in markdown


def test_the_clips_that_lost_the_most_are_shown_word_for_word(report, markdown_alone):
    _, markdown, _ = report()
    assert "| clip-12.wav | off | (nothing) | (nothing) | 0 → 3 |" in markdown


def test_a_loop_is_counted(report, document, markdown_alone):
    document["accuracy"]["roles"]["slim"]["compression_ratios"][2] = 3.1
    assert "| loops | 0 (0.00%) | 1 (7.69%) |" in report()[1]


@pytest.mark.parametrize(("max_drop", "verdict"), [(20.0, "PASS"), (5.0, "FAIL"), (None, None)])
def test_the_gate_is_in_points_of_word_error_rate(report, max_drop, verdict, without_pictures):
    page, markdown, paths = report(max_drop=max_drop)
    assert (paths.gate.verdict if paths.gate else None) == verdict
    if verdict:
        assert "a rise of 8.11 points of word error rate (+300.0% of dense's rate)" in paths.gate.sentence
        assert paths.gate.sentence[1:] in page.text
    else:
        assert "No gate was set" in markdown


def test_the_gate_says_a_fall_and_what_is_unknown():
    better = judge_word_gate(word_error_change([3, 3], [1, 1], [10, 10]), 0.0)
    assert better.verdict == "PASS"
    assert better.sentence.startswith("a fall of 20.00 points")
    assert judge_word_gate(None, 1.0, "no clips").sentence == (
        "the change of the word error rate was not measured (no clips)"
    )
    close = judge_word_gate(word_error_change([0] * 20, [0] * 19 + [1], [5] * 20), 1.5)
    assert close.verdict == "PASS"
    assert "more clips would be needed" in close.sentence


def test_transcripts_whose_errors_nobody_counted(report, document, without_pictures):
    document["accuracy"]["word_errors"] = None
    page, markdown, paths = report(max_drop=1.0)
    assert paths.gate.verdict == "INCONCLUSIVE"
    assert "`leanear report` on a workstation counts them" in page.text
    assert "word errors were not counted" in markdown


def test_unmeasured_parts_have_reasons_and_no_figures(report, document):
    document["accuracy"].update(status="not measured", reason="no evaluation clips were given", roles={})
    document["accuracy"].update(names=[], references=[], audio_s=[], word_errors=None)
    document["latency"].update(status="failed", reason="slim: killed", log_tail=["bye"], repeats=[], session={})
    document["clips"] = None
    page, markdown, _ = report(max_drop=1.0)
    assert "no evaluation clips were given" in page.text
    assert markdown.count("killed") >= 2
    assert "real-time factor" not in markdown


def test_the_proof_is_of_tokens(report, document, markdown_alone):
    document["artifacts"]["slim"]["parity"] = {
        "relative_difference": 2e-5, "bound": 1e-4, "clips": 8, "same_top1": 8, "tokens": 192, "same_tokens": 192,
    }  # fmt: skip
    assert "logits within 2e-05 of their scale (bound 0.0001), 192 of 192 tokens the same on 8 golden" in report()[1]


def test_the_three_kinds_of_attention(report):
    page, markdown, _ = report()
    widths, _ = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "Channels kept" in a["aria-label"]]
    for kind in ("encoder self-attention", "decoder self-attention", "cross-attention, decoder to encoder"):
        assert kind in widths
        assert kind in page.text
    assert "| cross-attention, decoder to encoder | 1,000 | 400 | 60.0% |" in markdown
    assert "| cross-attention, decoder to encoder, layer 0 | 1 of 2 | 4, – | 8, – |" in markdown
    assert "| encoder self-attention, layer 1 | 2 of 2 | 4, 5 | 8, 8 |" in markdown


def test_the_cache_and_the_memory(report, document, markdown_alone):
    for role, step in (("dense", 0), ("slim", 400_000)):
        document["memory"]["roles"][role]["rss_run_bytes"] = [10**8 + step * run for run in range(40)]
    _, markdown, _ = report()
    assert "| keys and values of one token | 0.5 kB | 0.3 kB | 0.500× |" in markdown
    assert "| of all 24 positions | 12.3 kB | 6.1 kB | 0.500× |" in markdown
    assert "| cross-attention, once per window | 10.2 kB | 3.2 kB | 0.312× |" in markdown
    assert "| all of it | 22.5 kB | 9.3 kB | 0.415× |" in markdown
    assert "| the same as the graphs hold it, padded | 22.5 kB | 11.7 kB | 0.518× |" in markdown
    assert "**It grows: from the second quarter" in markdown
    assert "dense +0.0 MB over 40 inferences, slim +8.0 MB over 40 inferences" in markdown
    document["memory"]["roles"]["slim"]["rss_run_bytes"] = [10**8] * 40
    assert "It is flat" in report()[1]


@pytest.mark.parametrize(
    ("slim", "graph", "said"),
    [
        ("fp32", "fp32", "(float32)"),
        ("fp16", "fp16", "(dense in float32, slim in float16)"),
        ("bf16", "fp32", "(float32, which bf16 leaves them in)"),
    ],
)
def test_the_numbers_that_a_cache_is_counted_in(report, document, slim, graph, said, markdown_alone):
    document["options"]["precisions"]["slim"] = slim
    document["artifacts"]["slim"]["graphs"]["decoder"]["precision"] = graph
    assert f"Counted from the manifests' shapes {said}; graphs fill" in report()[1].replace("\\", "")


def test_the_short_table(document, tmp_path):
    write_results(tmp_path / "r.json", document)
    rows = {row[0]: row[1:] for row in headline_rows(analyse(read_results(tmp_path / "r.json")))}
    assert rows["word error rate"] == ("2.70%", "10.81%", "8.11 points lost")
    assert rows["window, 4 tokens"] == ("100.00 ms", "80.00 ms", "0.800×")
    assert rows["each token"] == ("10.00 ms", "8.00 ms", "0.800×")
    assert rows["cache of keys and values"] == ("22.5 kB", "9.3 kB", "0.415×")
    document["accuracy"]["word_errors"] = None
    write_results(tmp_path / "r.json", document)
    rows = {row[0]: row[1:] for row in headline_rows(analyse(read_results(tmp_path / "r.json")))}
    assert rows["word error rate"] == ("not counted", "not counted", "-")


def test_intervals_come_from_the_clips(document, tmp_path):
    counted = document["accuracy"]["word_errors"]
    dense, slim = (
        np.sum([counted["roles"][role][kind] for kind in ("substitutions", "deletions", "insertions")], axis=0)
        for role in ("dense", "slim")
    )
    words = np.array(counted["reference_words"])
    generator = np.random.default_rng(5)
    draws = generator.integers(SENTENCES, size=(4000, SENTENCES))
    changes = (slim[draws].sum(axis=1) - dense[draws].sum(axis=1)) / words[draws].sum(axis=1)
    change = word_error_change(dense, slim, words).change
    assert change.low == pytest.approx(np.percentile(changes, 2.5), abs=0.01)
    assert change.high == pytest.approx(np.percentile(changes, 97.5), abs=0.02)
