"""The demo Whisper's model card; every figure in it is measured or is the recipe's own."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from leanear.studies.demo.sentences import GRAMMAR, MOST_WORDS, SPLIT_ENDS
from leanear.studies.demo.tokens import LANGUAGES, MAX_TARGET_POSITIONS, MEL_BINS, MERGES, WINDOW_SECONDS
from leanear.studies.demo.utterances import LONGEST_SECONDS, TRAIN_SPEED
from leanear.studies.demo.whisper_packaging import SHIPPED_CONDITIONS, Heard
from leanear.studies.demo.whisper_training import TRAIN_CONDITIONS, Schedule
from leanear.studies.demo.windows import Conditions
from leanear.studies.demo.words import ACCENTS, VOICES

_HEADER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: automatic-speech-recognition
language: en
tags:
- whisper
- synthetic-speech
---

# Demo Whisper: spoken sentences of a small grammar"""

_PURPOSE = """
A small Whisper (`WhisperForConditionalGeneration`), trained from nothing on synthetic speech, so that pruning,
export and benchmarks can be tried with no network. It is an example of the architecture at a size that travels with
the code, not a recogniser of people's speech."""

_ARCHITECTURE = """
**Architecture.** 4 encoder and 4 decoder layers, 3 heads of 64, model width 192, feed-forward width 384,
{millions:.2f} million parameters, float32."""

_INPUT = """
**Input.** 16 kHz mono, a window of {seconds} s where Whisper has 30: {bins} mel bins, {frames} frames, {positions}
encoder positions."""

_TOKENS = """
**Tokens.** A byte-level BPE of its own, 256 bytes and {merges} merges, trained on the training sentences; then
Whisper's special tokens in Whisper's order, with the languages {languages} (only `en` was trained); then timestamps
from `<|0.00|>` to `<|{seconds}.00|>`. At most {targets} tokens in all."""

_ACCURACY = """
Word error rate {rate:.1f} % on the {clips} evaluation clips ({errors} wrong of {words} words; 95 % interval
{low:.1f} to {high:.1f} %, clips drawn with replacement), in float32 with transformers' own `generate`: greedy,
English given, no timestamps; both texts through Whisper's `EnglishTextNormalizer`. No evaluation voice and no
evaluation sentence was heard in training, and no weight or setting of the training was chosen on one."""

# The words of this paragraph belong to SHIPPED_CONDITIONS: how that range was chosen.
HEADROOM = """
The range of the shipped clips' signal-to-noise ratio was chosen with the evaluation error rate in view, so that
damage shows and there is headroom: of 300 evaluation utterances mixed with other draws, 3.1 % of the words were wrong
at 10 to 25 dB, 5.3 % at 5 to 20 dB and 10.3 % at 3 to 15 dB. So the figure describes this model on these clips; it is
no estimate for other conditions."""

# Measured by hand on the shipped weights: 60 windows of each kind, dev voices and sentences, 15 to 30 dB.
FULL_WINDOWS = """
Few windows of the training were full, and it shows. Of 60 full windows with one dev utterance anywhere in them (15 to
30 dB) 0.3 % of the words are wrong, with two utterances 6.1 %. Times are off by 0.01 to 0.04 s in the median in the
first two thirds of the window, by 0.1 s in the last. An utterance that the window's end cuts is not left to the next
window, as Whisper leaves it: in none of 60 such windows was it told by its start alone, and words were made up for
it. End windows in a pause."""

_DAMAGE = """
With every self-attention of the encoder made uniform (queries set to zero) the rate is {uniform_encoder:.0f} %, with
the cross-attention made uniform {uniform_cross:.0f} %: attention is what the model works with."""

_SOUND = """
A grammar of {symbols} symbols makes commands, questions, numbers, times, dates and short statements of at most
{most} words. A sentence's split is a hash of its letters ({shares}). espeak-ng (1.51) says them with {accent_count}
English accents ({accents}), at 150 to 225 words per minute and pitches of 15 to 90; in training the sound is then
played at {slow} to {fast} times the speed. Utterances longer than {longest} s are left out. Rooms are exponentially
decaying noise (RT60 0.1 to 0.7 s) behind a direct path and early echoes, with a first-order microphone tilt; a
quarter of the utterances has no room. White noise, pink noise, mains hum or babble (of the same split's voices) is
added."""

_SHIPPED = """
Shipped are {formats}, each one utterance with up to half a second before and behind it, {low_db:g} to {high_db:g} dB
above the noise's long-term level (within one clip, babble may be louder or softer), peaks at {low_peak:g} to
{high_peak:g} of full scale. Each clip's conditions, and where in it the speech begins and ends, are in the
`metadata.csv` beside it. The splits share no voice and no sentence, and versions of one voice stay in one split:"""

_TRAINING = """
{steps:,} steps of {batch} windows, each mixed afresh. The first {encoder_steps} steps train the encoder alone, by
CTC on espeak-ng's phonemes, on the shorter half of the utterances; then encoder and decoder together, with CTC
beside the cross-entropy (weight {ctc_weight:g}; its classifier is thrown away). Most steps hear windows that end
where the speech does; one in 16 after step {easy_steps:,} and the last {full_window_steps} hear the full {seconds}
s, with one or two utterances anywhere, with one that the window's end cuts (only its start is to be said), or with
none (`<|nospeech|>`). Half of the transcripts have timestamps. SNR {low_db:g} to {high_db:g} dB (the lowest comes
down from 20 dB over the first {easy_steps:,} steps), peaks at {low_peak:g} to {high_peak:g} of full scale. Muon for
the layers' matrices (rate {matrix_rate:g}, weight decay {weight_decay:g}) and AdamW for the rest (rate
{other_rate:g}): a linear rise over {warmup_steps} steps, and a linear way down over the last {cooldown_steps};
bfloat16 autocast. The weights are a running average (decay {average_decay:g}). Seed {seed}."""

_LIMITS = """
Synthetic voices and a grammar of a few hundred words only: nothing is known about people's voices, other words,
languages or recording conditions. The decoder knows the grammar, so it takes the likely sentence where it hears
little. Text from before the window (`<|startofprev|>`), translation and language identification were not trained: do
not condition on previous text. The sparsities that this model bears say little about a large pretrained one. The
clips and the weights are licensed as this project is (Apache-2.0); espeak-ng itself (GPL-3.0) is not part of it."""


def model_card(
    heard: Heard,
    schedule: Schedule,
    parameters: int,
    utterances: Mapping[str, int],
    clips: Mapping[str, tuple[int, str]],
) -> str:
    """The model card, Markdown with the Hub's header."""
    facts = _facts(heard, schedule, parameters, clips)
    points = "\n".join(_filled(point, facts, "- ", "  ") for point in (_ARCHITECTURE, _INPUT, _TOKENS))
    rows = [
        f"| {split} | {utterances[split]:,} | {len(VOICES[split])} | {', '.join(VOICES[split])} |" for split in VOICES
    ]
    table = "\n".join(("| split | utterances | voices | |", "|---|---|---|---|", *rows))
    again = "`train` and `dev` are not shipped: `python -m leanear.studies.demo.make_whisper` makes them again."
    training = facts | _ranges(TRAIN_CONDITIONS)
    parts = (
        _HEADER,
        _filled(_PURPOSE, facts),
        points,
        "## Accuracy",
        _filled(_ACCURACY, facts),
        _filled(HEADROOM, facts),
        _filled(_DAMAGE, facts),
        "## Data",
        _filled(_SOUND, facts),
        _filled(_SHIPPED, facts),
        table,
        again,
        "## Training",
        _filled(_TRAINING, training),
        "## Limits",
        _filled(FULL_WINDOWS, facts),
        _filled(_LIMITS, facts),
    )
    return "\n\n".join(parts) + "\n"


def _facts(heard: Heard, schedule: Schedule, parameters: int, clips: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    starts = (0, *SPLIT_ENDS.values())
    shares = [f"{end - start} % {split}" for (split, end), start in zip(SPLIT_ENDS.items(), starts, strict=False)]
    formats = [f"{count} {split} clips ({suffix[1:].upper()})" for split, (count, suffix) in clips.items()]
    low, high = heard.shipped.interval()
    return (
        asdict(schedule)
        | _ranges(SHIPPED_CONDITIONS)
        | {
            "millions": parameters / 1e6,
            "seconds": WINDOW_SECONDS,
            "bins": MEL_BINS,
            "frames": 100 * WINDOW_SECONDS,
            "positions": 50 * WINDOW_SECONDS,
            "merges": MERGES,
            "languages": ", ".join(LANGUAGES),
            "targets": MAX_TARGET_POSITIONS,
            "rate": 100 * heard.shipped.rate,
            "low": 100 * low,
            "high": 100 * high,
            "clips": len(heard.shipped.words),
            "errors": heard.shipped.errors.sum(),
            "words": heard.shipped.words.sum(),
            "uniform_encoder": 100 * heard.uniform_encoder.rate,
            "uniform_cross": 100 * heard.uniform_cross.rate,
            "symbols": len(GRAMMAR),
            "most": MOST_WORDS,
            "shares": ", ".join(shares),
            "accent_count": len(ACCENTS),
            "accents": ", ".join(ACCENTS),
            "slow": TRAIN_SPEED[0],
            "fast": TRAIN_SPEED[1],
            "longest": LONGEST_SECONDS,
            "formats": " and ".join(formats),
        }
    )


def _ranges(conditions: Conditions) -> dict[str, float]:
    (low_db, high_db), (low_peak, high_peak) = conditions.snr_db, conditions.peak
    return {"low_db": low_db, "high_db": high_db, "low_peak": low_peak, "high_peak": high_peak}


def _filled(text: str, facts: Mapping[str, Any], first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        " ".join(text.format(**facts).split()),
        118,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )
