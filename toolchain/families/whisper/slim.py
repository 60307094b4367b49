"""The slim model of a plan, and its checkpoint's folder."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, WhisperProcessor

from leanear.families import modeling_slim_whisper
from leanear.families.checkpoint_files import write_slim_folder
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.families.slimming import feed_forward_state, kept_widths, slim_config, slim_state
from leanear.families.whisper.blocks import attention_sites, feed_forward_sites
from leanear.families.whisper.checkpoint import WhisperCheckpoint, WhisperModel
from leanear.plan import Plan, SitePlan
from leanear.runtimes.files import write_json

MODELLING_FILE = Path(modeling_slim_whisper.__file__)
SLIM = (SlimWhisperConfig, SlimWhisperForConditionalGeneration, "AutoModelForSpeechSeq2Seq")


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
    weights, as `surgery` makes them; by default the kept channels as they are. feed_forward_states: the same of the
    feed-forward blocks that become smaller, by name; the others are copied. The softmax scale is handed over as the
    constant that it is. Alignment heads get their new numbers, see `alignment_heads`.
    """
    dense_sites = attention_sites(model)
    states = feed_forward_states or {}
    widths = kept_widths(feed_forward_sites(model), states)
    config = slim_config(model.config, SLIM, sites, dense_sites[0].scaling, widths)
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
