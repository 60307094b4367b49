"""Word errors of transcripts against references, after Whisper's own text normaliser."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leanear.runtimes.errors import BadInput

ENGLISH = ("en", "english")
LETTER_BY_LETTER = ("zh", "ja", "th", "lo", "my", "yue")  # written without spaces between words


@dataclass(frozen=True)
class Normaliser:
    """What is done to reference and transcript alike before their words are compared, and its name with versions."""

    name: str
    apply: Callable[[str], str]

    @property
    def metric(self) -> str:
        """The metric in full, for whoever wants to compute it again."""
        return f"word error rate by jiwer {importlib.metadata.version('jiwer')}, after {self.name}"


@dataclass(frozen=True)
class WordErrors:
    """Words per clip: of the normalised reference, and how many were replaced, left out and put in."""

    metric: str
    reference_words: tuple[int, ...]
    substitutions: tuple[int, ...]
    deletions: tuple[int, ...]
    insertions: tuple[int, ...]

    @property
    def errors(self) -> tuple[int, ...]:
        """All three kinds together, per clip."""
        return tuple(map(sum, zip(self.substitutions, self.deletions, self.insertions, strict=True)))


def choose_normaliser(language: str | None, spellings: Mapping[str, str] | None = None) -> Normaliser:
    """Whisper's English normaliser for "en", its basic one for any other language or where it is not known.

    spellings: British to American, the tokenizer's normalizer.json; without it spellings are left as they are.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    version = f"transformers {importlib.metadata.version('transformers')}"
    if language in ENGLISH:
        said = f"{len(spellings):,} spellings" if spellings else "no spelling map"
        return Normaliser(f"EnglishTextNormalizer of {version}, {said}", EnglishTextNormalizer(dict(spellings or {})))
    split = language in LETTER_BY_LETTER
    said = ", letter by letter" if split else ""
    return Normaliser(f"BasicTextNormalizer of {version}{said}", BasicTextNormalizer(split_letters=split))


def count_word_errors(references: Sequence[str], transcripts: Sequence[str], normaliser: Normaliser) -> WordErrors:
    """The word errors of each transcript against its reference, both normalised, by jiwer's alignment.

    Raises:
        BadInput: the references have no word left after normalising, so that there is no rate.
    """
    import jiwer

    counts = []
    for reference, transcript in zip(references, transcripts, strict=True):
        wanted, found = (" ".join(normaliser.apply(text).split()) for text in (reference, transcript))
        if wanted:
            aligned = jiwer.process_words(wanted, found)
            length = aligned.hits + aligned.substitutions + aligned.deletions
            counts.append((length, aligned.substitutions, aligned.deletions, aligned.insertions))
        else:
            counts.append((0, 0, 0, len(found.split())))
    if not any(length for length, *_ in counts):
        raise BadInput("no reference has a word in it after normalising, so there is no word error rate")
    words, substitutions, deletions, insertions = zip(*counts, strict=True)
    return WordErrors(normaliser.metric, words, substitutions, deletions, insertions)
