"""A Whisper in memory: its checkpoint, attention and feed-forward blocks, alignment heads, and slim models of it."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from leanear.calibration.sites import AttentionKind, AttentionSite, FeedForwardKind, FeedForwardSite
from leanear.data.examples import SpeechInputs
from leanear.families import modeling_slim_whisper
from leanear.families.checkpoint_files import PRUNING_FILE, write_slim_folder
from leanear.families.family import AttentionBlocks
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.families.slimming import smaller_model
from leanear.plan import Plan, SitePlan, full_plan
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object, write_json
from leanear.runtimes.manifest import Alignment
from leanear.runtimes.records import read

SLIM_MODEL_TYPE = SlimWhisperConfig.model_type
FRAMES_PER_POSITION = 2  # the stride of the encoder's second convolution
WhisperModel: TypeAlias = WhisperForConditionalGeneration  # of which the slim one is a subclass
FAMILY = "whisper"
MODELLING_FILE = Path(modeling_slim_whisper.__file__)
SLIM = (SlimWhisperConfig, SlimWhisperForConditionalGeneration, "AutoModelForSpeechSeq2Seq")


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


def cross_attention_heads(config: WhisperConfig) -> list[int]:
    """How many heads of cross-attention each layer of a dense or slim model's decoder has."""
    if isinstance(config, SlimWhisperConfig):
        return [len(widths) for widths in config.query_key_widths[config.encoder_layers + 1 :: 2]]
    return [config.decoder_attention_heads] * config.decoder_layers


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
        # A decoder's blocks keep a head: transformers counts the tokens so far by the first layer's keys, and sessions
        # hold keys and values of every layer.
        may_go=kind == "encoder",
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


def activation_bytes(model: WhisperModel, inputs: SpeechInputs) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config, width = model.config, model.config.d_model
    encoder = config.encoder_layers * (10 * width + 2 * config.encoder_ffn_dim) + 2 * config.decoder_layers * width
    decoder = config.decoder_layers * (18 * width + 2 * config.decoder_ffn_dim) + 8 * config.vocab_size
    tokens = inputs.tokens.shape[1]
    return int((config.max_source_positions * encoder + tokens * decoder) * inputs.features.element_size())


def attention_blocks(model: WhisperModel) -> AttentionBlocks:
    """The encoder's blocks are ordinary ones; the decoder keeps keys and values."""
    kinds = tuple("ordinary" if site.kind == "encoder" else "cached" for site in attention_sites(model))
    return AttentionBlocks(kinds, model.config.max_source_positions, model.config.d_model)


@dataclass(frozen=True)
class KeptHead:
    """A head that stays, (decoder layer, head): where it was and where it is now."""

    dense: tuple[int, int]
    slim: tuple[int, int]


@dataclass(frozen=True)
class AlignmentHeads:
    """What became of the heads whose cross-attention tells when a word was said; dropped: where those were that are
    gone."""

    kept: tuple[KeptHead, ...]
    dropped: tuple[tuple[int, int], ...]


def slim_model(
    model: WhisperModel,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SlimWhisperForConditionalGeneration:
    """A new slim model with what `sites` keeps of `model`'s attention; everything else is copied.

    Heads and channels in `sites` count within `model` itself, dense or already slim. attention_states: the blocks'
    weights, as `slimming` makes them; by default the kept channels as they are. feed_forward_states: the same of the
    feed-forward blocks that become smaller, by name; the others are copied. The softmax scale is handed over as the
    constant that it is. Alignment heads get their new numbers, see `alignment_heads`.
    """
    blocks = attention_sites(model), feed_forward_sites(model)
    slim = smaller_model(
        model, SLIM, blocks, sites, attention_states, feed_forward_states, ("model", "out_proj"),
        lambda name: f"model.{name.removesuffix('.feed_forward')}",
    )  # fmt: skip
    slim.tie_weights()
    slim.generation_config = copy.deepcopy(model.generation_config)
    _set_alignment_heads(slim.generation_config, alignment_heads(model.generation_config, sites))
    return slim.to(model.device)


def alignment_heads(settings: GenerationConfig, sites: tuple[SitePlan, ...]) -> AlignmentHeads:
    """What becomes of the alignment heads in a model's generation settings when `sites` is kept of that model."""
    kept_heads = {site.name: [head.head for head in site.heads] for site in sites}
    kept, dropped = [], []
    for layer, head in getattr(settings, "alignment_heads", None) or ():
        remaining = kept_heads[f"decoder.layers.{layer}.encoder_attn"]
        if head in remaining:
            kept.append(KeptHead((layer, head), (layer, remaining.index(head))))
        else:
            dropped.append((layer, head))
    return AlignmentHeads(tuple(kept), tuple(dropped))


def _set_alignment_heads(settings: GenerationConfig, found: AlignmentHeads) -> None:
    if found.kept:
        settings.alignment_heads = [list(each.slim) for each in found.kept]
    elif found.dropped:
        del settings.alignment_heads  # without it, transformers says that there are no token timestamps


def save_slim_checkpoint(
    model: SlimWhisperForConditionalGeneration, source: WhisperCheckpoint, plan: Plan, out: Path, facts: Any = None
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    It opens with `AutoModelForSpeechSeq2Seq.from_pretrained(out, trust_remote_code=True)` where leanear is not
    installed, because the modelling file is inside, and with `load_checkpoint` without running that file.
    source: the dense checkpoint that was pruned; facts: the document pruning.json, if there is one, which is told what
    became of the alignment heads.

    Raises:
        BadInput: the model has weights that are not finite.
    """

    def write_processor(folder: Path) -> None:
        WhisperProcessor(source.feature_extractor, source.tokenizer).save_pretrained(folder)
        source.feature_extractor.save_pretrained(folder)  # where transformers 4 looks for it
        source.tokenizer.save_vocabulary(str(folder))  # with the spellings that Whisper's normaliser knows
        _name_special_tokens_as_before(folder / "tokenizer_config.json")

    if facts is not None:
        facts = dataclasses.replace(facts, alignment_heads=alignment_heads(source.model.generation_config, plan.sites))
    write_slim_folder(out, model, write_processor, MODELLING_FILE, plan, facts)


def _name_special_tokens_as_before(path: Path) -> None:
    """transformers 5 writes a key that version 4 stumbles over; both read the older name."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_json(path, settings)


def alignment_of(checkpoint: WhisperCheckpoint) -> Alignment:
    """The alignment heads of generation_config.json or, where it has none, all of the decoder's upper half.

    Of tiny.en, the upper half is 60 ms from its own list (docs/benchmarks.md). Heads that were chosen because they move
    with the text of clips were four times as far: some of the steadiest look a quarter of a second beside it.
    """
    config, settings = checkpoint.model.config, checkpoint.model.generation_config
    heads = {(int(layer), int(head)) for layer, head in getattr(settings, "alignment_heads", None) or ()}
    lost, width = _pruned_heads(checkpoint), int(config.median_filter_width)
    if heads:
        return Alignment(tuple(sorted(heads)), "generation_config", lost, width)
    counts = cross_attention_heads(config)
    upper = range(len(counts) // 2, len(counts))
    return Alignment(
        tuple((layer, head) for layer in upper for head in range(counts[layer])), "upper half", lost, width
    )


def _pruned_heads(checkpoint: WhisperCheckpoint) -> int:
    """How many heads of the dense model's list pruning took, as pruning.json says; 0 where there is none."""
    path = checkpoint.folder / PRUNING_FILE
    found = read_object(path).get("alignment_heads") if path.is_file() else None
    return 0 if found is None else len(read(AlignmentHeads, found, f"{path}, alignment_heads").dropped)
