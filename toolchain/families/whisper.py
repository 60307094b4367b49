"""The Whisper family: loading, attention sites, loss by teacher forcing, slimming, saving."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from leanear.calibration.sites import AttentionKind, AttentionSite, FeedForwardKind, FeedForwardSite
from leanear.calibration.targets import NO_TARGET as NOT_A_TARGET
from leanear.data.examples import LabelledInputs, Mistakes, SpeechInputs
from leanear.export.artifact import export_artifact
from leanear.export.macs import Macs, count_whisper_macs
from leanear.export.whisper.log_mel import read_log_mel
from leanear.export.whisper_artifact import Speech
from leanear.families import modeling_slim_whisper
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.checkpoint_files import (
    UNUSABLE_SETTINGS,
    SizeSigns,
    check_front_end,
    first_line,
    load_config,
    load_weights,
    read_model_type,
    require_features,
    slim_settings,
    write_slim_folder,
)
from leanear.families.family import AttentionBlocks, ExportOptions
from leanear.families.greedy_transcripts import word_mistakes
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.families.slimming import feed_forward_state, kept_widths, slim_state
from leanear.families.whisper_settings import (
    END,
    NO_TIMESTAMPS,
    START,
    TASK_TOKENS,
    TRANSCRIBE,
    TRANSLATE,
    complete_settings,
)
from leanear.plan import Plan, SitePlan, full_plan
from leanear.progress import Report, quiet
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.runtimes.manifest import Decoding
from leanear.runtimes.speech.decoding import DETECT
from leanear.runtimes.tasks import SpokenTask
from leanear.runtimes.windows import window_tokens

FAMILY = "whisper"
SLIM_MODEL_TYPE = SlimWhisperConfig.model_type
SIZE_SIGNS = SizeSigns(
    layers={
        "encoder_layers": r"encoder\.layers\.(\d+)\.",
        "decoder_layers": r"decoder\.layers\.(\d+)\.",
    },
    widths={"d_model": r"encoder\.layer_norm\.weight$"},
)
MODELLING_FILE = Path(modeling_slim_whisper.__file__)
FRAMES_PER_POSITION = 2  # the stride of the encoder's second convolution
HEARD_FOR_LANGUAGE = 16  # clips

PREVIOUS = "<|startofprev|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # the newer and the older name of one token

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
    def is_slim(self) -> bool:
        """Whether the heads have widths of their own."""
        return isinstance(self.model, SlimWhisperForConditionalGeneration)

    @property
    def task(self) -> str:
        """What it does unless it is told otherwise: "transcribe" or "translate"."""
        return str(getattr(self.model.generation_config, "task", None) or "transcribe")

    @property
    def is_multilingual(self) -> bool:
        """Whether the prompt names a language and a task; English-only models have the tokens, but not the use."""
        return bool(self.model.generation_config.is_multilingual)


@dataclass(frozen=True)
class AlignmentHeads:
    """What became of the heads whose cross-attention tells when a word was said: (decoder layer, head) in pairs.

    kept: where they were and where they are now; dropped: where those were that are gone.
    """

    kept: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    dropped: tuple[tuple[int, int], ...]

    def as_json(self) -> dict[str, Any]:
        """The same as pruning.json holds it."""
        return {
            "kept": [{"dense": list(dense), "slim": list(slim)} for dense, slim in self.kept],
            "dropped": [list(head) for head in self.dropped],
        }


def load_checkpoint(folder: Path, asked: Asked = NOTHING_ASKED) -> WhisperCheckpoint:
    """The dense or slim Whisper checkpoint in `folder` (fp32). Weights come from safetensors; no code in it is run.

    asked: becomes the model's own task and language, in memory.

    Raises:
        BadInput: a file is missing or damaged, model, front end, tokenizer and generation settings disagree, or the
            model does not have what is asked for.
    """
    folder = Path(folder)
    feature_extractor = _load_feature_extractor(folder)
    tokenizer = _load_tokenizer(folder)
    slim = read_model_type(folder) == SLIM_MODEL_TYPE
    model_class = SlimWhisperForConditionalGeneration if slim else WhisperForConditionalGeneration
    config = load_config(SlimWhisperConfig if slim else WhisperConfig, model_class, folder, SIZE_SIGNS)
    _check_geometry(folder, config)
    _check_window(folder, config, feature_extractor)
    require_features(
        f"{folder}/preprocessor_config.json",
        lambda: features(feature_extractor, [np.zeros(feature_extractor.sampling_rate // 10, np.float32)]),
        (config.num_mel_bins, config.max_source_positions * FRAMES_PER_POSITION),
    )
    _check_vocabulary(folder, config, tokenizer)
    generation_config = _load_generation_config(folder, config, tokenizer)
    model = load_weights(model_class, folder)
    model.generation_config = generation_config
    checkpoint = WhisperCheckpoint(folder, model, feature_extractor, tokenizer)
    set_defaults(checkpoint, asked)
    return checkpoint


def _load_feature_extractor(folder: Path) -> WhisperFeatureExtractor:
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"  # where transformers 5 puts the front end's settings
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the audio front end's settings are needed")
    check_front_end(path)
    try:
        return WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not the settings of a WhisperFeatureExtractor ({first_line(error)})") from None


def _load_tokenizer(folder: Path) -> WhisperTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file() and (folder / "vocab.json").is_file():
        path = folder / "vocab.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the tokenizer's vocabulary is needed")
    try:
        return WhisperTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # the Rust code behind it raises bare Exceptions, so that these cannot be named more closely
        if type(error) is not Exception and not isinstance(error, UNUSABLE_SETTINGS):
            raise
        raise BadInput(f"{path}: not a Whisper tokenizer's ({first_line(error)})") from None


def _check_geometry(folder: Path, config: WhisperConfig) -> None:
    for key in ("encoder_layers", "decoder_layers"):
        if getattr(config, key) < 1:
            raise BadInput(f"{folder}/config.json: {key} is 0; there is no attention to prune")
    if config.encoder_attention_heads != config.decoder_attention_heads:
        raise BadInput(
            f"{folder}/config.json: encoder_attention_heads is {config.encoder_attention_heads} and "
            f"decoder_attention_heads {config.decoder_attention_heads}; heads of two widths are not supported"
        )


def _check_window(folder: Path, config: WhisperConfig, feature_extractor: WhisperFeatureExtractor) -> None:
    path = f"{folder}/preprocessor_config.json"
    if feature_extractor.feature_size != config.num_mel_bins:
        raise BadInput(
            f"{path}: feature_size is {feature_extractor.feature_size}, but config.json says {config.num_mel_bins}"
        )
    frames, positions = feature_extractor.nb_max_frames, config.max_source_positions
    if frames != positions * FRAMES_PER_POSITION:
        longer = "longer" if frames > positions * FRAMES_PER_POSITION else "shorter"
        raise BadInput(
            f"{path}: chunk_length is {feature_extractor.chunk_length} s, {frames} frames, a window {longer} than the "
            f"model's: max_source_positions in config.json is {positions}, for {positions * FRAMES_PER_POSITION} frames"
        )


def _check_vocabulary(folder: Path, config: WhisperConfig, tokenizer: WhisperTokenizer) -> None:
    known = tokenizer.get_vocab()
    for token in (END, START, NO_TIMESTAMPS):
        if token not in known:
            raise BadInput(f"{folder}/tokenizer.json: it has no {token!r}, which Whisper's prompts are made of")
    largest = max(known.values())
    if largest >= config.vocab_size:
        raise BadInput(
            f"{folder}/tokenizer.json: the vocabulary has {largest + 1} tokens, but the model {config.vocab_size} "
            "(vocab_size in config.json)"
        )
    # Older tokenizers do not list the timestamps, which are the last tokens of the model.
    if largest + 1 < config.vocab_size and largest != known[NO_TIMESTAMPS]:
        raise BadInput(
            f"{folder}/tokenizer.json: the vocabulary has {largest + 1} tokens, fewer than the model's "
            f"{config.vocab_size} (vocab_size in config.json)"
        )
    for key, token in (("decoder_start_token_id", START), ("eos_token_id", END)):
        found = getattr(config, key)
        if found not in (known[token], [known[token]]):
            raise BadInput(f"{folder}/config.json: {key} is {found}, but {token!r} of the tokenizer is {known[token]}")


def _load_generation_config(folder: Path, config: WhisperConfig, tokenizer: WhisperTokenizer) -> GenerationConfig:
    path = folder / "generation_config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; Whisper's decoding rules are needed")
    try:
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not generation settings ({first_line(error)})") from None
    complete_settings(folder, settings, tokenizer)
    known = tokenizer.get_vocab()
    for key, token in (("no_timestamps_token_id", NO_TIMESTAMPS), ("decoder_start_token_id", START)):
        found = getattr(settings, key)
        if found != known[token]:
            raise BadInput(f"{path}: {key} is {found}, but {token!r} of the tokenizer is {known[token]}")
    for key in ("lang_to_id", "task_to_id"):
        for name, token_id in (getattr(settings, key, None) or {}).items():
            token = name if key == "lang_to_id" else f"<|{name}|>"
            if known.get(token) != token_id:
                raise BadInput(f"{path}: {key} says that {token!r} is {token_id}, and the tokenizer {known.get(token)}")
    if settings.is_multilingual and settings.task not in settings.task_to_id:
        raise BadInput(f"{path}: task is {settings.task!r}, but it has {', '.join(settings.task_to_id)}; set another")
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        beyond = [token for token in getattr(settings, key, None) or () if not 0 <= token < config.vocab_size]
        if beyond:
            raise BadInput(f"{path}: {key} holds {beyond[0]}, which no token of the model is")
    _check_alignment_heads(path, config, settings)
    return settings


def cross_attention_heads(config: WhisperConfig) -> list[int]:
    """How many heads of cross-attention each layer of a dense or slim model's decoder has."""
    if isinstance(config, SlimWhisperConfig):
        return [len(widths) for widths in config.query_key_widths[config.encoder_layers + 1 :: 2]]
    return [config.decoder_attention_heads] * config.decoder_layers


def _check_alignment_heads(path: Path, config: WhisperConfig, settings: GenerationConfig) -> None:
    heads = cross_attention_heads(config)
    for entry in getattr(settings, "alignment_heads", None) or ():
        try:
            layer, head = entry
            there = 0 <= layer < len(heads) and 0 <= head < heads[layer]
        except (TypeError, ValueError):
            there = False
        if not there:
            raise BadInput(f"{path}: alignment_heads names {entry}, which no decoder layer and head of the model is")


def attention_sites(model: WhisperModel) -> tuple[AttentionSite, ...]:
    """The model's attention blocks, dense or slim: the encoder's, then per decoder layer self- and cross-attention."""
    named: list[tuple[str, torch.nn.Module, AttentionKind]] = [
        (f"encoder.layers.{index}.self_attn", layer.self_attn, "encoder")
        for index, layer in enumerate(model.model.encoder.layers)
    ]
    for index, layer in enumerate(model.model.decoder.layers):
        named.append((f"decoder.layers.{index}.self_attn", layer.self_attn, "decoder"))
        named.append((f"decoder.layers.{index}.encoder_attn", layer.encoder_attn, "cross"))
    return tuple(_attention_site(name, block, kind) for name, block, kind in named)


def _attention_site(name: str, block: Any, kind: AttentionKind) -> AttentionSite:
    if isinstance(block, modeling_slim_whisper.SlimWhisperAttention):
        query_key_widths, value_output_widths = block.query_key_widths, block.value_output_widths
    else:
        query_key_widths = value_output_widths = (block.head_dim,) * block.num_heads
    return AttentionSite(
        name=name,
        module=block,
        query=block.q_proj,
        key=block.k_proj,
        value=block.v_proj,
        output=block.out_proj,
        query_key_widths=query_key_widths,
        value_output_widths=value_output_widths,
        scaling=block.scaling,
        causal=kind == "decoder",
        kind=kind,
    )


def feed_forward_sites(model: WhisperModel) -> tuple[FeedForwardSite, ...]:
    """The model's feed-forward blocks, dense or slim: the encoder's, then the decoder's."""
    kinds: tuple[tuple[FeedForwardKind, Any], ...] = (
        ("encoder", model.model.encoder),
        ("decoder", model.model.decoder),
    )
    return tuple(
        FeedForwardSite(f"{kind}.layers.{index}.feed_forward", layer.fc1, layer.fc2, kind)
        for kind, half in kinds
        for index, layer in enumerate(half.layers)
    )


def dense_plan(model: WhisperModel) -> Plan:
    """The plan that keeps all of a dense model.

    Raises:
        BadInput: the model is slim already: what its channels were in the dense one is not known from it.
    """
    if isinstance(model, SlimWhisperForConditionalGeneration):
        raise BadInput("the model is already slim; prune its dense checkpoint, with a higher sparsity")
    return full_plan(FAMILY, attention_sites(model), feed_forward_sites(model))


def encoder_layers(model: WhisperModel) -> tuple[torch.nn.Module, ...]:
    """All transformer layers, of encoder and decoder, for activation checkpointing and to compare their outputs."""
    return (*model.model.encoder.layers, *model.model.decoder.layers)


def decoder_layers(model: WhisperModel) -> tuple[torch.nn.Module, ...]:
    """Those of the transformer layers whose outputs stand at the positions of a sequence's targets."""
    return tuple(model.model.decoder.layers)


def window_samples(feature_extractor: WhisperFeatureExtractor) -> int:
    """How much of a waveform the model hears at once."""
    return int(feature_extractor.n_samples)


def features(feature_extractor: WhisperFeatureExtractor, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """Log-mel features (B, mels, frames) of one window per waveform, fp32, by transformers' own extractor.

    Raises:
        BadInput: a waveform is longer than the window; what is behind it would be lost.
    """
    longest = max(len(waveform) for waveform in waveforms)
    if longest > feature_extractor.n_samples:
        lasts_s, window_s = longest / feature_extractor.sampling_rate, feature_extractor.chunk_length
        raise BadInput(f"a clip lasts {lasts_s:.2f} s, longer than the model's window of {window_s} s")
    arrays = [
        feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate)["input_features"][0]
        for waveform in waveforms
    ]
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def logits(model: WhisperModel, inputs: SpeechInputs) -> torch.Tensor:
    """Logits (B, L, vocabulary) of the token after each of `inputs.tokens`, on the model's device."""
    inputs = inputs.to(model.device)
    if inputs.encoded:
        states = (inputs.features,)
        return model(encoder_outputs=states, decoder_input_ids=inputs.tokens, use_cache=False).logits
    return model(input_features=inputs.features, decoder_input_ids=inputs.tokens, use_cache=False).logits


@torch.no_grad()
def encoded(model: WhisperModel, inputs: SpeechInputs, batch_size: int) -> SpeechInputs:
    """The inputs with what the model's encoder makes of them: enough where only its decoder changes."""
    device = next(model.parameters()).device
    parts = [model.model.encoder(part.to(device)).last_hidden_state for part in inputs.features.split(batch_size)]
    return SpeechInputs(torch.cat(parts), inputs.tokens.to(device), encoded=True)


def batch_loss(model: WhisperModel, inputs: SpeechInputs, target_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the tokens of a batch that are to be learned; target_ids: (B, L), -100 elsewhere."""
    found = logits(model, inputs).flatten(0, 1)
    return functional.cross_entropy(found, target_ids.flatten().to(found.device), ignore_index=NOT_A_TARGET)


def prompt_language(checkpoint: WhisperCheckpoint, language: str | None = None) -> str | None:
    """The language code for the prompt of a model: what is asked for, or else the one that its settings name.

    None for an English-only model, whose prompt has no language, and for a multilingual one of no fixed language, whose
    language must be detected.

    Raises:
        BadInput: the model does not know the language.
    """
    settings = checkpoint.model.generation_config
    asked = language if language is not None else getattr(settings, "language", None)
    code = None
    if isinstance(asked, str):
        code = asked.lower().removeprefix("<|").removesuffix("|>")
        code = TO_LANGUAGE_CODE.get(code, code)
    if not checkpoint.is_multilingual:
        if language is not None and code != "en":
            raise BadInput(f"{checkpoint.folder}: the model knows English alone, not {language!r}")
        return None
    known = [name.removeprefix("<|").removesuffix("|>") for name in settings.lang_to_id]
    if code is not None and code not in known:
        raise BadInput(f"{checkpoint.folder}: the model knows no language {asked!r}; it knows {', '.join(known)}")
    return known[0] if code is None and len(known) == 1 else code


def set_defaults(checkpoint: WhisperCheckpoint, asked: Asked) -> None:
    """Make the task and the language that are asked for the model's own, in memory.

    Raises:
        BadInput: the model does not have them.
    """
    settings, task, language = checkpoint.model.generation_config, asked.task, asked.language
    if task is not None and task not in (settings.task_to_id if checkpoint.is_multilingual else ("transcribe",)):
        raise BadInput(f"{checkpoint.folder}: the model cannot {task}")
    code = None if language in (None, DETECT) else prompt_language(checkpoint, language)
    if checkpoint.is_multilingual and task is not None:
        settings.task = task
    if checkpoint.is_multilingual and language is not None:
        settings.language = code


def detected_language(checkpoint: WhisperCheckpoint, waveform_features: torch.Tensor) -> str | None:
    """The code of the language that the model hears in these windows (B, mels, frames) taken together."""
    if not checkpoint.is_multilingual:
        return None
    ids = checkpoint.model.generation_config.lang_to_id
    start = torch.full((len(waveform_features), 1), checkpoint.model.config.decoder_start_token_id)
    with torch.no_grad():
        after_start = logits(checkpoint.model, SpeechInputs(waveform_features, start))[:, 0]
    heard = after_start[:, list(ids.values())].log_softmax(dim=1).sum(dim=0).argmax().item()
    return list(ids)[int(heard)].removeprefix("<|").removesuffix("|>")


def prompt_tokens(tokenizer: WhisperTokenizer, language: str | None, task: str = "transcribe") -> list[int]:
    """The ids of `<|startoftranscript|>`, language and task, if there is a language, and `<|notimestamps|>`.

    Raises:
        BadInput: the tokenizer has no such language or no tasks.
    """
    asked = [f"<|{language}|>", TASK_TOKENS[task]] if language is not None else []
    names = [START, *asked, NO_TIMESTAMPS]
    known = tokenizer.get_vocab()
    for name in names:
        if name not in known:
            raise BadInput(f"the tokenizer has no {name!r}")
    return [known[name] for name in names]


def text_tokens(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """The ids of a transcript, which begins with a space, as all that Whisper was trained on.

    Raises:
        BadInput: the transcript spells a special token.
    """
    # Without `verbose` it warns of long texts; what is too long for a decoder is refused where that is known.
    ids = tokenizer(f" {text.strip()}", add_special_tokens=False, verbose=False)["input_ids"]
    end = tokenizer.get_vocab()[END]
    behind = (token for token in ids if token >= end)  # special ones, timestamps, and words added by a fine-tuning
    special = next((token for token in behind if tokenizer.convert_ids_to_tokens(token).startswith("<|")), None)
    if special is not None:
        raise BadInput(f"the transcript {text!r} holds {tokenizer.convert_ids_to_tokens(special)!r}, a special token")
    return ids


def decoder_tokens(
    tokenizer: WhisperTokenizer, texts: Sequence[str], language: str | None = None, task: str = "transcribe"
) -> torch.Tensor:
    """What the decoder is fed, int64 (N, L): the prompt and the text, padded with `<|endoftext|>`."""
    prompt, end = prompt_tokens(tokenizer, language, task), tokenizer.get_vocab()[END]
    return _padded([prompt + text_tokens(tokenizer, text) for text in texts], end)


def targets(tokenizer: WhisperTokenizer, texts: Sequence[str], language: str | None = None) -> torch.Tensor:
    """What the decoder should say after each of `decoder_tokens`, int64 (N, L): the text and `<|endoftext|>`.

    The rest of the prompt, which is given and not to be learned, and the padding are -100.
    """
    given = [NOT_A_TARGET] * (len(prompt_tokens(tokenizer, language)) - 1)
    end = tokenizer.get_vocab()[END]
    return _padded([[*given, *text_tokens(tokenizer, text), end] for text in texts], NOT_A_TARGET)


def _padded(rows: list[list[int]], padding: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.int64)


def labelled_inputs(checkpoint: WhisperCheckpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    """Features of the clips with their transcripts as decoder tokens and as targets.

    The prompt's task is the model's own, and so is its language, or it is the one that is heard in the first clips.

    Raises:
        BadInput: the clips have no transcripts, or one is too long for the window or for the decoder.
    """
    if clips.texts is None:
        raise BadInput("the clips have labels and no transcripts, which a speech model is calibrated on")
    arrays = []
    for number, (name, waveform) in enumerate(zip(clips.names, clips.waveforms, strict=True)):
        try:
            arrays.append(features(checkpoint.feature_extractor, [waveform]))
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        report(f"front end of clip {number + 1} of {len(clips)}", (number + 1) / len(clips))
    heard = torch.cat(arrays)
    language = prompt_language(checkpoint) or detected_language(checkpoint, heard[:HEARD_FOR_LANGUAGE])
    tokens = decoder_tokens(checkpoint.tokenizer, clips.texts, language, checkpoint.task)
    wanted = targets(checkpoint.tokenizer, clips.texts, language)
    positions = checkpoint.model.config.max_target_positions
    if tokens.shape[1] > positions:
        longest = int((wanted != NOT_A_TARGET).sum(dim=1).argmax())
        raise BadInput(
            f"{clips.names[longest]}: its transcript takes {tokens.shape[1]} tokens, prompt included, and the model's"
            f" decoder {positions}"
        )
    return LabelledInputs(SpeechInputs(heard, tokens), wanted, clips.texts)


def activation_bytes(model: WhisperModel, inputs: SpeechInputs) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config, width = model.config, model.config.d_model
    encoder = config.encoder_layers * (10 * width + 2 * config.encoder_ffn_dim) + 2 * config.decoder_layers * width
    decoder = config.decoder_layers * (18 * width + 2 * config.decoder_ffn_dim) + 8 * config.vocab_size
    tokens = inputs.tokens.shape[1]
    return int((config.max_source_positions * encoder + tokens * decoder) * inputs.features.element_size())


def macs(checkpoint: WhisperCheckpoint, model: WhisperModel, form: str = "portable") -> Macs:
    """The MACs of one window and the tokens that are measured of it, in a graph of whatever form."""
    del form
    tokens = window_tokens(decoding_settings(checkpoint))
    return count_whisper_macs(model, read_log_mel(checkpoint.feature_extractor), tokens)


def attention_blocks(model: WhisperModel) -> AttentionBlocks:
    """The encoder's blocks are ordinary ones; the decoder keeps keys and values."""
    kinds = tuple("ordinary" if site.kind == "encoder" else "cached" for site in attention_sites(model))
    return AttentionBlocks(kinds, model.config.max_source_positions, model.config.d_model)


def mistakes(
    checkpoint: WhisperCheckpoint, model: WhisperModel, clips: LabelledInputs, answers: torch.Tensor
) -> Mistakes:
    """Word errors of the model's own greedy transcripts; answers, by teacher forcing, have no part in it."""
    del answers
    return word_mistakes(model, checkpoint.tokenizer, clips)


def slim_model(
    model: WhisperModel,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SlimWhisperForConditionalGeneration:
    """A new slim model with what `sites` keeps of `model`'s attention; everything else is copied.

    Heads and channels in `sites` count within `model` itself, dense or already slim. attention_states: the blocks'
    weights, as `surgery` makes them; by default the kept channels as they are. feed_forward_states: the same of the
    feed-forward blocks that become smaller, by name; the others are copied. The softmax scale is handed over as the
    constant that it is. Alignment heads get their new numbers, see `alignment_heads`.
    """
    dense_sites = attention_sites(model)
    states = feed_forward_states or {}
    config = _slim_config(model.config, sites, dense_sites[0].scaling, kept_widths(feed_forward_sites(model), states))
    with torch.device("meta"):
        slim = SlimWhisperForConditionalGeneration(config)
    changed = feed_forward_state(states, lambda name: f"model.{name.removesuffix('.feed_forward')}")
    state = slim_state(model, dense_sites, sites, attention_states, "model", "out_proj", changed)
    slim.load_state_dict(state, strict=True, assign=True)
    slim.tie_weights()
    slim.generation_config = copy.deepcopy(model.generation_config)
    _set_alignment_heads(slim.generation_config, alignment_heads(model.generation_config, sites))
    return slim.eval().to(model.device)


def alignment_heads(settings: GenerationConfig, sites: tuple[SitePlan, ...]) -> AlignmentHeads:
    """What becomes of the alignment heads in a model's generation settings when `sites` is kept of that model."""
    kept_heads = {site.name: [head.head for head in site.heads] for site in sites}
    kept, dropped = [], []
    for layer, head in getattr(settings, "alignment_heads", None) or ():
        remaining = kept_heads[f"decoder.layers.{layer}.encoder_attn"]
        if head in remaining:
            kept.append(((layer, head), (layer, remaining.index(head))))
        else:
            dropped.append((layer, head))
    return AlignmentHeads(tuple(kept), tuple(dropped))


def _set_alignment_heads(settings: GenerationConfig, found: AlignmentHeads) -> None:
    if found.kept:
        settings.alignment_heads = [list(slim) for _, slim in found.kept]
    elif found.dropped:
        del settings.alignment_heads  # without it, transformers says that there are no token timestamps


def _slim_config(
    config: WhisperConfig, sites: tuple[SitePlan, ...], scaling: float, feed_forward_widths: list[int]
) -> SlimWhisperConfig:
    slim = SlimWhisperConfig(
        query_key_widths=[list(site.query_key_widths) for site in sites],
        value_output_widths=[list(site.value_output_widths) for site in sites],
        attention_scaling=scaling,
        feed_forward_widths=feed_forward_widths,
        **slim_settings(config),
    )
    slim.architectures = [SlimWhisperForConditionalGeneration.__name__]
    slim.auto_map = {
        "AutoConfig": f"{MODELLING_FILE.stem}.{SlimWhisperConfig.__name__}",
        "AutoModelForSpeechSeq2Seq": f"{MODELLING_FILE.stem}.{SlimWhisperForConditionalGeneration.__name__}",
    }
    return slim


def save_slim_checkpoint(
    model: SlimWhisperForConditionalGeneration,
    source: WhisperCheckpoint,
    plan: Plan,
    out: Path,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    It opens with `AutoModelForSpeechSeq2Seq.from_pretrained(out, trust_remote_code=True)` where leanear is not
    installed, because the modelling file is inside, and with `load_checkpoint` without running that file.
    source: the dense checkpoint that was pruned; facts: written to pruning.json beside the plan, if there are any,
    together with what became of the alignment heads.

    Raises:
        BadInput: the model has weights that are not finite.
    """

    def write_processor(folder: Path) -> None:
        WhisperProcessor(source.feature_extractor, source.tokenizer).save_pretrained(folder)
        source.feature_extractor.save_pretrained(folder)  # where transformers 4 looks for it
        source.tokenizer.save_vocabulary(str(folder))  # with the spellings that Whisper's normaliser knows
        _name_special_tokens_as_before(folder / "tokenizer_config.json")

    if facts is not None:
        found = alignment_heads(source.model.generation_config, plan.sites)
        facts = {**facts, "alignment_heads": found.as_json()}
    write_slim_folder(out, model, write_processor, MODELLING_FILE, plan, facts)


def _name_special_tokens_as_before(path: Path) -> None:
    """transformers 5 writes a key that version 4 stumbles over; both read the older name."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_json(path, settings)


def export(
    checkpoint: WhisperCheckpoint, golden_waveforms: Sequence[np.ndarray], out: Path, options: ExportOptions
) -> object:
    """Write the artifact folder, whole or not at all, its parity null.

    Raises:
        BadInput: as `leanear.export.artifact.export_artifact`.
    """
    decoding, words = decoding_settings(checkpoint), added_words(checkpoint)
    speech = Speech(vocabulary_tokens(checkpoint), decoding.text_tokens, decoding, words, options.alignment)
    model, extractor = checkpoint.model, checkpoint.feature_extractor
    return export_artifact(model, extractor, golden_waveforms, out, speech=speech, **options.of_any_family())


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
