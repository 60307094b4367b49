"""What is shipped of the demo Whisper: clips with their sentences, the checkpoint folder, and the model card."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from leanear.runtimes.files import replaced_folder
from leanear.studies.demo.acoustics import NOISES
from leanear.studies.demo.speech import SAMPLE_RATE_HZ
from leanear.studies.demo.tokens import write_processor
from leanear.studies.demo.transcribing import ErrorCounts, error_counts, transcribe
from leanear.studies.demo.utterances import Speech
from leanear.studies.demo.windows import Conditions, Timeline, Windows, mix_windows

# The signal-to-noise ratios were chosen with the evaluation error rate in view (see HEADROOM in whisper_card.py); quiet
# clips make small FLAC files. Nothing about the training was chosen on the evaluation voices or sentences.
SHIPPED_CONDITIONS = Conditions(snr_db=(5.0, 20.0), peak=(0.01, 0.05))

_FIELDS = ("file_name", "text", "start_s", "end_s")
COLUMNS = (*_FIELDS, "voice", "accent", "words_per_minute", "pitch", "snr_db", "noise", "rt60_s")
_BATCH = 20


@dataclass(frozen=True)
class Heard:
    """The wrong words of the evaluation clips, as shipped and with the attention of one kind made uniform."""

    shipped: ErrorCounts
    uniform_encoder: ErrorCounts
    uniform_cross: ErrorCounts


def clip_timelines(speech: Speech, numbers: range, rng: np.random.Generator) -> list[Timeline]:
    """A clip for each utterance: up to half a second of lead and of tail around it."""
    timelines = []
    for number in numbers:
        start, tail = (int(seconds * SAMPLE_RATE_HZ) for seconds in rng.uniform(0.05, 0.5, 2))
        samples = start + int(speech.dry_samples[number]) + tail
        timelines.append(Timeline((number,), (start,), samples, samples))
    return timelines


def mix_clips(
    speech: Speech, noises: torch.Tensor, count: int, conditions: Conditions, rng: np.random.Generator
) -> list[tuple[Timeline, np.ndarray, Windows, int]]:
    """The first `count` utterances as clips: timeline, int16 samples, and the batch and row that they come from."""
    clips = []
    for first in range(0, count, _BATCH):
        timelines = clip_timelines(speech, range(first, min(first + _BATCH, count)), rng)
        mixed = mix_windows(speech, noises, timelines, conditions, rng)
        for row, timeline in enumerate(timelines):
            wave = np.round(mixed.waves[row, : timeline.samples].numpy() * 32767).astype(np.int16)
            clips.append((timeline, wave, mixed, row))
    return clips


def write_clips(
    folder: Path,
    suffix: str,
    speech: Speech,
    noises: torch.Tensor,
    count: int,
    conditions: Conditions,
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Writes `count` clips as `.flac` or `.ogg` (Vorbis), with `metadata.csv` in the audiofolder convention."""
    rng = np.random.default_rng([seed, 17, *folder.name.encode()])
    rows = []
    with replaced_folder(folder) as fresh:
        for timeline, wave, mixed, row in mix_clips(speech, noises, count, conditions, rng):
            number, start = timeline.utterances[0], timeline.starts[0]
            one, end = speech.utterances[number], start + int(speech.dry_samples[number])
            name = f"sentence_{number:03d}{suffix}"
            if suffix == ".flac":
                soundfile.write(fresh / name, wave, SAMPLE_RATE_HZ, subtype="PCM_16", compression_level=1.0)
            else:
                soundfile.write(fresh / name, wave, SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
            times = (f"{start / SAMPLE_RATE_HZ:.2f}", f"{end / SAMPLE_RATE_HZ:.2f}")
            said = (one.voice, one.accent, one.words_per_minute, one.pitch)
            rt60_s = speech.response_rt60_s[one.room]
            heard = (f"{mixed.snr_db[row]:.1f}", NOISES[mixed.noise[row]], f"{rt60_s:.2f}")
            rows.append((name, one.text, *times, *said, *heard))
            advance()
        with (fresh / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)


def read_clips(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """The shipped clips, float32 samples each, and their sentences, in the order of `metadata.csv`."""
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [soundfile.read(folder / row["file_name"], dtype="float32")[0] for row in rows], [r["text"] for r in rows]


def hear(
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    extractor: WhisperFeatureExtractor,
    folder: Path,
) -> Heard:
    """The model's errors on a shipped folder of clips, through transformers' own extractor and `generate`."""
    waves, texts = read_clips(folder)
    features = extractor(waves, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_features"]
    counts = []
    for part in ("", "encoder.layers", "encoder_attn"):
        said = transcribe(with_uniform_attention(model, part) if part else model, tokenizer, features)
        counts.append(error_counts(texts, said))
    return Heard(*counts)


@torch.no_grad()
def with_uniform_attention(model: WhisperForConditionalGeneration, part: str) -> WhisperForConditionalGeneration:
    """A copy in which the attention whose weights' names hold `part` weighs everything alike: its queries are zero."""
    uniform = copy.deepcopy(model)
    for name, weight in uniform.named_parameters():
        if part in name and ".q_proj." in name:
            weight.zero_()
    return uniform


def write_model(folder: Path, model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, card: str) -> None:
    """Writes the checkpoint folder with its processor and its model card."""
    with replaced_folder(folder) as fresh:
        model.save_pretrained(fresh)
        write_processor(fresh, tokenizer)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        for file in fresh.iterdir():
            file.chmod(0o644)
