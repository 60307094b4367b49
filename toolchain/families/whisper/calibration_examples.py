"""What a Whisper is calibrated on: a third of the clips as they are, the others joined to windows full of speech.

A short clip leaves most of the window silent. Pruned on nothing else, a model forgets what it knew of a window's later
positions, of long texts, of timestamps and of text from before, and breaks on long recordings while short clips measure
well. So every third clip is heard alone, to be written down without timestamps, and the rest, in the order of their
names, one after the other in as few windows as they take, with a timestamp at either end of each; every second of these
windows is told what was said in the one before, as `transcribe --condition` does. The words are the model's own, where
it is right about most of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from leanear.calibration.targets import NO_TARGET
from leanear.data.examples import LabelledInputs, SpeechInputs
from leanear.data.word_errors import count_word_errors
from leanear.families.whisper.forward import BATCH_CLIPS, features, greedy_tokens, normaliser_for, window_samples
from leanear.families.whisper.model import FRAMES_PER_POSITION, WhisperCheckpoint
from leanear.families.whisper.prompts import detected_language, prompt_language, prompt_tokens, text_tokens
from leanear.families.whisper.settings import END, NO_TIMESTAMPS, PREVIOUS
from leanear.progress import Report, in_parts, quiet
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import named, note, plural
from leanear.runtimes.speech.tokens.repeats import SUSPECT_LOOP_TOKENS, loop_start

HEARD_FOR_LANGUAGE = 16  # clips
MOST_SPECIAL = 8  # tokens of prompt and end, and to spare
MOST_WRONG = 0.5  # of a transcript's words in the model's own; above, it may have heard nothing, or repeat itself
ALONE = 3  # every so many clips one: half of the clips left a model of half its attention worse on long recordings


@dataclass(frozen=True, eq=False)
class _Example:
    """A window as waveform, the tokens to be said in it, whether it has timestamps, and tokens told from before.

    features: (1, mels, frames), of no element until it was heard.
    """

    name: str
    waveform: np.ndarray
    text: str
    tokens: tuple[int, ...]
    timed: bool = False
    before: tuple[int, ...] = ()
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def labelled_inputs(checkpoint: WhisperCheckpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    """Features of the clips with their transcripts as decoder tokens, without timestamps, and as targets.

    The prompt's task is the model's own, and so is its language, or it is the one that is heard in the first clips.

    Raises:
        BadInput: the clips have no transcripts, or one is too long for the window or for the decoder.
    """
    alone = _heard(checkpoint, _alone(checkpoint, clips), report)
    return _labelled(checkpoint, alone, _prompt(checkpoint, alone))


def calibration_inputs(checkpoint: WhisperCheckpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    """The same of every third clip that is usable, one being needed, and of timed windows of the others.

    A clip whose text has no word, or more tokens than the decoder holds, is not.
    """
    part = in_parts(report, {"front end": 1, "own words": 3, "windows": 1})
    clips_heard = _heard(checkpoint, _alone(checkpoint, clips), part("front end"))
    prompt = _prompt(checkpoint, clips_heard)
    alone = _in_own_words(checkpoint, clips_heard, prompt, part("own words"))
    joined = sorted((each for number, each in enumerate(alone) if number % ALONE), key=lambda example: example.name)
    runs = _filling_windows(checkpoint, joined)
    told = [runs[number - 1] if number % 2 else () for number in range(len(runs))]
    windows = [_window(checkpoint, *each) for each in zip(runs, told, strict=True)]
    made = _labelled(checkpoint, alone[::ALONE] + _heard(checkpoint, windows, part("windows")), prompt)
    return replace(made, clips=len(alone))


def _alone(checkpoint: WhisperCheckpoint, clips: Clips) -> list[_Example]:
    if clips.texts is None:
        raise BadInput("the clips have labels and no transcripts, which a speech model is calibrated on")
    return [
        _Example(name, waveform, text, tuple(text_tokens(checkpoint.tokenizer, text, name)))
        for name, waveform, text in zip(clips.names, clips.waveforms, clips.texts, strict=True)
    ]


def _usable(examples: Sequence[_Example], are: Sequence[bool], why: str) -> list[_Example]:
    """The examples that are; the others are left out and named."""
    left_out = [example.name for example, is_usable in zip(examples, are, strict=True) if not is_usable]
    if len(left_out) == len(examples):
        raise BadInput(f"calibration clips: {why} ({named(left_out)})")
    if left_out:
        note(f"{plural(len(left_out), 'calibration clip')} of {len(examples)} left out: {why} ({named(left_out)})")
    return [example for example, is_usable in zip(examples, are, strict=True) if is_usable]


def _in_own_words(
    checkpoint: WhisperCheckpoint, clips: Sequence[_Example], prompt: list[int], report: Report
) -> list[_Example]:
    """Those with words, with the model's own, capitals and punctuation included, where those are nearly the text's.

    A decoder is fed what the model says: what it is fed of a transcript in small letters it never meets again. A text
    that ends in a loop is not taken, though in brackets it counts as nothing said.
    """
    normaliser = normaliser_for(checkpoint.tokenizer, checkpoint.model.generation_config, prompt)
    # By a text without a word no error can be counted.
    worded = [any(map(str.isalnum, normaliser.apply(each.text))) for each in clips]
    examples = _usable(clips, worded, "no word is left of the transcript after normalising")
    own: list[_Example] = []
    for start in range(0, len(examples), BATCH_CLIPS):
        batch = examples[start : start + BATCH_CLIPS]
        heard = torch.cat([each.features for each in batch])
        told = in_parts(report, {"before": start, "now": len(batch), "after": len(examples) - start - len(batch)})
        found = greedy_tokens(checkpoint.model, heard, torch.tensor([prompt]), told("now"))
        texts = checkpoint.tokenizer.batch_decode(found, skip_special_tokens=True)
        errors = count_word_errors([each.text for each in batch], texts, normaliser)
        for each, tokens, wrong, words in zip(batch, found, errors.errors, errors.reference_words, strict=True):
            is_right = wrong < MOST_WRONG * words and loop_start(tokens, SUSPECT_LOOP_TOKENS) is None
            own.append(replace(each, tokens=tuple(tokens)) if is_right else each)
    strange = sum(each is before for each, before in zip(own, examples, strict=True))
    if strange:
        note(
            f"{plural(strange, 'calibration clip')} of {len(own)}: calibrated on the transcript, as the model says"
            " something else, or one thing over and over"
        )
    room = checkpoint.model.config.max_target_positions - len(prompt) - 1  # two timestamps stand for a token of it
    fits = [len(each.tokens) <= room for each in own]
    return _usable(own, fits, f"the transcript takes more than the {room} tokens that the decoder has room for")


def _prompt(checkpoint: WhisperCheckpoint, examples: Sequence[_Example]) -> list[int]:
    heard = torch.cat([each.features for each in examples[:HEARD_FOR_LANGUAGE]])
    language = prompt_language(checkpoint) or detected_language(checkpoint, heard)
    return prompt_tokens(checkpoint.tokenizer, language, checkpoint.task)


def _heard(checkpoint: WhisperCheckpoint, examples: Sequence[_Example], report: Report) -> list[_Example]:
    """The examples with their features."""
    heard = []
    for number, example in enumerate(examples):
        try:
            heard.append(replace(example, features=features(checkpoint.feature_extractor, [example.waveform])))
        except BadInput as error:
            raise BadInput(f"{example.name}: {error}") from None
        report(f"front end of window {number + 1} of {len(examples)}", (number + 1) / len(examples))
    return heard


def _labelled(checkpoint: WhisperCheckpoint, examples: Sequence[_Example], prompt: list[int]) -> LabelledInputs:
    prompts = [[*example.before, *(prompt[:-1] if example.timed else prompt)] for example in examples]
    end = checkpoint.tokenizer.get_vocab()[END]
    tokens, targets = fed_and_said(prompts, [example.tokens for example in examples], end)
    positions = checkpoint.model.config.max_target_positions
    if tokens.shape[1] > positions:
        longest = max(examples, key=lambda example: len(example.tokens))
        raise BadInput(
            f"{longest.name}: its transcript takes {tokens.shape[1]} tokens, prompt included, and the model's decoder"
            f" {positions}"
        )
    heard = torch.cat([example.features for example in examples])
    return LabelledInputs(SpeechInputs(heard, tokens), targets, tuple(example.text for example in examples))


def _filling_windows(checkpoint: WhisperCheckpoint, clips: Sequence[_Example]) -> list[list[_Example]]:
    """The clips in runs that a window and the decoder hold, each as long as they come."""
    most_samples = window_samples(checkpoint.feature_extractor)
    most_tokens = checkpoint.model.config.max_target_positions // 2 - MOST_SPECIAL  # the rest is for text from before
    windows: list[list[_Example]] = []
    samples = tokens = 0
    for clip in clips:
        samples, tokens = samples + len(clip.waveform), tokens + len(clip.tokens) + 2
        if not windows or samples > most_samples or tokens > most_tokens:
            windows.append([])
            samples, tokens = len(clip.waveform), len(clip.tokens) + 2
        windows[-1].append(clip)
    return windows


def _window(checkpoint: WhisperCheckpoint, clips: Sequence[_Example], told: Sequence[_Example]) -> _Example:
    """The clips one after the other, each between the timestamps of its ends; told: what was said before them."""
    extractor, known = checkpoint.feature_extractor, checkpoint.tokenizer.get_vocab()
    step = FRAMES_PER_POSITION * extractor.hop_length
    first = known[NO_TIMESTAMPS] + 1
    ends = np.cumsum([0, *(len(clip.waveform) for clip in clips)]) // step + first
    tokens: list[int] = []
    for clip, begin, end in zip(clips, ends, ends[1:], strict=False):
        tokens += [int(begin), *clip.tokens, int(end)]
    room = max(checkpoint.model.config.max_target_positions - len(tokens) - MOST_SPECIAL, 0)
    said = [token for clip in told for token in clip.tokens]
    before = said[max(len(said) - room, 0) :]  # the latest
    return _Example(
        " + ".join(clip.name for clip in clips),
        np.concatenate([clip.waveform for clip in clips]),
        " ".join(clip.text for clip in clips),
        tuple(tokens),
        timed=True,
        before=(known[PREVIOUS], *before) if before and PREVIOUS in known else (),
    )


def fed_and_said(prompts: Sequence[list[int]], texts: Sequence[Sequence[int]], end: int) -> tuple[torch.Tensor, ...]:
    """What the decoder is fed, prompt and text, and what it is to say after each, text and `end`; both int64 (N, L).

    What is told in the prompt is given and not to be learned.
    """
    pairs = list(zip(prompts, texts, strict=True))
    said = [[*[NO_TARGET] * (len(prompt) - 1), *text, end] for prompt, text in pairs]
    return _padded([[*prompt, *text] for prompt, text in pairs], end), _padded(said, NO_TARGET)


def _padded(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], dtype=torch.int64)
