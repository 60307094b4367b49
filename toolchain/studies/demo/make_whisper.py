"""Makes the demo Whisper and its clips again, from nothing: `python -m leanear.studies.demo.make_whisper --out DIR`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.files import replaced_file
from leanear.studies.demo.acoustics import make_noises
from leanear.studies.demo.alignment import choose_alignment_heads
from leanear.studies.demo.sentences import draw_sentences
from leanear.studies.demo.spectrograms import whisper_log_mel
from leanear.studies.demo.speech import espeak_missing
from leanear.studies.demo.steps import Advance, Job, claim, counter, run_maker, step
from leanear.studies.demo.tokens import make_tokenizer, new_extractor, train_bpe
from leanear.studies.demo.utterances import Speech, make_speech, read_speech
from leanear.studies.demo.whisper_card import model_card
from leanear.studies.demo.whisper_model import new_model
from leanear.studies.demo.whisper_packaging import SHIPPED_CONDITIONS, hear, mix_clips, write_clips, write_model
from leanear.studies.demo.whisper_training import DevClips, Lesson, Schedule, train
from leanear.studies.demo.windows import WINDOW_SAMPLES, Conditions

UTTERANCES = {"train": 20_000, "dev": 600, "calibration": 240, "evaluation": 500}
ROOMS = {"train": 400, "dev": 100, "calibration": 100, "evaluation": 100}
# Vorbis is far smaller than FLAC; the clips that accuracies are measured on are kept as they were made.
CLIPS = {"calibration": (150, ".ogg"), "evaluation": (280, ".flac")}
DEV_CONDITIONS = Conditions(snr_db=(10.0, 25.0), peak=(0.03, 0.3))
DEV_CLIPS = 80


def main(arguments: list[str] | None = None) -> int:
    """The exit status of the command line."""
    return run_maker("make_whisper", str(__doc__), "build/demo-whisper", Schedule, make, arguments)


def make(job: Job[Schedule], console: Console) -> None:
    """Writes `clips/` and `model/` under `job.out`, skipping every step whose result is already there.

    Raises:
        RuntimeUnavailable: espeak-ng is not on PATH and speech is still to be made.
        BadInput: `job.work` holds the work of another seed or schedule.
    """
    claim(job.work, asdict(job.schedule))
    for split, count in UTTERANCES.items():
        with step(console, job.work, f"speech, {split}", _speech_folder(job, split), count) as (advance, todo):
            if todo:
                _make_speech(job, split, counter(advance))
    final = job.work / "model.safetensors"
    with step(console, job.work, "training", final, job.schedule.steps) as (advance, todo):
        if todo:
            _train(job, final, advance)
    torch.set_num_threads(job.threads)
    for split, (count, suffix) in CLIPS.items():
        folder = job.out / "clips" / split
        with step(console, job.work, f"clips, {split}", folder / "metadata.csv", count) as (advance, todo):
            if todo:
                speech, seed = read_speech(_speech_folder(job, split)), job.schedule.seed
                noises = _noises(job, split, speech)
                write_clips(folder, suffix, speech, noises, count, SHIPPED_CONDITIONS, seed, counter(advance))
    with step(console, job.work, "model folder", job.out / "model" / "README.md") as (_, todo):
        if todo:
            _write_model(job, final, console)
    console.print(f"{job.out}: clips/ and model/ are complete", markup=False, soft_wrap=True)


def _speech_folder(job: Job[Schedule], split: str) -> Path:
    return job.work / f"speech-{split}"


def _make_speech(job: Job[Schedule], split: str, advance: Callable[[], None]) -> None:
    reason = espeak_missing()
    if reason:
        raise RuntimeUnavailable(reason)
    # Two threads to a core: each spends part of its time waiting for espeak-ng.
    workers = 2 * job.threads
    make_speech(_speech_folder(job, split), split, UTTERANCES[split], ROOMS[split], job.schedule.seed, workers, advance)


def _noises(job: Job[Schedule], split: str, speech: Speech) -> torch.Tensor:
    """A split's noises; its babble is made of its own utterances, so no voice crosses from another split."""
    number = 77 + list(UTTERANCES).index(split)
    rng = np.random.default_rng([job.schedule.seed, number])
    return torch.from_numpy(make_noises(speech.samples, speech.offsets, rng))


def _tokenizer(job: Job[Schedule]) -> WhisperTokenizer:
    return make_tokenizer(*train_bpe(draw_sentences("train", UTTERANCES["train"], job.schedule.seed)))


def _dev_clips(job: Job[Schedule]) -> DevClips:
    speech = read_speech(_speech_folder(job, "dev"))
    rng = np.random.default_rng([job.schedule.seed, 5])
    clips = mix_clips(speech, _noises(job, "dev", speech), DEV_CLIPS, DEV_CONDITIONS, rng)
    waves = torch.zeros(len(clips), WINDOW_SAMPLES)
    for row, (_, wave, _, _) in enumerate(clips):
        waves[row, : len(wave)] = torch.from_numpy(wave / np.float32(32768))
    texts = [speech.utterances[number].text for number in range(len(clips))]
    return DevClips(whisper_log_mel(waves, new_extractor()), texts)


def _train(job: Job[Schedule], final: Path, advance: Advance) -> None:
    tokenizer, speech = _tokenizer(job), read_speech(_speech_folder(job, "train"))
    lesson = Lesson(speech, _noises(job, "train", speech), tokenizer, new_extractor())
    model, state_file = new_model(tokenizer, job.schedule.seed), job.work / "training.safetensors"
    # A batch's shards have a thread each; what is left for this one is small.
    torch.set_num_threads(1)
    averaged = train(model, lesson, _dev_clips(job), job.schedule, state_file, advance, threads=job.threads)
    with replaced_file(final) as partial:
        save_file(dict(averaged.named_parameters()), partial)


def _write_model(job: Job[Schedule], final: Path, console: Console) -> None:
    tokenizer = _tokenizer(job)
    model = restored_model(tokenizer, final)
    dev = _dev_clips(job)
    heads = choose_alignment_heads(model, tokenizer, dev.features, dev.texts)
    model.generation_config.alignment_heads = heads
    heard = hear(model, tokenizer, new_extractor(), job.out / "clips" / "evaluation")
    parameters = sum(weight.numel() for weight in model.parameters())
    write_model(job.out / "model", model, tokenizer, model_card(heard, job.schedule, parameters, UTTERANCES, CLIPS))
    low, high = heard.shipped.interval()
    rate = f"word error rate {heard.shipped.rate:.4f}, 95 % interval {low:.4f} to {high:.4f}"
    console.print(f"  {len(heard.shipped.words)} evaluation clips: {rate}")


@torch.no_grad()
def restored_model(tokenizer: WhisperTokenizer, final: Path) -> WhisperForConditionalGeneration:
    """The demo Whisper with the weights that training ended with."""
    model, trained = new_model(tokenizer, seed=0), load_file(final)
    for name, weight in model.named_parameters():
        weight.copy_(trained[name])
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
