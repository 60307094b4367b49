"""What voice activity detection and hot words are worth: word errors of speech with pauses, and rare words recalled.

    python -m leanear.benchmarks.peers.whisper_voice vad ARTIFACT --data DATA --noises FOLDER [--seed 0]
    python -m leanear.benchmarks.peers.whisper_voice hotwords ARTIFACT --data DATA

ARTIFACT is a Whisper's for ONNX Runtime; DATA has test/ with transcripts, and train/ for `hotwords`, whose rare words
are shown beside those that are to be found, so that the list holds words that nobody says. `vad` joins test clips with
3 to 15 s between them, of silence, faint noise, or a noise from FOLDER, until MINUTES are full, and hears that with
and without. Words are compared after Whisper's own normaliser.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from leanear.data.audio import read_waveform
from leanear.data.clips import read_examples_for
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.data.word_errors import Normaliser, choose_normaliser, count_word_errors
from leanear.export.whisper.voice import packaged_voice_graph
from leanear.families.registry import read_spellings
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.sessions import SessionOptions, SpeechSession, own_precision
from leanear.runtimes.speech import search
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.long_audio import transcribe
from leanear.runtimes.speech.search import TokenRules
from leanear.runtimes.speech.speech_model import SpeechModel, read_speech_model
from leanear.runtimes.speech.tokens.vocabulary import text_tokens
from leanear.runtimes.speech.transcript import Tally
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.runtimes.voice.graph import VoiceGraph, load_voice_graph
from leanear.runtimes.voice.speech_only import SpeechOnly, VoiceRules

RATE_HZ = 16_000
GAP_S = (3.0, 15.0)
FAINT = 0.002  # of full scale
NOISE_PEAK = 0.3
RARE_LETTERS, RARE_TIMES, DISTRACTORS = 6, 2, 20


def main() -> int:
    options = parse()
    try:
        artifact = read_artifact(options.artifact)
        runs_in = SessionOptions(threads=options.threads, precision=own_precision(artifact, "onnxruntime"))
        session = require_runtime("onnxruntime", runs_in).load(artifact, runs_in)
        model, normaliser = read_speech_model(artifact), choose_normaliser("en", read_spellings(options.artifact))
        splits = read_splits(Path(options.data), 10_000, 0, column_for(SPEECH_TASK))
        clips = read_examples_for(SPEECH_TASK, splits.evaluation, (), RATE_HZ)
        if options.part == "vad":
            compare_vad(session, model, clips, normaliser, options)
        else:
            others = read_examples_for(SPEECH_TASK, splits.calibration, (), RATE_HZ).texts or ()
            compare_hotwords(session, model, clips, others, normaliser)
    except LeanearError as error:
        print(f"leanear: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("vad", "hotwords"))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--noises", type=Path, help="a folder of noises, of any depth")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pauses", default="2,inf", help="seconds that end a window; inf: speech is joined")
    parser.add_argument("--silences", default="1", help="seconds of silence that end speech")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def compare_vad(
    session: SpeechSession, model: SpeechModel, clips: Clips, normaliser: Normaliser, options: argparse.Namespace
) -> None:
    audio, reference, speech_s = joined(clips, options.noises, 60 * options.minutes, options.seed)
    print(f"{len(audio) / RATE_HZ:.1f} s, of them {speech_s:.1f} s clips, seed {options.seed}", flush=True)
    run = load_voice_graph(packaged_voice_graph(), "onnxruntime")

    def tell(name: str, waveform: np.ndarray | SpeechOnly) -> None:
        tally, start = Tally(), time.perf_counter()
        said = "".join(each.text for each in transcribe(session, model, waveform, DecodeOptions(), tally))
        seconds = time.perf_counter() - start
        kept = "" if isinstance(waveform, np.ndarray) else f", kept {waveform.kept.speech_s:.1f} s"
        print(f"{name}: {errors_text([reference], [said], normaliser)}; {seconds:.1f} s, {tally.windows} windows, "
              f"{tally.heard_again} second tries{kept}", flush=True)  # fmt: skip

    tell("without", audio)
    for silence_s in map(float, options.silences.split(",")):
        for pause_s in map(float, options.pauses.split(",")):
            pause_s = 1e6 if math.isinf(pause_s) else pause_s
            rules = VoiceRules(silence_s=silence_s)
            tell(f"with, silence {silence_s:g} s, pause {pause_s:g} s",
                 SpeechOnly(audio, VoiceGraph(run), rules, pause_s))  # fmt: skip


def joined(clips: Clips, noises: Path, most_s: float, seed: int) -> tuple[np.ndarray, str, float]:
    """Clips with something between them, what was said in them, and their seconds."""
    generator = np.random.default_rng(seed)
    files = sorted(path for path in noises.rglob("*.ogg"))
    parts: list[np.ndarray] = []
    texts: list[str] = []
    speech_s, total_s = 0.0, 0.0
    for number in generator.permutation(len(clips)):
        gap = round(generator.uniform(*GAP_S) * RATE_HZ)
        between = np.zeros(gap, np.float32)
        kind = generator.integers(3)
        if kind == 1:
            between = (FAINT * generator.standard_normal(gap)).astype(np.float32)
        elif kind == 2:
            noise = read_waveform(files[generator.integers(len(files))], RATE_HZ)
            noise = noise * (NOISE_PEAK / max(float(np.abs(noise).max()), 1e-6))
            between = np.resize(noise, gap)
        clip = clips.waveforms[number]
        if total_s + (gap + len(clip)) / RATE_HZ > most_s:
            break
        parts += [between, clip]
        texts.append((clips.texts or ())[number])
        speech_s += len(clip) / RATE_HZ
        total_s += (gap + len(clip)) / RATE_HZ
    return np.concatenate(parts), " ".join(texts), speech_s


def compare_hotwords(
    session: SpeechSession, model: SpeechModel, clips: Clips, others: Sequence[str], normaliser: Normaliser
) -> None:
    texts = clips.texts or ()

    def heard(options: DecodeOptions) -> list[str]:
        return ["".join(each.text for each in transcribe(session, model, clip, options)) for clip in clips.waveforms]

    plain = heard(DecodeOptions())
    counts = Counter(word for text in texts for word in normaliser.apply(text).split())
    lacking = missed(texts, plain, normaliser)
    wanted = sorted(word for word in lacking if is_rare(word, counts))
    elsewhere = Counter(word for text in others for word in normaliser.apply(text).split())
    unsaid = sorted(word for word in elsewhere if is_rare(word, elsewhere) and word not in counts)
    unsaid = [unsaid[place] for place in np.random.default_rng(0).permutation(len(unsaid))[:DISTRACTORS]]
    print(f"{len(wanted)} rare words missed: {', '.join(wanted)}; beside {len(unsaid)} that nobody says", flush=True)
    listed = tuple(np.random.default_rng(1).permutation([*wanted, *unsaid]).tolist())

    def tell(name: str, said: list[str]) -> None:
        recalled, times, put_in = recall(texts, said, wanted, listed, normaliser)
        print(f"{name}: {recalled} of {times} recalled, {put_in} put in where nobody said them; "
              f"{errors_text(texts, said, normaliser)}", flush=True)  # fmt: skip

    tell("without", plain)
    tell("as a prompt", heard(DecodeOptions(hotwords=listed)))
    tell("as a prompt, those that are said", heard(DecodeOptions(hotwords=tuple(wanted))))
    for first, later in ((0.0, 3.0), (1.0, 4.0), (2.0, 6.0)):
        with biased(model, listed, first, later):
            tell(f"biased by {first:g} and {later:g}", heard(DecodeOptions()))


def is_rare(word: str, counts: Counter[str]) -> bool:
    return len(word) >= RARE_LETTERS and counts[word] <= RARE_TIMES and word.isalpha()


class biased:
    """Decoding within the block adds to the logits of hot words: `first` where one may begin, `later` within it."""

    def __init__(self, model: SpeechModel, words: Sequence[str], first: float, later: float) -> None:
        spelled = [text_tokens(model.vocabulary, f" {form}", "hotwords") for word in words
                   for form in (word, word.capitalize())]  # fmt: skip

        class BiasedRules(TokenRules):
            def apply(self, scores: np.ndarray, said: Sequence[Sequence[int]], first_ends: Sequence[int] = ()) -> None:
                super().apply(scores, said, first_ends)
                for row, before in zip(scores, said, strict=True):
                    for word in spelled:
                        row[word[0]] += first if math.isfinite(row[word[0]]) else 0.0
                        for length in range(1, len(word)):
                            if tuple(before[-length:]) == word[:length] and math.isfinite(row[word[length]]):
                                row[word[length]] += later

        self._rules: Callable[[Decoding, bool], TokenRules] = BiasedRules

    def __enter__(self) -> None:
        search.TokenRules = self._rules  # type: ignore[misc, assignment]

    def __exit__(self, *_error: object) -> None:
        search.TokenRules = TokenRules  # type: ignore[misc]


def words_of_each(texts: Sequence[str], normaliser: Normaliser) -> Iterator[Counter[str]]:
    for text in texts:
        yield Counter(normaliser.apply(text).split())


def missed(texts: Sequence[str], said: Sequence[str], normaliser: Normaliser) -> Counter[str]:
    """How many times each word was said in a clip and not heard there."""
    pairs = zip(words_of_each(texts, normaliser), words_of_each(said, normaliser), strict=True)
    return sum((wanted - found for wanted, found in pairs), Counter())


def recall(
    texts: Sequence[str], said: Sequence[str], wanted: Sequence[str], listed: Sequence[str], normaliser: Normaliser
) -> tuple[int, int, int]:
    """How often the wanted words were heard where they were said, how often they were, and listed words put in."""
    lacking, extra = missed(texts, said, normaliser), missed(said, texts, normaliser)
    counts = sum(words_of_each(texts, normaliser), Counter())
    times = sum(counts[word] for word in wanted)
    return times - sum(lacking[word] for word in wanted), times, sum(extra[word] for word in listed)


def errors_text(texts: Sequence[str], said: Sequence[str], normaliser: Normaliser) -> str:
    found = count_word_errors(texts, said, normaliser)
    words = sum(found.reference_words)
    kinds = [sum(each) for each in (found.substitutions, found.deletions, found.insertions)]
    return f"{100 * sum(kinds) / words:.2f} % of {words} words wrong ({'/'.join(map(str, kinds))} S/D/I)"


if __name__ == "__main__":
    sys.exit(main())
