"""What a Whisper tells the exporter: decoding settings and vocabulary, as an artifact holds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from transformers import WhisperConfig

from leanear.export.artifact import export_artifact
from leanear.export.macs import Macs, count_whisper_macs
from leanear.export.options import ExportOptions
from leanear.export.whisper.log_mel import read_log_mel
from leanear.export.whisper_artifact import Speech
from leanear.families.whisper.model import FRAMES_PER_POSITION, WhisperCheckpoint, WhisperModel
from leanear.families.whisper.prompts import prompt_language
from leanear.families.whisper.settings import END, NO_TIMESTAMPS, PREVIOUS, START, TRANSCRIBE, TRANSLATE
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.encoder_windows import window_tokens
from leanear.runtimes.tasks import SpokenTask

NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # the newer and the older name of one token


def export(
    checkpoint: WhisperCheckpoint, golden_waveforms: Sequence[np.ndarray], out: Path, options: ExportOptions
) -> object:
    """Write the artifact folder, whole or not at all, its parity null."""
    decoding, words = decoding_settings(checkpoint), added_words(checkpoint)
    speech = Speech(vocabulary_tokens(checkpoint), decoding.text_tokens, decoding, words)
    model, extractor = checkpoint.model, checkpoint.feature_extractor
    return export_artifact(model, extractor, golden_waveforms, out, options, speech)


def decoding_settings(checkpoint: WhisperCheckpoint) -> Decoding:
    """All that a device needs to decode, as an artifact's manifest holds it: ids, limits and the unit of time."""
    settings, config, extractor = (
        checkpoint.model.generation_config,
        checkpoint.model.config,
        checkpoint.feature_extractor,
    )
    known = checkpoint.tokenizer.get_vocab()
    multilingual = checkpoint.is_multilingual
    languages = settings.lang_to_id if multilingual else {}
    return Decoding(
        start=known[START],
        end=known[END],
        previous=known.get(PREVIOUS),
        no_speech=next((known[name] for name in NO_SPEECH if name in known), None),
        no_timestamps=known[NO_TIMESTAMPS],
        timestamp_begin=known[NO_TIMESTAMPS] + 1,
        timestamp_end=_timestamp_end(config, known),
        transcribe=known.get(TRANSCRIBE),
        translate=known.get(TRANSLATE),
        languages={name.removeprefix("<|").removesuffix("|>"): token for name, token in languages.items()},
        default_language=prompt_language(checkpoint) if multilingual else "en",
        default_task=cast(SpokenTask, checkpoint.task),
        multilingual=multilingual,
        suppress=tuple(settings.suppress_tokens or ()),
        begin_suppress=tuple(settings.begin_suppress_tokens or ()),
        max_initial_timestamp_index=getattr(settings, "max_initial_timestamp_index", None),
        positions=config.max_target_positions,
        timestamp_step_s=FRAMES_PER_POSITION * extractor.hop_length / extractor.sampling_rate,
        window_s=extractor.n_samples / extractor.sampling_rate,
    )


def macs(checkpoint: WhisperCheckpoint, model: WhisperModel, form: str = "portable") -> Macs:
    """The MACs of one window and the tokens that are measured of it, in a graph of whatever form."""
    del form
    tokens = window_tokens(decoding_settings(checkpoint))
    return count_whisper_macs(model, read_log_mel(checkpoint.feature_extractor), tokens)


def _timestamp_end(config: WhisperConfig, known: Mapping[str, int]) -> int:
    """The first id behind the timestamps, of which there is one for every position and one for the window's end."""
    return int(min(known[NO_TIMESTAMPS] + 1 + config.max_source_positions + 1, config.vocab_size))


def added_words(checkpoint: WhisperCheckpoint) -> list[int]:
    """The ids behind the timestamps that stand for words, which a fine-tuning added to the tokenizer."""
    known, special = checkpoint.tokenizer.get_vocab(), set(checkpoint.tokenizer.all_special_ids)
    behind = _timestamp_end(checkpoint.model.config, known)
    return sorted(token for token in known.values() if token >= behind and token not in special)


def vocabulary_tokens(checkpoint: WhisperCheckpoint) -> list[str]:
    """The text of every token of the model, in GPT-2's byte alphabet; special tokens and timestamps as written."""
    known = checkpoint.tokenizer.get_vocab()
    texts = [""] * checkpoint.model.config.vocab_size
    decoding = decoding_settings(checkpoint)
    for place, token in enumerate(decoding.times):
        texts[token] = f"<|{place * decoding.timestamp_step_s:.2f}|>"  # older tokenizers do not list them
    for text, token in known.items():
        texts[token] = text
    return texts
