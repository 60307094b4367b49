"""Every kind of page in a real browser, on a telephone, a desk and paper, light and dark: nothing is cut off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.many_pages import pages
from tests.benchmarks.report.test_speech_report import PLAN as SPEECH_PLAN
from tests.benchmarks.report.test_speech_report import with_word_errors

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FAULTS = Path(__file__).with_name("page_faults.js").read_text(encoding="utf-8")
A4_PX = 688  # between margins of 14 mm
VIEWS = (
    ("telephone", 400, "screen", "light"),
    ("telephone-dark", 400, "screen", "dark"),
    ("desk", 1000, "screen", "light"),
    ("desk-dark", 1000, "screen", "dark"),
    ("paper", A4_PX, "print", "dark"),
)
KINDS = (
    "win", "loss", "undecided", "gate-missed", "disturbed", "alone", "speech", "without-host", "three-devices",
    "compare", "methods", "explore",
)  # fmt: skip
MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def browser():
    """A Chromium of this machine without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_read_everywhere(kind, browser, null_results, speech_results, tmp_path):
    written = pages(null_results, with_word_errors(speech_results.document), SPEECH_PLAN)[kind](tmp_path)
    assert written.stat().st_size < MOST_BYTES
    kept = os.environ.get("LEANEAR_SCREENSHOTS")  # a folder for pictures to look at
    page = browser.new_page()
    page.goto(written.as_uri())
    for name, width, media, scheme in VIEWS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(media=media, color_scheme=scheme)
        if kept is not None:
            page.screenshot(path=Path(kept) / f"{kind}-{name}.png", full_page=True)
        faults = page.evaluate(FAULTS)
        assert not faults, f"{name}: {faults}"
    page.close()


def test_what_is_cut_off_is_seen(browser):
    page = browser.new_page(viewport={"width": 400, "height": 900})
    texts = '<text x="80" y="15">wide</text><text x="82" y="15">w</text>'
    svg = f'<svg viewBox="0 0 99 20" width="99" aria-label="x">{texts}</svg>'
    page.set_content(f'<body><p style="width: 900px; color: #ccc; background: #fff">pale</p>{svg}</body>')
    said = " ".join(page.evaluate(FAULTS))
    for fault in (
        "px wide, of 400",
        "outside of the page: P pale",
        "pale, contrast 1.6",
        "cut off: wide",
        "over each other",
    ):
        assert fault in said
    page.close()
