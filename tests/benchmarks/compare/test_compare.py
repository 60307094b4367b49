"""Comparisons whose truth is known: files made from one measurement by changing what is to be found."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from leanear.benchmarks.compare.compare import EXCEEDED, KEPT, UNCERTAIN, Bounds, compare, document_of
from leanear.benchmarks.compare.compare_page import comparison_page, said_of, verdict_sentence
from leanear.benchmarks.compare.compare_rows import BETTER, NOISE, NOT_MEASURED, SAME, WORSE
from leanear.benchmarks.device.runner import main as runner
from leanear.benchmarks.report.report import render_html, render_markdown
from leanear.runtimes.errors import BadInput, MeasurementFailed, Regressed

MIRROR = {BETTER: WORSE, WORSE: BETTER, NOISE: NOISE, SAME: SAME, NOT_MEASURED: NOT_MEASURED}


def timings(document: dict, role: str, median_ms: float, seed: int, spread: float = 0.004) -> None:
    """Give `role` steady samples around `median_ms`, its processes `spread` apart from each other."""
    generator = np.random.default_rng(seed)
    for repeat in document["latency"]["repeats"]:
        if repeat["role"] == role:
            level = median_ms * np.exp(spread * generator.standard_normal())
            samples = level * (1 + 0.02 * generator.standard_normal(60))
            repeat["samples_ms"] = [round(float(sample), 4) for sample in samples]
            for stage, share in (("encoder", 0.6), ("first_token", 0.1), ("later_tokens", 0.3)):
                if repeat["stages_ms"]:
                    repeat["stages_ms"][stage] = [share * sample for sample in repeat["samples_ms"]]
            for key, cold_ms in (("import_ms", 100.0), ("load_ms", 40.0), ("first_inference_ms", 5.0)):
                repeat[key] = float(cold_ms * np.exp(0.01 * generator.standard_normal()))


@pytest.fixture
def plain(null_results):
    """A quiet, complete measurement: slim takes 4 ms, dense 5 ms, and 10 MB are used."""
    return quiet(null_results.document)


@pytest.fixture
def speech(speech_results):
    """The same of speech, its word errors counted: 1 of 3 words on every fourth clip."""
    document = quiet(speech_results.document)
    clips = len(document["accuracy"]["names"])
    document["accuracy"]["word_errors"] = {
        "metric": "word error rate by hand",
        "reference_words": [3] * clips,
        "roles": {
            role: {"substitutions": [int(k % 4 == 0) for k in range(clips)], "deletions": [0] * clips}
            | {"insertions": [0] * clips}
            for role in ("dense", "slim")
        },
    }
    return document


def quiet(document: dict) -> dict:
    document = copy.deepcopy(document)
    document["device_before"]["cpu_busy_share"] = 0.0
    document["latency"]["sensors"]["throttling"] = {"verdict": "no sign of it", "reasons": [], "looked_at": ["a clock"]}
    for seed, (role, median_ms) in enumerate((("dense", 5.0), ("slim", 4.0))):
        timings(document, role, median_ms, seed)
        document["memory"]["roles"][role]["peak_rss_bytes"] = 10_000_000
    return document


@pytest.fixture
def against(tmp_path):
    """The comparison of two documents."""

    def compared(a: dict, b: dict, role: str = "slim", **bounds):
        for name, document in (("a", a), ("b", b)):
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        return compare(tmp_path / "a.json", tmp_path / "b.json", role, Bounds(**bounds))

    return compared


def changed(document: dict, change) -> dict:
    document = copy.deepcopy(document)
    change(document)
    return document


def verdicts(comparison) -> dict[str, str]:
    return {row.what.key: row.verdict for row in comparison.rows}


def row_of(comparison, key: str):
    return next(row for row in comparison.rows if row.what.key == key)


def state_of(comparison, key: str) -> str:
    return next(judgement.state for judgement in comparison.judgements if judgement.row.what.key == key)


def slower(document: dict, factor: float, roles: tuple[str, ...] = ("slim",)) -> None:
    for repeat in document["latency"]["repeats"]:
        if repeat["role"] in roles:
            repeat["samples_ms"] = [factor * sample for sample in repeat["samples_ms"]]


def answer_wrongly(document: dict, clips: int) -> None:
    """Slim is wrong on the first `clips` of those that it had right."""
    accuracy, left = document["accuracy"], clips
    for place, label in enumerate(accuracy["label_ids"]):
        if left and accuracy["roles"]["slim"]["predicted_ids"][place] == label:
            accuracy["roles"]["slim"]["predicted_ids"][place] = (label + 1) % len(accuracy["labels"])
            left -= 1
    assert not left


def more_clips(document: dict, times: int) -> None:
    """The evaluation clips, so many times."""
    accuracy = document["accuracy"]
    for holder in (accuracy, *accuracy["roles"].values()):
        for key in ("names", "label_ids", "predicted_ids", "cross_entropy_nats"):
            if key in holder:
                holder[key] = holder[key] * times


# --- what is found ---


@pytest.mark.parametrize("kind", ["plain", "speech"])
def test_a_file_beside_itself_is_noise(kind, against, request):
    document = request.getfixturevalue(kind)
    comparison = against(document, document)
    assert set(verdicts(comparison).values()) == {NOISE, SAME}
    assert {judgement.state for judgement in comparison.judgements} == {KEPT}
    assert comparison.failure(strict=True) is None
    assert not comparison.all_doubts
    assert comparison.paired_clips
    assert all(each.same for each in comparison.circumstances)


@pytest.mark.parametrize("seed", range(5))
def test_another_run_of_the_same_is_noise(plain, against, seed):
    def run_again(document):
        timings(document, "slim", 4.0, 100 + seed)
        timings(document, "dense", 5.0, 200 + seed)
        document["memory"]["roles"]["slim"]["peak_rss_bytes"] += 100_000

    comparison = against(plain, changed(plain, run_again))
    assert set(verdicts(comparison).values()) == {NOISE, SAME}
    assert comparison.failure(strict=True) is None


def test_a_fifth_slower_is_worse_and_beyond_the_bound(plain, against):
    comparison = against(plain, changed(plain, lambda document: slower(document, 1.2)))
    row = row_of(comparison, "latency")
    assert row.verdict == WORSE
    assert row.change == pytest.approx(1.2)
    assert row.low < 1.2 < row.high
    assert verdicts(comparison)["latency_over_dense"] == WORSE
    assert state_of(comparison, "latency") == EXCEEDED
    failure = comparison.failure(strict=False)
    assert isinstance(failure, Regressed)
    assert failure.exit_status == 8
    assert "latency, median 1.200×" in str(failure)
    assert "not to be trusted" not in str(failure)


def test_a_fifth_faster_is_better(plain, against):
    comparison = against(changed(plain, lambda document: slower(document, 1.2)), plain)
    assert verdicts(comparison)["latency"] == BETTER
    assert comparison.failure(strict=True) is None


@pytest.mark.parametrize(("factor", "verdict", "state"), [(1.015, NOISE, KEPT), (1.04, WORSE, KEPT)])
def test_a_small_change_is_noise_or_within_the_bound(plain, against, factor, verdict, state):
    comparison = against(plain, changed(plain, lambda document: slower(document, factor)))
    assert verdicts(comparison)["latency"] == verdict
    assert state_of(comparison, "latency") == state
    assert comparison.failure(strict=False) is None


def test_the_whole_interval_has_to_be_beyond_the_bound(plain, against):
    after = changed(plain, lambda document: slower(document, 1.2))
    row = row_of(against(plain, after), "latency")
    inside, outside = (100 * (bound - 1) for bound in (row.low - 0.001, row.low + 0.001))
    assert state_of(against(plain, after, max_slowdown_percent=inside), "latency") == EXCEEDED
    uncertain = against(plain, after, max_slowdown_percent=outside)
    assert state_of(uncertain, "latency") == UNCERTAIN
    assert uncertain.failure(strict=True) is None
    assert any("beyond it, but that may be chance" in sentence for sentence in said_of(uncertain))


def test_processes_that_disagree_make_noise_of_a_slowdown(plain, against):
    def restless(document):
        for factor, repeat in zip((0.8, 1.4, 1.1), [r for r in document["latency"]["repeats"] if r["role"] == "slim"]):
            repeat["samples_ms"] = [factor * sample for sample in repeat["samples_ms"]]

    assert verdicts(against(plain, changed(plain, restless)))["latency"] == NOISE


def test_a_slower_machine_is_told_from_a_slower_model(plain, against):
    after = changed(plain, lambda document: slower(document, 1.3, ("dense", "slim")))
    comparison = against(plain, after)
    assert state_of(comparison, "latency") == EXCEEDED
    assert verdicts(comparison)["latency_over_dense"] == NOISE
    assert any("took 1.300× as long in B" in doubt for doubt in comparison.all_doubts)
    assert "its timings are not to be trusted" in str(comparison.failure(strict=False))
    over_dense = against(plain, after, over_dense=True)
    assert state_of(over_dense, "latency_over_dense") == KEPT
    assert over_dense.failure(strict=True) is None
    trusted = {row.what.key: over_dense.trusts(row) for row in over_dense.rows}
    assert (trusted["latency"], trusted["latency_over_dense"], trusted["peak_memory"]) == (False, True, True)


def test_a_slower_model_on_a_slower_machine_is_found_over_dense(plain, against):
    def both(document):
        slower(document, 1.3, ("dense", "slim"))
        slower(document, 1.15)

    comparison = against(plain, changed(plain, both), over_dense=True)
    assert state_of(comparison, "latency_over_dense") == EXCEEDED
    assert row_of(comparison, "latency_over_dense").change == pytest.approx(1.15)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda d: d["artifacts"]["dense"]["graphs"]["classifier"].update(sha256="other"),
            "the dense graphs of A and B",
        ),
        (lambda d: d["options"].update(threads=7), "the threads of A and B differ"),
        (lambda d: d["options"]["precisions"].update(dense="bf16"), "the dense precisions of A and B differ"),
        (lambda d: d["latency"]["session"]["dense"].update(version="0.0.1"), "the runtimes of A and B differ"),
        (lambda d: d.update(device_name="toaster"), "the devices of A and B differ"),
    ],
)
def test_dense_is_a_control_only_where_all_else_is_the_same(plain, against, change, why):
    after = changed(plain, lambda document: slower(document, 1.3, ("dense", "slim")))
    after = changed(after, change)
    comparison = against(plain, after)
    assert "latency_over_dense" not in verdicts(comparison)
    assert not comparison.all_doubts
    asked = against(plain, after, over_dense=True)
    assert row_of(asked, "latency_over_dense").verdict == NOT_MEASURED
    assert why in row_of(asked, "latency_over_dense").note
    assert asked.failure(strict=False) is None
    assert why in str(asked.failure(strict=True))


# --- memory and sizes ---


@pytest.mark.parametrize(
    ("factor", "verdict", "state"),
    [(1.0, NOISE, KEPT), (1.015, NOISE, KEPT), (1.08, WORSE, KEPT), (1.2, WORSE, EXCEEDED), (0.9, BETTER, KEPT)],
)
def test_memory(plain, against, factor, verdict, state):
    def use(document):
        document["memory"]["roles"]["slim"]["peak_rss_bytes"] = round(10_000_000 * factor)

    comparison = against(plain, changed(plain, use))
    row = row_of(comparison, "peak_memory")
    assert (row.verdict, state_of(comparison, "peak_memory")) == (verdict, state)
    assert row.change == pytest.approx(factor)
    assert row.low is None
    assert (comparison.failure(strict=True) is None) == (state == KEPT)


def test_what_is_counted_is_never_noise(plain, against):
    def grow(document):
        model = document["artifacts"]["slim"]["model"]
        model["parameters"], model["macs"] = model["parameters"] + 8, 2 * model["macs"]

    found = verdicts(against(plain, changed(plain, grow)))
    assert (found["parameters"], found["macs"], found["graph_bytes"]) == (WORSE, WORSE, SAME)


def test_energy_is_there_where_one_side_has_it(plain, against):
    def energy(joules):
        def measured(document):
            document["sustained"].update(status="ok", reason="", roles={"slim": lasting(joules)})

        return measured

    assert "energy" not in verdicts(against(plain, plain))
    one, two = (changed(plain, energy(joules)) for joules in (0.010, 0.013))
    assert verdicts(against(one, two))["energy"] == WORSE
    assert verdicts(against(two, one))["energy"] == BETTER
    half = against(one, plain)
    assert verdicts(half)["energy"] == NOT_MEASURED
    assert "energy per inference: not measured (B: " in str(half.failure(strict=True))


def lasting(joules: float) -> dict:
    window = {"n": 5, "median_ms": 4.0, "most_ms": 5.0}
    return {
        "work": {
            "start_monotonic_s": 0.0,
            "end_monotonic_s": 10.0,
            "inferences": 2000,
            "window_s": 5.0,
            "first": window,
            "last": window,
            "median_ms_by_tenth": [4.0] * 10,
        },
        "idle": {},
        "energy": {},
        "energy_per_inference": {"status": "ok", "joules": joules, "above_idle_joules": joules, "sensor": "a rail"},
        "throttling": {"verdict": "no sign of it", "reasons": [], "looked_at": []},
        "verdict": {"ratio": 1.0, "text": "steady"},
        "sensors": {
            "start_monotonic_s": 0.0,
            "interval_s": 1.0,
            "seconds": [],
            "series": {},
            "sources": {},
            "not_measured": {},
            "sampling_cpu_s": 0.0,
        },
    }


# --- answers ---


def test_accuracy_is_paired_where_the_clips_are_the_same(plain, against):
    before = changed(plain, lambda document: more_clips(document, 5))
    after = changed(before, lambda document: answer_wrongly(document, 8))
    comparison = against(before, after)
    row = row_of(comparison, "accuracy")
    assert row.change == pytest.approx(-8 / 200)
    assert row.low < -8 / 200 < row.high < 0
    assert row.verdict == WORSE
    assert "right in A alone 8, in B alone 0, McNemar's exact p 0.0078" in row.note
    assert state_of(comparison, "accuracy") == EXCEEDED
    assert state_of(against(before, after, max_drop=4.0), "accuracy") == KEPT
    other = changed(after, lambda document: document["clips"].update(sha256="0" * 64))
    unpaired = row_of(against(before, other), "accuracy")
    assert unpaired.verdict == NOISE
    assert "not paired" in unpaired.note
    assert unpaired.high - unpaired.low > 2 * (row.high - row.low)


def test_a_few_clips_lost_may_be_chance(plain, against):
    comparison = against(plain, changed(plain, lambda document: answer_wrongly(document, 4)))
    assert row_of(comparison, "accuracy").verdict == NOISE
    assert state_of(comparison, "accuracy") == UNCERTAIN
    assert comparison.failure(strict=False) is None


def test_models_of_other_labels_are_not_compared_by_accuracy(plain, against):
    def rename(document):
        document["accuracy"]["labels"] = [f"{label}!" for label in document["accuracy"]["labels"]]

    comparison = against(plain, changed(plain, rename))
    assert row_of(comparison, "accuracy").verdict == NOT_MEASURED
    assert "the models know other labels" in str(comparison.failure(strict=True))


def test_word_errors_are_paired_by_clip(speech, against):
    def mishear(document):
        for role in document["accuracy"]["word_errors"]["roles"].values():
            role["insertions"] = [1] * len(role["insertions"])

    after = changed(speech, mishear)
    comparison = against(speech, after)
    row = row_of(comparison, "word_error_rate")
    assert row.change == pytest.approx(1 / 3)
    assert (row.low, row.high) == (None, None), "one error more on every clip, however they are drawn"
    assert row.note.endswith("every resample of the clips gives the same, which is no interval")
    assert row.verdict == WORSE
    assert state_of(comparison, "word_error_rate") == EXCEEDED
    assert verdicts(against(after, speech))["word_error_rate"] == BETTER
    other = changed(after, lambda document: document["clips"].update(sha256="0" * 64))
    unpaired = against(speech, other)
    assert row_of(unpaired, "word_error_rate").low < row.change < row_of(unpaired, "word_error_rate").high
    assert row_of(unpaired, "transcribing").verdict == NOT_MEASURED


def test_word_errors_that_were_not_counted_are_said_to_be_so(speech, against):
    after = changed(speech, lambda document: document["accuracy"].update(word_errors=None))
    comparison = against(speech, after)
    assert "`leanear report" in row_of(comparison, "word_error_rate").note
    assert comparison.failure(strict=False) is None
    assert isinstance(comparison.failure(strict=True), MeasurementFailed)
    assert "Not measured, so not judged: word error rate." in verdict_sentence(comparison, strict=False)


def test_stages_and_transcribing_of_speech(speech, against):
    def later(document):
        for repeat in document["latency"]["repeats"]:
            repeat["stages_ms"]["later_tokens"] = [1.5 * ms for ms in repeat["stages_ms"]["later_tokens"]]
        seconds = document["accuracy"]["roles"]["slim"]["seconds"]
        document["accuracy"]["roles"]["slim"]["seconds"] = [1.25 * each for each in seconds]

    comparison = against(speech, changed(speech, later))
    found = verdicts(comparison)
    assert (found["encoder"], found["first_token"], found["each_token"]) == (NOISE, NOISE, WORSE)
    assert row_of(comparison, "transcribing").change == pytest.approx(1.25)
    assert row_of(comparison, "transcribing").verdict == WORSE
    tokens = speech["latency"]["settings"]["tokens"]
    assert row_of(comparison, "each_token").a == pytest.approx(1.2 / (tokens - 1), rel=0.05)


def test_the_gpus_own_time_is_compared_where_both_have_it(plain, against):
    def on_gpu(factor):
        def told(document):
            for repeat in document["latency"]["repeats"]:
                repeat["gpu_ms"] = {"classifier": [0.5 * factor * sample for sample in repeat["samples_ms"]]}

        return told

    one, two = (changed(plain, on_gpu(factor)) for factor in (1.0, 1.3))
    assert row_of(against(one, two), "gpu_classifier").change == pytest.approx(1.3)
    assert verdicts(against(one, two))["gpu_classifier"] == WORSE
    assert row_of(against(one, plain), "gpu_classifier").note == "B: not in the file"
    assert "gpu_classifier" not in verdicts(against(plain, plain))


def test_windows_of_other_lengths_are_not_compared(speech, against):
    after = changed(speech, lambda document: document["latency"]["settings"].update(tokens=99))
    comparison = against(speech, after)
    row = row_of(comparison, "latency")
    assert row.verdict == NOT_MEASURED
    assert "and of 99 tokens" in row.note
    assert "and of 99 tokens" in str(comparison.failure(strict=True))


# --- what is missing, doubtful or different ---


@pytest.mark.parametrize(("part", "key"), [("latency", "latency"), ("memory", "peak_memory"), ("accuracy", "accuracy")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_what_one_side_lacks_is_said_and_is_no_pass_if_strict(plain, against, part, key, side):
    lacking = changed(plain, lambda document: document[part].update(status="failed", reason="it died", roles={}))
    if part == "latency":
        lacking["latency"].pop("roles")
    pair = (lacking, plain) if side == "a" else (plain, lacking)
    comparison = against(*pair)
    row = row_of(comparison, key)
    assert row.verdict == NOT_MEASURED
    assert row.note == f"{side.upper()}: failed: it died"
    assert row.change is None
    assert comparison.failure(strict=False) is None
    failure = comparison.failure(strict=True)
    assert isinstance(failure, MeasurementFailed)
    assert "it died" in str(failure)
    assert any(sentence.startswith(f"not measured: {row.what.name}") for sentence in said_of(comparison))


def test_what_neither_side_has_is_missing_where_there_is_a_bound_for_it(plain, against):
    lacking = changed(plain, lambda document: document["accuracy"].update(status="not measured", reason="no clips"))
    comparison = against(lacking, lacking)
    assert row_of(comparison, "accuracy").note == "A and B: no clips"
    assert "no clips" in str(comparison.failure(strict=True))


def test_too_few_samples_are_no_median(plain, against):
    def few(document):
        for repeat in document["latency"]["repeats"]:
            repeat["samples_ms"] = repeat["samples_ms"][:3]

    row = row_of(against(plain, changed(plain, few)), "latency")
    assert row.verdict == NOT_MEASURED
    assert "B: 9 samples are too few" in row.note


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d["latency"]["sensors"].update(
                throttling={"verdict": "throttled", "reasons": ["clock fell"], "looked_at": ["clock"]}
            ),
            "held back while latency was measured: clock fell",
        ),
        (lambda d: d["device_before"].update(cpu_busy_share=0.8), "80% busy"),
        (lambda d: d["device"].update(emulation="yes: aarch64 on an x86 processor"), "emulated"),
        (lambda d: slower(d, 1.0) or d["latency"]["repeats"][1].update(samples_ms=[1.0, 60.0] * 40), "spread by"),
        (
            lambda d: d["latency"].update(repeats=[r for r in d["latency"]["repeats"] if r["repeat"] < 2]),
            "2 processes are too few",
        ),
    ],
)
def test_doubtful_timings_are_not_to_be_trusted(plain, against, change, said):
    for name, pair in (("B", (plain, changed(plain, change))), ("A", (changed(plain, change), plain))):
        comparison = against(*pair)
        assert any(doubt.startswith(f"{name}: ") and said in doubt for doubt in comparison.doubts)
        document = document_of(comparison, strict=False)
        trusted = {row["key"]: row["trusted"] for row in document["rows"]}
        assert not trusted["latency"]
        assert trusted["accuracy"]
        assert said in str(comparison.failure(strict=True))


def test_two_devices_are_compared_and_said_to_be_two(plain, against):
    other = changed(plain, lambda document: document["device"].update(cpu="Cortex-A76"))
    other["device_name"] = "cortex-a76"
    comparison = against(plain, other)
    assert any("Cortex-A76" in mark for mark in comparison.two_devices)
    assert any(sentence.startswith("two devices: cpu: ") for sentence in said_of(comparison))
    assert not against(plain, plain).two_devices


def test_circumstances_that_differ_are_named(plain, against):
    def elsewhere(document):
        document["options"]["threads"] = 7
        document["tool"]["version"] = "9.9"
        document["artifacts"]["slim"]["graphs"]["classifier"]["sha256"] = "f" * 64
        document["device"]["governor"] = "powersave"

    comparison = against(plain, changed(plain, elsewhere))
    differing = {each.name for each in comparison.circumstances if not each.same}
    assert differing == {"threads", "leanear", "classifier graph", "governor"}
    said = "\n".join(said_of(comparison))
    assert "differs: threads: 1 in A, 7 in B" in said
    assert "ffffffffffff in B" in said


# --- mirrors ---


@pytest.mark.parametrize("kind", ["plain", "speech"])
@pytest.mark.parametrize("seed", range(4))
def test_swapping_the_sides_mirrors_everything(kind, against, request, seed):
    generator = np.random.default_rng(seed)

    def disturb(document):
        timings(document, "slim", 4 * generator.uniform(0.8, 1.3), seed + 50, 0.02)
        timings(document, "dense", 5 * generator.uniform(0.9, 1.1), seed + 60, 0.02)
        document["memory"]["roles"]["slim"]["peak_rss_bytes"] = int(generator.integers(8_000_000, 12_000_000))
        document["device_before"]["cpu_busy_share"] = float(generator.choice([0.0, 0.5]))
        document["options"]["threads"] = int(generator.integers(1, 3))
        if kind == "plain":
            answers = document["accuracy"]["roles"]["slim"]["predicted_ids"]
            document["accuracy"]["roles"]["slim"]["predicted_ids"] = [
                int(answer if generator.random() < 0.8 else 0) for answer in answers
            ]
        else:
            counts = document["accuracy"]["word_errors"]["roles"]["slim"]
            counts["deletions"] = [int(count) for count in generator.integers(0, 2, len(counts["deletions"]))]
        if seed == 3:
            document["clips"]["sha256"] = "0" * 64

    before = request.getfixturevalue(kind)
    after = changed(before, disturb)
    forward, backward = against(before, after), against(after, before)
    assert [row.what for row in forward.rows] == [row.what for row in backward.rows]
    for one, other in zip(forward.rows, backward.rows):
        assert (one.a, one.b) == (other.b, other.a)
        assert other.verdict == MIRROR[one.verdict]
        if one.change is None:
            assert other.change is None
        elif one.what.relative:
            assert other.change == pytest.approx(1 / one.change)
            if one.low is not None:
                assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low))
        else:
            assert other.change == pytest.approx(-one.change)
            if one.low is not None:
                assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert [(each.a, each.b) for each in forward.circumstances if not each.same] == [
        (each.b, each.a) for each in backward.circumstances if not each.same
    ]
    assert len(forward.all_doubts) == len(backward.all_doubts)


# --- files ---


def test_the_document_is_complete_and_plain_json(plain, against):
    comparison = against(plain, changed(plain, lambda document: slower(document, 1.2)))
    document = json.loads(json.dumps(document_of(comparison, strict=True), allow_nan=False))
    assert document["schema"] == "leanear-compare-1"
    assert document["exit_status"] == 8
    assert document["exceeded"] == ["latency"]
    assert document["a"]["content_sha256"] != document["b"]["content_sha256"]
    row = document["rows"][0]
    assert set(row) == {
        *("key", "name", "unit", "lower_is_better", "a", "b", "change", "floor", "verdict", "trusted", "note"),
        *("by_process", "bound"),
    }
    assert row["bound"] == {"limit": 1.05, "state": "exceeded", "whole_interval": True}
    assert row["change"]["is"] == "b/a"
    assert [len(side) for side in row["by_process"].values()] == [3, 3]


def test_pages(plain, against):
    nasty = changed(plain, lambda document: slower(document, 1.2))
    nasty["artifacts"]["slim"]["model"]["source"] = "<script>alert(1)</script>|x"
    page = comparison_page(against(plain, nasty), strict=False)
    markdown, html = render_markdown(page), render_html(page)
    assert "| latency, median | 4.0" in markdown
    assert "B is worse than A: latency, median 1.200×" in markdown
    assert "exceeded" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("place", ["samples_ms", "load_ms"])
@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0])
def test_a_time_that_is_none_is_named_with_its_file(plain, against, place, value):
    def spoil(document):
        repeat = next(each for each in document["latency"]["repeats"] if each["role"] == "slim")
        if place == "samples_ms":
            repeat["samples_ms"][3] = value
        else:
            repeat["load_ms"] = value

    with pytest.raises(BadInput, match=rf"b\.json: latency\.repeats.*{place}.*(is not a time|is nan)"):
        against(plain, changed(plain, spoil))


def test_two_kinds_of_model_are_refused(plain, speech, against):
    with pytest.raises(BadInput, match=r"a\.json is of .*b\.json is of whisper .*cannot be compared"):
        against(plain, speech)


def test_a_model_that_is_not_there_is_named(plain, against):
    def alone(document):
        for part in (document["artifacts"], document["memory"]["roles"], document["accuracy"]["roles"]):
            del part["dense"]
        document["latency"]["repeats"] = [r for r in document["latency"]["repeats"] if r["role"] == "slim"]

    comparison = against(plain, changed(plain, alone))
    assert "latency_over_dense" not in verdicts(comparison)
    with pytest.raises(BadInput, match=r"b\.json: it has no dense model, only slim"):
        against(plain, changed(plain, alone), role="dense")
    assert set(verdicts(against(plain, plain, role="dense")).values()) == {NOISE, SAME}


def test_folders(plain, tmp_path):
    folder = tmp_path / "deployment"
    (folder / "results" / "pi").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"deployment: no results/\*\.json in it"):
        compare(folder, folder)
    (folder / "results" / "pi" / "fp32.json").write_text(json.dumps(plain))
    (folder / "results" / ".fp32.parts").mkdir()
    (folder / "results" / ".fp32.parts" / "latency.json").write_text("{}")
    comparison = compare(folder, folder / "results" / "pi" / "fp32.json")
    assert comparison.failure(strict=True) is None
    (folder / "results" / "here.json").write_text(json.dumps(plain))
    with pytest.raises(BadInput, match=r"several results in it; name one of .*here\.json, .*pi/fp32\.json"):
        compare(folder, folder)
    with pytest.raises(BadInput, match="nothing: no such file"):
        compare(tmp_path / "nothing", folder)


# --- on a device ---


def test_the_device_runner_compares_too(plain, tmp_path, capsys):
    for name, factor in (("a", 1.0), ("b", 1.2)):
        document = changed(plain, lambda document, factor=factor: slower(document, factor))
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert runner(["compare", *files]) == 8
    printed = capsys.readouterr()
    assert "| latency, median | 4.0" in printed.out
    assert printed.err.startswith("leanear: B is worse than A: latency, median 1.200×")
    assert len(printed.err.splitlines()) == 1
    assert runner(["compare", *files, "--max-slowdown", "50", "--strict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exit_status"] == 0
    assert runner(["compare", str(tmp_path / "c.json"), files[1]]) == 2
    assert capsys.readouterr().err == f"leanear: {tmp_path}/c.json: no such file\n"


def test_a_larger_file_is_a_failure_where_its_size_is_bound(null_results, against):
    before = quiet(null_results.document)

    def grow(document):
        document["artifacts"]["slim"]["graphs"]["classifier"]["bytes"] *= 2

    after = changed(before, grow)
    assert "graph_bytes" not in [judgement.row.what.key for judgement in against(before, after).judgements]
    assert state_of(against(before, after, max_size_percent=99), "graph_bytes") == "exceeded"
    assert state_of(against(before, after, max_size_percent=101), "graph_bytes") == "kept"
    assert isinstance(against(before, after, max_size_percent=10).failure(strict=False), Regressed)
