"""The report says what the results say, in every case a reader may meet, and escapes what it is given."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from leanear.benchmarks.analysis import analyse
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report.headline import headline_cards, headline_rows, headline_text, headline_verdict
from leanear.benchmarks.report.report import write_report
from leanear.benchmarks.report.sections import Extra
from leanear.benchmarks.results import Results, read_results, write_results
from leanear.benchmarks.summary import Interval
from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.sessions import SessionOptions

PLAN = {
    "schema": "leanear-plan-1",
    "dense_head_width": 16,
    "sparsity": 0.4321,
    "recipe": {"scheme": "channels", "calibration_clips": 350},
    "sites": [
        {
            "name": f"layers.{layer}.attention",
            "dense_heads": 3,
            "heads": [
                {"head": head, "query_key": list(range(4 + head)), "value_output": list(range(9 + layer))}
                for head in range(3)
                if (layer, head) != (1, 2)
            ],
        }
        for layer in range(2)
    ],
}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects a page's tags, its text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def document(null_results):
    """Results that a test may change: 4 processes each, dense at 12 ms, slim at 10 ms, 166 samples a process."""
    changed = copy.deepcopy(null_results.document)
    generator = np.random.default_rng(0)
    template = changed["latency"]["repeats"][0]
    changed["latency"]["order"] = ["dense", "slim", "slim", "dense"] * 2
    changed["latency"]["repeats"] = [
        {
            **template,
            "role": role,
            "repeat": place // 2,
            "samples_ms": [float(ms) for ms in {"dense": 12, "slim": 10}[role] + generator.gamma(2, 0.1, 166)],
        }
        for place, role in enumerate(changed["latency"]["order"])
    ]
    changed["device_before"]["cpu_busy_share"] = 0.01
    return changed


@pytest.fixture
def report(document, tmp_path):
    """A function that writes the report of `document` and gives its page, its Markdown and its paths."""

    def write(**options):
        write_results(tmp_path / "results.json", document)
        paths = write_report(tmp_path / "results.json", tmp_path / "out", **{"plan": PLAN, **options})
        return Page(paths.html.read_text()), paths.markdown.read_text(), paths

    return write


def test_two_precisions_are_said_before_any_comparison(report, document, without_pictures):
    assert "precision" not in report()[1].split("##")[0]
    document["options"]["precisions"] = {"dense": "fp32", "slim": "int8"}
    page, markdown, paths = report()
    assert "1 thread, dense in fp32, slim in int8, measured" in page.text
    assert "The slim model computes in int8, the dense one in fp32: every comparison is between these two" in markdown
    rows = headline_rows(analyse(read_results(paths.markdown.parent.parent / "results.json")))
    assert rows[0] == ("precision", "fp32", "int8", "-")
    assert "They count the same in fp32 and in int8, which take different time." in markdown


def test_the_proof_of_8_bits_is_of_their_noise(report, document, markdown_alone):
    proved = {"relative_difference": 0.017, "bound": 0.1, "clips": 8, "same_top1": 7, "tokens": None, "noise": 0.0342}
    document["artifacts"]["slim"]["parity"] = proved
    _, markdown, _ = report()
    assert "8 bits move the logits by 0.034 of their spread (bound 0.1), same first label on 7 of 8 golden" in markdown


def test_the_proof_of_a_whisper_in_8_bits_is_of_nats_and_words(report, document, markdown_alone):
    proved = {"relative_difference": 0.047, "bound": 0.03, "clips": 8, "same_top1": 5, "tokens": 192, "noise": None}
    proved |= {"divergence": 0.00165, "words": 147, "changed_words": 6, "left_in_float32": ["layers.3.active"]}
    document["artifacts"]["slim"]["parity"] = proved
    said = "8 bits cost 0.0016 nats a token (bound 0.03) and change 6 of 147 words of 8 golden clips"
    assert f"{said}; left in float32: layers.3.active" in report()[1]
    proved["left_in_float32"] = []
    assert "left in float32" not in report()[1]


def set_medians(document, dense, slim):
    for repeat in document["latency"]["repeats"]:
        shift = {"dense": dense, "slim": slim}[repeat["role"]] - float(np.median(repeat["samples_ms"]))
        repeat["samples_ms"] = [ms + shift for ms in repeat["samples_ms"]]


def test_the_page_is_whole_and_needs_nothing_else(report):
    page, _, paths = report(max_drop=5.0)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    source = paths.html.read_text()
    assert not re.search(r"https?:|url\((?!#)|@import|\b(src|href)=(?!\"#)|\bon\w+=", source)
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_every_picture_says_in_words_what_it_shows(report):
    page, markdown, _ = report()
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) >= 5
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 30
    assert "4 of 6 heads" not in markdown
    assert "5 of 6 heads are kept" in markdown


def test_the_headline_is_the_ratio_of_the_medians(report, document, without_pictures):
    page, markdown, _ = report(max_drop=5.0)
    flat = {
        role: np.concatenate([r["samples_ms"] for r in document["latency"]["repeats"] if r["role"] == role])
        for role in ("dense", "slim")
    }
    ratio = np.median(flat["dense"]) / np.median(flat["slim"])
    assert f"{ratio:.2f}× faster" in page.text
    assert f"{np.median(flat['slim']):.2f} ms" in page.text
    assert f"{np.percentile(flat['slim'], 99):.2f}" in markdown
    assert f"MACs promise 1.60×, and {ratio:.2f}× was measured" in page.text


def test_percentiles_without_enough_samples_are_not_printed(report, document, without_pictures):
    for repeat in document["latency"]["repeats"]:
        repeat["samples_ms"] = repeat["samples_ms"][:20]
    page, _, _ = report()
    assert "n/a (n=80)" in page.text
    assert "80 samples are too few" in page.text


@pytest.mark.parametrize(
    ("dense", "slim", "said"),
    [(10.0, 10.1, "; no faster;"), (10.0, 12.0, "; slower, 0.83× as fast"), (10.0, 5.0, "; 2.00× as fast (")],
)
def test_a_missing_speed_up_is_said_plainly(report, document, dense, slim, said, without_pictures):
    set_medians(document, dense, slim)
    page, markdown, _ = report()
    assert said in page.text
    assert said in markdown.replace("\\", "")


def test_a_disturbed_machine_is_said(report, document, without_pictures):
    before = report()[0]
    assert "disturbed" not in before.text
    assert re.search(r"; 1\.\d\d× as fast \(1\.\d\d to 1\.\d\d\); ", before.text), "the verdict has the interval"
    document["device_before"]["cpu_busy_share"] = 0.6
    page, _, paths = report()
    reason = "other processes kept the cores 60% busy before the benchmark began"
    assert re.search(rf"; speed not to be trusted, 1\.\d\d× as fast \(\S+ to \S+\) as measured: {reason}; ", page.text)
    assert not re.search(r"1\.\d\d× (faster|as fast \(\S+ to \S+\);)", page.text), "it is not what is led with"
    *table, verdict = headline_text(read_results(paths.markdown.parent.parent / "results.json")).splitlines()
    assert any(line.startswith("median latency ") and line.endswith("×, not trusted") for line in table)
    assert "; speed not to be trusted, 1." in verdict


def test_a_speed_up_within_the_noise_is_said_in_the_short_table(document):
    """Half of the dense processes take 9 ms, half 11, and the slim ones 9.7."""
    for repeat in document["latency"]["repeats"]:
        repeat["samples_ms"] = [9.7 if repeat["role"] == "slim" else (9.0, 11.0)[repeat["repeat"] % 2]] * 166
    analysis = analyse(Results(Path("r.json"), document))
    rows = {row[0]: row[3] for row in headline_rows(analysis)}
    assert rows["median latency"] == "0.970×, within the noise"
    assert "speed not decided: 1.03× as fast (0.93 to 1.13)" in headline_verdict(analysis, None).text


def test_a_processor_that_the_graphs_were_not_proved_on_is_said(report, document, markdown_alone):
    document["device"]["architecture"] = "aarch64"
    assert "proved on" not in report()[1], "of files from before that was written down"
    for role, machine in (("dense", "aarch64"), ("slim", "x86_64")):
        document["artifacts"][role]["parity"] = {"relative_difference": 1e-6, "bound": 1e-4, "architecture": machine}
    said = "Measured on aarch64, while the graphs were proved on x86_64; no check of the engines was passed on it."
    assert said in report()[1].replace("\\", "")
    document["check"] = {"status": "ok", "reason": "", "log_tail": [], "roles": {}}
    assert "proved on x86_64; the check of the engines was passed on it." in report()[1].replace("\\", "")
    document["artifacts"]["slim"]["parity"]["architecture"] = "aarch64"
    assert "were proved on" not in report()[1]


@pytest.mark.parametrize(("max_drop", "verdict"), [(5.0, "PASS"), (-100.0, "FAIL"), (None, None)])
def test_the_gate(report, max_drop, verdict, without_pictures):
    page, markdown, paths = report(max_drop=max_drop)
    assert (paths.gate.verdict if paths.gate else None) == verdict
    assert (verdict or "No gate was set") in page.text
    assert (verdict or "No gate was set") in markdown


def test_an_unmeasured_accuracy_is_inconclusive(report, document, without_pictures):
    document["accuracy"].update(status="not measured", reason="no evaluation clips were given", roles={})
    document["accuracy"].update(label_ids=[], names=[], labels=[], kl_dense_slim_nats=None)
    document["clips"] = None
    page, _, paths = report(max_drop=1.0)
    assert paths.gate.verdict == "INCONCLUSIVE"
    assert "no evaluation clips were given" in page.text


def test_failed_parts_show_reason_and_log_and_no_figure(report, document):
    log = ["Traceback", "MemoryError: <b>no</b>"]
    failure = {"status": "failed", "reason": "slim: the process was ended by SIGKILL", "log_tail": log}
    document["latency"].update(failure, repeats=[], session={})
    document["memory"].update(failure, roles={})
    page, markdown, _ = report()
    assert "MemoryError: <b>no</b>" in page.text
    assert "SIGKILL" in markdown
    assert "not measured" in page.text
    assert not re.search(r"\b0(\.0+)? ms", page.text)


def test_one_artifact_alone(slim_folder, tmp_path, run_in_one_process):
    options = SessionOptions(threads=1)
    out = tmp_path / "r.json"
    benchmark(None, slim_folder, None, "null", options, out, budget_s=0.3, samples=12, repeats=3)
    paths = write_report(out, tmp_path / "out", max_drop=1.0)
    page = Page(paths.html.read_text())
    assert "nothing here is a comparison" in page.text
    assert "slim" not in paths.markdown.read_text().replace("# slim on null", ""), "but the name that it was given"
    *table, verdict = headline_text(read_results(out)).splitlines()
    assert {len(line) for line in table} == {len(table[0])}
    assert table[0].split() == ["model"]
    assert verdict.startswith("Measured by itself: nothing here is a comparison.")
    assert "no dense artifact to compare with" in page.text
    assert "faster" not in page.text


def test_what_is_given_is_escaped(report, document):
    nasty = "<script>alert('x')</script>|`*"
    document["artifacts"]["slim"]["model"]["source"] = nasty
    document["latency"]["input"]["source"] = nasty
    document["accuracy"]["labels"] = [nasty] * 4
    plan = copy.deepcopy(PLAN)
    plan["sites"][0]["name"] = nasty
    page, markdown, paths = report(plan=plan, extra=Extra(notes=(nasty,), provenance={nasty: nasty}))
    assert "<script" not in paths.html.read_text()
    assert nasty in page.text
    assert "<script" not in markdown.replace("\\<", "")
    for line in markdown.splitlines():
        if line.startswith("|") and "alert" in line:
            assert line.replace("\\|", "").count("|") in (3, 4, 6)


def test_extra_reaches_the_reader(report, without_pictures):
    page, markdown, _ = report(extra=Extra(title="My model", provenance={"data": "my clips"}, notes=("It is new.",)))
    for said in ("My model", "my clips", "It is new."):
        assert said in page.text
        assert said in markdown


def test_no_folder_of_this_machine_is_told(report, document):
    document["command"] = ["leanear", "bench", "/home/someone/a/slim", "--data=/home/someone/clips/"]
    document["accuracy"].update(status="failed", reason="slim: it died", roles={}, kl_dense_slim_nats=None)
    document["accuracy"]["log_tail"] = ['File "/home/someone/.venv/x.py", line 3', "/sys/class/thermal/zone0"]
    extra = Extra(provenance={"model": "/home/someone/a/model"}, notes=("(/home/someone/note)",))
    page, markdown, _ = report(extra=extra)
    for text in (page.text, markdown):
        assert "someone" not in text
        for shown in (
            "leanear bench …/slim --data=…/clips/",
            'File "…/x.py"',
            "…/model",
            "(…/note)",
            "/sys/class/thermal",
        ):
            assert shown in text


def test_labels_that_moved_and_the_confusions_behind_it(report, document, markdown_alone):
    truth = [0, 0, 0, 1, 1, 2, 2, 3] * 5
    dense = [0, 0, 1, 1, 1, 2, 3, 3] * 5
    slim = [0, 3, 3, 1, 1, 2, 2, 3] * 5
    document["accuracy"].update(label_ids=truth, labels=["dog", "rain", "wind", "saw"])
    for role, answers in (("dense", dense), ("slim", slim)):
        document["accuracy"]["roles"][role]["predicted_ids"] = answers
    _, markdown, _ = report()
    assert "Labels that lost or gained, all 2 (the other 2 did not):" in markdown
    assert "| “dog” | 10 → 5 of 15 | 33.33 points lost |" in markdown
    assert "| “wind” | 5 → 10 of 10 | 50 points gained |" in markdown
    assert markdown.index("| “dog” | 10") < markdown.index("| “wind” | 5")
    rows = ["“dog” → “saw” | 0 → 10", "“dog” → “rain” | 5 → 0", "“wind” → “saw” | 5 → 0"]
    places = [markdown.index(f"| {row} |") for row in rows]
    assert places == sorted(places)


def test_the_same_results_give_the_same_bytes(report):
    first = [path.read_bytes() for path in (lambda paths: (paths.html, paths.markdown))(report()[2])]
    second = [path.read_bytes() for path in (lambda paths: (paths.html, paths.markdown))(report()[2])]
    assert first == second


def test_the_widths_of_every_head_are_listed(report, markdown_alone):
    _, markdown, _ = report()
    assert "| layer 0 | 3 of 3 | 4, 5, 6 | 9, 9, 9 |" in markdown
    assert "| layer 1 | 2 of 3 | 4, 5, – | 10, 10, – |" in markdown


def test_removed_heads_of_wide_models_are_crossed_out(report):
    plan = copy.deepcopy(PLAN)
    for site in plan["sites"]:
        site["dense_heads"] = 20
    _, _, paths = report(plan=plan)
    pictures = re.findall(r"<svg[^>]*Channels kept.*?</svg>", paths.html.read_text())
    assert [picture.count(">×</text>") for picture in pictures] == [17 + 18] * 2


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_a_library_nothing_is_half_written(library, null_results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RuntimeUnavailable, match=f"pip install {library}"):
        write_report(null_results.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_short_table(null_results):
    rows = {row[0]: row[1:] for row in headline_rows(analyse(null_results))}
    assert rows["parameters"] == ("1,600", "1,000", "0.625×")
    assert rows["accuracy"] == ("75.00%", "75.00%", "0 points")
    assert rows["median latency"][0] == "not measured"


@pytest.mark.parametrize(
    ("points", "figure"),
    [((0.24, -0.2, 0.6), "0.24 points lost"), ((0.001, -0.2, 0.6), "0 points"), ((0.4, 0.1, 0.8), "0.4 points lost")],
)
def test_no_loss_is_not_said_beside_a_loss(null_results, points, figure):
    lost, least, most = (each / 100 for each in points)
    analysis = analyse(null_results)
    change = replace(analysis.change, change=Interval(-lost, -most, -least))
    card = headline_cards(replace(analysis, change=change), None)[0]
    assert card.figure == figure
    assert (", a loss of" in card.detail) == (figure != "0 points")
