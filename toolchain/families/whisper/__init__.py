"""The Whisper family: what `leanear.families.family.Family` asks of one, and what only a Whisper has."""

from leanear.families.whisper.artifact import added_words, decoding_settings, export, macs, vocabulary_tokens
from leanear.families.whisper.calibration_examples import calibration_inputs, labelled_inputs
from leanear.families.whisper.forward import batch_loss, encoded, features, logits, mistakes, window_samples
from leanear.families.whisper.loading import load_checkpoint
from leanear.families.whisper.model import (
    FAMILY,
    FRAMES_PER_POSITION,
    AlignmentHeads,
    KeptHead,
    WhisperCheckpoint,
    WhisperModel,
    activation_bytes,
    alignment_heads,
    attention_blocks,
    attention_sites,
    cross_attention_heads,
    decoder_layers,
    dense_plan,
    encoder_layers,
    feed_forward_sites,
    save_slim_checkpoint,
    slim_model,
)
from leanear.families.whisper.prompts import detected_language, prompt_language, prompt_tokens, text_tokens
