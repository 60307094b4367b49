"""A Whisper checkpoint in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from leanear.families.modeling_slim_whisper import SlimWhisperConfig

SLIM_MODEL_TYPE = SlimWhisperConfig.model_type
FRAMES_PER_POSITION = 2  # the stride of the encoder's second convolution
WhisperModel: TypeAlias = WhisperForConditionalGeneration  # of which the slim one is a subclass


@dataclass(frozen=True)
class WhisperCheckpoint:
    """A checkpoint in memory, in eval mode: the model with its generation settings, front end and tokenizer.

    metric: what the share of its mistakes is told of; labels: none.
    """

    metric: ClassVar[str] = "word error rate"
    labels: ClassVar[tuple[str, ...]] = ()

    folder: Path
    model: WhisperModel
    feature_extractor: WhisperFeatureExtractor
    tokenizer: WhisperTokenizer

    @property
    def task(self) -> str:
        """What it does unless it is told otherwise: "transcribe" or "translate"."""
        return str(getattr(self.model.generation_config, "task", None) or "transcribe")

    @property
    def is_multilingual(self) -> bool:
        """Whether the prompt names a language and a task; English-only models have the tokens, but not the use."""
        return bool(self.model.generation_config.is_multilingual)
