"""Word errors against a hand-made edit distance, after Whisper's own normalisers."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from leanear.benchmarks.summary import word_error_change, word_error_rate
from leanear.data.word_errors import Normaliser, choose_normaliser, count_word_errors
from leanear.runtimes.errors import BadInput

AS_IT_IS = Normaliser("nothing", lambda text: text)


def edit_distance(wanted: list[str], found: list[str]) -> int:
    """Fewest replacements, omissions and additions, by the textbook's table."""
    table = np.zeros((len(wanted) + 1, len(found) + 1), int)
    table[:, 0], table[0] = np.arange(len(wanted) + 1), np.arange(len(found) + 1)
    for i, one in enumerate(wanted, 1):
        for j, other in enumerate(found, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one != other)
            )  # fmt: skip
    return int(table[-1, -1])


def test_errors_are_the_edit_distance_of_the_words():
    generator = np.random.default_rng(0)
    references = [" ".join(generator.choice(list("abcd"), generator.integers(1, 9))) for _ in range(60)]
    transcripts = [" ".join(generator.choice(list("abcd"), generator.integers(0, 9))) for _ in range(60)]
    counted = count_word_errors(references, transcripts, AS_IT_IS)
    for clip, (wanted, found) in enumerate(zip(references, transcripts)):
        assert counted.errors[clip] == edit_distance(wanted.split(), found.split())
        assert counted.reference_words[clip] == len(wanted.split())
        lengths = len(found.split()) - len(wanted.split())
        assert counted.insertions[clip] - counted.deletions[clip] == lengths


@pytest.mark.parametrize(
    ("wanted", "found", "kinds"),
    [
        ("the cat sat", "the cat sat", (0, 0, 0)),
        ("the cat sat", "the hat sat", (1, 0, 0)),
        ("the cat sat", "the sat", (0, 1, 0)),
        ("the cat sat", "", (0, 3, 0)),
        ("the cat sat", "oh the cat sat sat", (0, 0, 2)),
    ],
)
def test_each_kind_of_error_is_counted_as_what_it_is(wanted, found, kinds):
    counted = count_word_errors([wanted], [found], AS_IT_IS)
    assert (counted.substitutions[0], counted.deletions[0], counted.insertions[0]) == kinds
    assert counted.reference_words == (3,)


def test_the_english_normaliser_does_what_whisper_s_does():
    normaliser = choose_normaliser("en", {"colour": "color"})
    references = ["Twenty-five colours, Mr. Smith?", "It's 7 o'clock; I can't come.", "[music] the colour"]
    transcripts = ["25 colours mister smith", "it is 7 o'clock i can not come", "the color"]
    assert count_word_errors(references, transcripts, normaliser).errors == (0, 0, 0)
    assert count_word_errors(["the colour"], ["the color"], choose_normaliser("en")).errors == (1,)


def test_the_metric_names_the_normaliser_and_every_version():
    versions = {name: importlib.metadata.version(name) for name in ("jiwer", "transformers")}
    english = choose_normaliser("en", {"a": "b"}).metric
    assert (
        f"jiwer {versions['jiwer']}, after EnglishTextNormalizer of transformers {versions['transformers']}" in english
    )
    assert "1 spellings" in english
    assert "no spelling map" in choose_normaliser("en").metric
    assert "BasicTextNormalizer" in choose_normaliser("de").metric
    assert "BasicTextNormalizer" in choose_normaliser(None).metric


def test_languages_without_spaces_are_compared_letter_by_letter():
    normaliser = choose_normaliser("ja")
    assert "letter by letter" in normaliser.metric
    assert count_word_errors(["今日は晴れ"], ["今日は雨"], normaliser).reference_words == (5,)


def test_a_reference_without_words_counts_what_was_made_up():
    counted = count_word_errors(["[noise]", "yes"], ["thank you", "yes"], choose_normaliser("en"))
    assert counted.reference_words == (0, 1)
    assert counted.insertions == (2, 0)
    with pytest.raises(BadInput, match="no reference has a word"):
        count_word_errors(["[noise]", "(coughs)"], ["a", "b"], choose_normaliser("en"))


def test_the_rate_and_its_interval():
    words, errors = [10] * 50, [1] * 25 + [0] * 25
    rate = word_error_rate(errors, words)
    assert rate.estimate == pytest.approx(0.05)
    # 50 clips, each 0 or 0.1 at even odds: the standard error is 0.05 / sqrt(50) = 0.0071
    assert rate.low == pytest.approx(0.05 - 1.96 * 0.0071, abs=0.002)
    assert rate.high == pytest.approx(0.05 + 1.96 * 0.0071, abs=0.002)
    assert word_error_rate([2, 0], [1, 9]).estimate == pytest.approx(0.2), "of all words, not the mean over clips"


def test_the_change_is_paired():
    generator = np.random.default_rng(0)
    words = generator.integers(1, 12, 200)
    dense = generator.binomial(words, 0.3)
    change = word_error_change(dense, dense, words)
    assert (change.change.estimate, change.change.low, change.change.high) == (0.0, 0.0, 0.0)
    worse = dense + (np.arange(200) % 10 == 0)
    change = word_error_change(dense, worse, words)
    assert change.change.estimate == pytest.approx(20 / words.sum())
    assert 0 < change.change.low < change.change.estimate < change.change.high
    assert change.relative.estimate == pytest.approx(20 / dense.sum())
    assert (change.only_dense_better, change.only_slim_better) == (20, 0)
    assert word_error_change([0, 0], [1, 0], [4, 4]).relative is None, "nothing to divide by"
    rare = word_error_change([1, *[0] * 19], [2, *[0] * 19], [4] * 20).relative
    assert (rare.estimate, rare.high) == (1.0, 1.0), "a clip that is not drawn changes nothing"
    apart = word_error_change([1, *[0] * 19], [0, 2, *[0] * 18], [4] * 20).relative
    assert np.isinf(apart.high), "draws in which dense has no errors and slim has some"
