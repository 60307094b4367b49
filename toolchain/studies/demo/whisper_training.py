"""Training the demo Whisper from nothing: short windows first, CTC beside the decoder, bfloat16, resumable."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, ctc_loss
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from leanear.studies.demo.optimising import State, average_into, restore_state, save_state
from leanear.studies.demo.spectrograms import whisper_log_mel
from leanear.studies.demo.transcribing import error_counts, transcribe
from leanear.studies.demo.utterances import Speech
from leanear.studies.demo.windows import (
    IGNORED,
    Conditions,
    Script,
    Shares,
    Timeline,
    full_timeline,
    make_script,
    mix_windows,
    snug_timeline,
    token_batch,
)

TRAIN_CONDITIONS = Conditions(snr_db=(5.0, 30.0), peak=(0.01, 0.9))
FULL_SHARES = Shares()
_BLOCK_STEPS = 16  # of which the last hears full windows


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train: rates rise, stay, and come down over the last steps."""

    steps: int = 2_400
    batch: int = 40
    matrix_rate: float = 3e-3  # Muon, the matrices of the layers
    other_rate: float = 1e-3  # AdamW, everything else
    weight_decay: float = 0.05
    warmup_steps: int = 100
    cooldown_steps: int = 700
    full_window_steps: int = 300  # at the end; before them, one step in sixteen
    encoder_steps: int = 600  # at the start: the encoder alone, by CTC, and only short utterances
    easy_steps: int = 1_200  # single utterances in short windows, while the lowest SNR comes down from 20 dB
    two_share: float = 0.1  # of the short windows, with two utterances
    ctc_weight: float = 0.5
    average_decay: float = 0.996
    shards: int = 2  # of a batch, each on a thread of its own: no thread waits for another within a layer
    check_every: int = 200
    save_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """What training hears and how it is told what was said."""

    speech: Speech
    noises: torch.Tensor  # float32 (kinds, samples)
    tokenizer: WhisperTokenizer
    extractor: WhisperFeatureExtractor


@dataclass(frozen=True)
class DevClips:
    """Clips that the running average transcribes now and then; nothing is learnt from them."""

    features: torch.Tensor  # float32 (N, mel bins, frames of a full window)
    texts: list[str]


def phoneme_units(speech: Speech) -> tuple[str, ...]:
    """The phonemes of a split that are said at least 20 times, in order."""
    counts: dict[str, int] = {}
    for row in speech.phonemes:
        for phoneme in row:
            counts[phoneme] = counts.get(phoneme, 0) + 1
    return tuple(sorted(phoneme for phoneme, count in counts.items() if count >= 20))


def encode(model: WhisperForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """The encoder's output (B, T, D) for windows of any length, (B, mel bins, 2 T); the stock one wants full ones."""
    encoder = model.model.encoder
    hidden = torch.nn.functional.gelu(encoder.conv1(features))
    hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


def decode(model: WhisperForConditionalGeneration, given: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """Logits (B, tokens, vocabulary) for decoder inputs (B, tokens) and the encoder's output."""
    hidden = model.model.decoder(input_ids=given, encoder_hidden_states=heard, use_cache=False).last_hidden_state
    return model.proj_out(hidden)


def timelines_at(step: int, speech: Speech, schedule: Schedule) -> list[Timeline]:
    """The windows of one step; of a block of steps, short windows of like length share a step."""
    block, place = divmod(step, _BLOCK_STEPS)
    easy, last = step < schedule.easy_steps, step >= schedule.steps - schedule.full_window_steps
    if last or (place == _BLOCK_STEPS - 1 and not easy):
        rng = np.random.default_rng([schedule.seed, 43, step])
        return [full_timeline(speech, rng, FULL_SHARES) for _ in range(schedule.batch)]
    rng = np.random.default_rng([schedule.seed, 41, block])
    parts, two_share = _BLOCK_STEPS, 0.0 if easy else schedule.two_share
    count = parts * schedule.batch
    drawn = [
        snug_timeline(speech, rng, two_share) for _ in range(2 * count if step < schedule.encoder_steps else count)
    ]
    drawn = sorted(drawn, key=lambda timeline: timeline.samples)[:count]
    part = int(rng.permutation(parts)[place])
    return drawn[part * schedule.batch : (part + 1) * schedule.batch]


def train(
    model: WhisperForConditionalGeneration,
    lesson: Lesson,
    dev: DevClips,
    schedule: Schedule,
    state_file: Path,
    advance: Callable[[int, str], None],
    threads: int = 2,
) -> WhisperForConditionalGeneration:
    """The model with the running average of its weights, after all of the schedule; continues from `state_file`.

    `advance(step, note)` is called after each step. Every draw depends on the seed and the step alone, so a resumed
    run hears what an uninterrupted one would have heard.
    """
    units = phoneme_units(lesson.speech)
    script = make_script(lesson.speech, lesson.tokenizer, units)
    torch.manual_seed(schedule.seed + 1)
    spelling = torch.nn.Linear(model.config.d_model, 1 + len(units))
    averaged = copy.deepcopy(model)
    # On short windows and few tokens, plain attention in bfloat16 is faster on a CPU than the fused one.
    model.set_attn_implementation("eager")
    modules: dict[str, torch.nn.Module] = {"model": model, "averaged": averaged, "spelling": spelling}
    state = State(modules, _new_optimizers(model, spelling, schedule))
    first = restore_state(state_file, state) if state_file.exists() else 0
    weights = [weight for part in (model, spelling) for weight in part.parameters() if weight.requires_grad]
    note = ""
    advance(first, note)
    meter = _Meter(state_file.with_suffix(".jsonl"))
    model.train()
    with ThreadPoolExecutor(min(threads, schedule.shards), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step in range(first, schedule.steps):
            started = time.monotonic()
            scale = rate_scale_at(step, schedule)
            for name, optimizer in state.optimizers.items():
                rate = schedule.other_rate if name == "adamw" else schedule.matrix_rate
                optimizer.param_groups[0]["lr"] = rate * scale
            shards = _shards_at(step, lesson, script, schedule)
            lessons = [(model, spelling, weights, lesson, script, shard, schedule) for shard in shards]
            learnt = list(pool.map(_learn, *zip(*lessons, strict=True)))
            for weight, *gradients in zip(weights, *(one.gradients for one in learnt), strict=True):
                weight.grad = None if gradients[0] is None else sum(gradients[1:], start=gradients[0])
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            list(pool.map(lambda optimizer: optimizer.step(), state.optimizers.values()))
            average_into(averaged, model, schedule.average_decay, step)
            meter.count(learnt, schedule.batch, time.monotonic() - started)
            done = step + 1
            if done % schedule.check_every == 0 or done == schedule.steps:
                heard = done > schedule.encoder_steps
                note = meter.write(done, _dev_word_error_rate(averaged, dev, lesson.tokenizer) if heard else None)
            if done % schedule.save_every == 0 or done == schedule.steps:
                save_state(state_file, state, done)
            advance(done, note)
    return averaged.eval()


def rate_scale_at(step: int, schedule: Schedule) -> float:
    """The share of the peak learning rates: a linear rise, a plain, and a straight way down to nothing."""
    return min(1.0, (step + 1) / schedule.warmup_steps, (schedule.steps - step) / schedule.cooldown_steps)


def _new_optimizers(
    model: WhisperForConditionalGeneration, spelling: torch.nn.Module, schedule: Schedule
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the layers' matrices, in as many parts as there are threads, and AdamW for the rest."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers." in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen and weight.requires_grad]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for part in range(schedule.shards):
        optimizers[f"muon_{part}"] = torch.optim.Muon(
            matrices[part :: schedule.shards],
            lr=schedule.matrix_rate,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    others += list(spelling.parameters())
    adamw = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    optimizers["adamw"] = adamw
    return optimizers


@dataclass(frozen=True)
class _Shard:
    """A part of a step's windows, what is to be said of them, and how many tokens and phonemes the whole step has."""

    timelines: list[Timeline]
    given: torch.Tensor
    wanted: torch.Tensor
    conditions: Conditions
    rng: np.random.Generator
    tokens: int
    phonemes: int
    encoder_alone: bool


@dataclass(frozen=True)
class _Learnt:
    """A shard's share of the step's gradients and of its losses, the decoder's (NaN: not asked) and CTC's, in nats."""

    gradients: tuple[torch.Tensor | None, ...]
    losses: tuple[float, float]


def _shards_at(step: int, lesson: Lesson, script: Script, schedule: Schedule) -> list[_Shard]:
    timelines, rng = timelines_at(step, lesson.speech, schedule), np.random.default_rng([schedule.seed, 13, step])
    given, wanted = token_batch(script, lesson.speech, timelines, rng)
    # A cut utterance is left out of CTC: nobody knows how much of it was heard.
    phonemes = sum(len(script.phonemes[number]) for one in timelines if not one.cut for number in one.utterances)
    alone = step < schedule.encoder_steps
    tokens, conditions = int((wanted != IGNORED).sum()), _conditions_at(step, schedule)
    shards = []
    for part in range(schedule.shards):
        rows = slice(part, None, schedule.shards)
        rng = np.random.default_rng([schedule.seed, 14, step, part])
        shards.append(
            _Shard(timelines[rows], given[rows], wanted[rows], conditions, rng, tokens, max(1, phonemes), alone)
        )
    return shards


def _learn(
    model: WhisperForConditionalGeneration,
    spelling: torch.nn.Module,
    weights: list[torch.nn.Parameter],
    lesson: Lesson,
    script: Script,
    shard: _Shard,
    schedule: Schedule,
) -> _Learnt:
    windows = mix_windows(lesson.speech, lesson.noises, shard.timelines, shard.conditions, shard.rng)
    features = whisper_log_mel(windows.waves, lesson.extractor)
    with torch.autocast("cpu", torch.bfloat16):
        heard = encode(model, features)
        spelt = spelling(heard)
        logits = None if shard.encoder_alone else decode(model, shard.given, heard)
    spelt_loss = _ctc(spelt.float(), shard.timelines, script) / shard.phonemes
    if logits is None:
        return _Learnt(
            torch.autograd.grad(spelt_loss, weights, allow_unused=True), (math.nan, float(spelt_loss.detach()))
        )
    wanted = shard.wanted.flatten()
    said = cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum") / shard.tokens
    gradients = torch.autograd.grad(said + schedule.ctc_weight * spelt_loss, weights)
    return _Learnt(gradients, (float(said.detach()), float(spelt_loss.detach())))


def _ctc(spelt: torch.Tensor, timelines: list[Timeline], script: Script) -> torch.Tensor:
    """The sum of the CTC losses of all windows that are not cut."""
    rows = [row for row, timeline in enumerate(timelines) if not timeline.cut]
    phonemes = [[unit for number in timelines[row].utterances for unit in script.phonemes[number]] for row in rows]
    lengths = torch.tensor([len(row) for row in phonemes])
    targets = torch.tensor([unit for row in phonemes for unit in row])
    frames = torch.full((len(rows),), spelt.shape[1])
    log_probabilities = spelt[rows].log_softmax(2).transpose(0, 1)
    return ctc_loss(log_probabilities, targets, frames, lengths, reduction="sum", zero_infinity=True)


def _conditions_at(step: int, schedule: Schedule) -> Conditions:
    """The training conditions: the lowest SNR comes down from 20 dB, so that the first steps can learn something."""
    low, high = TRAIN_CONDITIONS.snr_db
    share = min(1.0, step / max(1, schedule.easy_steps))
    return Conditions((20.0 + (low - 20.0) * share, high), TRAIN_CONDITIONS.peak)


def _dev_word_error_rate(model: WhisperForConditionalGeneration, dev: DevClips, tokenizer: WhisperTokenizer) -> float:
    said = transcribe(model.eval(), tokenizer, dev.features)
    return error_counts(dev.texts, said).rate


class _Meter:
    """The losses and the speed since the last line of the log."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self._clear()

    def _clear(self) -> None:
        self.windows, self.seconds, self.steps, self.losses = 0, 0.0, [0, 0], [0.0, 0.0]

    def count(self, learnt: list[_Learnt], windows: int, seconds: float) -> None:
        self.windows, self.seconds = self.windows + windows, self.seconds + seconds
        for place in range(2):
            loss = sum(one.losses[place] for one in learnt)
            if not math.isnan(loss):
                self.steps[place], self.losses[place] = self.steps[place] + 1, self.losses[place] + loss

    def write(self, step: int, word_error_rate: float | None) -> str:
        """Appends a line to the log; a short note of it comes back. None: there is no decoder yet to ask."""
        said, spelt = (total / max(1, steps) for total, steps in zip(self.losses, self.steps, strict=True))
        record = {"step": step, "ctc_loss": spelt, "windows_per_s": self.windows / self.seconds}
        note = f"CTC loss {spelt:.3f}"
        if word_error_rate is not None:
            record |= {"loss": said, "dev_word_error_rate": word_error_rate}
            note = f"loss {said:.3f}, dev WER {word_error_rate:.3f}"
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        self._clear()
        return note
