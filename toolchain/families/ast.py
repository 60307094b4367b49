"""The Audio Spectrogram Transformer family: loading, attention sites, loss, slimming, saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.benchmarks.tagging import MEAN_AP, clip_shares
from leanear.calibration.likelihood import negative_log_likelihoods
from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.calibration.targets import kind_of
from leanear.data.examples import LabelledInputs, Mistakes
from leanear.families import modeling_slim_ast
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
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.plan import Plan, SitePlan, full_plan
from leanear.progress import Report, quiet
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import MULTI_LABEL, TAGGING_TASK, classifier_task
from leanear.surgery import kept_attention_state

FAMILY = "ast"
DENSE_MODEL_TYPE = "audio-spectrogram-transformer"
SLIM_MODEL_TYPE = SlimASTConfig.model_type
SHORTEST_SAMPLES = 240  # the fewest of which transformers' extractor makes features, and no frame
SIZE_SIGNS = SizeSigns(
    layers={"num_hidden_layers": r"\.layers?\.(\d+)\."},
    widths={"hidden_size": r"^classifier\.layernorm\.weight$", "num_labels": r"^classifier\.dense\.weight$"},
)
MODELLING_FILE = Path(modeling_slim_ast.__file__)

AstModel: TypeAlias = "ASTForAudioClassification | SlimASTForAudioClassification"


@dataclass(frozen=True)
class AstCheckpoint:
    """A checkpoint in memory, in eval mode: the model, its feature extractor, and one label name per logit.

    Its logits are one softmax, or, where clips may have several labels, one sigmoid each; `task` says which.
    """

    folder: Path
    model: AstModel
    feature_extractor: ASTFeatureExtractor
    labels: tuple[str, ...]

    @property
    def is_slim(self) -> bool:
        """Whether the heads have widths of their own."""
        return isinstance(self.model, SlimASTForAudioClassification)

    @property
    def task(self) -> str:
        """What it is for, as in `leanear.runtimes.tasks`."""
        return classifier_task(self.model.config.problem_type, len(self.labels))

    @property
    def metric(self) -> str:
        """What the share of its mistakes is told of."""
        return MEAN_AP if self.task == TAGGING_TASK else "accuracy"


def load_checkpoint(folder: Path) -> AstCheckpoint:
    """The dense or slim AST checkpoint in `folder` (fp32). Weights come from safetensors; no code in the folder is run.

    Raises:
        BadInput: a file is missing or damaged, or the model and its feature extractor disagree.
    """
    folder = Path(folder)
    feature_extractor = _load_feature_extractor(folder)
    slim = read_model_type(folder) == SLIM_MODEL_TYPE
    model_class = SlimASTForAudioClassification if slim else ASTForAudioClassification
    config = load_config(SlimASTConfig if slim else ASTConfig, model_class, folder, SIZE_SIGNS)
    try:
        labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{folder}/config.json: no model can be built from it ({first_line(error)})") from None
    _check_head(folder, config, labels)
    require_features(
        f"{folder}/preprocessor_config.json",
        lambda: features(feature_extractor, [np.zeros(feature_extractor.sampling_rate // 10, np.float32)]),
        (feature_extractor.max_length, feature_extractor.num_mel_bins),
    )
    if config.num_hidden_layers < 1:
        raise BadInput(f"{folder}/config.json: num_hidden_layers is 0; there is no attention to prune")
    model = load_weights(model_class, folder)
    config = model.config
    for key, found in (("max_length", feature_extractor.max_length), ("num_mel_bins", feature_extractor.num_mel_bins)):
        if getattr(config, key) != found:
            raise BadInput(
                f"{folder}/preprocessor_config.json: {key} is {found}, but config.json says {getattr(config, key)}"
            )
    return AstCheckpoint(folder=folder, model=model, feature_extractor=feature_extractor, labels=labels)


def _check_head(folder: Path, config: ASTConfig, labels: Sequence[str]) -> None:
    """Raises BadInput where the logits are not those of classes, or two of these cannot be told apart."""
    path = f"{folder}/config.json"
    if config.problem_type not in (None, "single_label_classification", MULTI_LABEL):
        raise BadInput(
            f"{path}: problem_type is {config.problem_type!r}; leanear takes classifiers: single_label_classification"
            f" or {MULTI_LABEL}"
        )
    twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if twice is not None:
        first, second = [index for index, label in enumerate(labels) if label == twice][:2]
        raise BadInput(f"{path}: id2label names both {first} and {second} {twice!r}; each class needs its own name")


def _load_feature_extractor(folder: Path) -> ASTFeatureExtractor:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the audio front end's settings are needed")
    check_front_end(path)
    try:
        return ASTFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not the settings of an ASTFeatureExtractor ({first_line(error)})") from None


def attention_sites(model: AstModel) -> tuple[AttentionSite, ...]:
    """The model's attention blocks from the first layer to the last; works on dense and slim models."""
    sites = []
    for index, layer in enumerate(model.audio_spectrogram_transformer.layers):
        block = layer.attention
        if isinstance(model, SlimASTForAudioClassification):
            query_key_widths, value_output_widths = block.query_key_widths, block.value_output_widths
        else:
            query_key_widths = value_output_widths = (block.head_dim,) * block.num_attention_heads
        sites.append(
            AttentionSite(
                name=f"layers.{index}.attention",
                module=block,
                query=block.q_proj,
                key=block.k_proj,
                value=block.v_proj,
                output=block.o_proj,
                query_key_widths=query_key_widths,
                value_output_widths=value_output_widths,
                scaling=block.scaling,
            )
        )
    return tuple(sites)


def feed_forward_sites(model: AstModel) -> tuple[FeedForwardSite, ...]:
    """The model's feed-forward blocks from the first layer to the last; works on dense and slim models."""
    return tuple(
        FeedForwardSite(f"layers.{index}.feed_forward", layer.mlp.fc1, layer.mlp.fc2)
        for index, layer in enumerate(model.audio_spectrogram_transformer.layers)
    )


def dense_plan(model: AstModel) -> Plan:
    """The plan that keeps all of a dense model.

    Raises:
        BadInput: the model is slim already: what its channels were in the dense one is not known from it.
    """
    if isinstance(model, SlimASTForAudioClassification):
        raise BadInput("the model is already slim; prune its dense checkpoint, with a higher sparsity")
    return full_plan(FAMILY, attention_sites(model), feed_forward_sites(model))


def encoder_layers(model: AstModel) -> tuple[torch.nn.Module, ...]:
    """The model's transformer layers, for activation checkpointing and to compare their outputs."""
    return tuple(model.audio_spectrogram_transformer.layers)


def decoder_layers(model: AstModel) -> tuple[torch.nn.Module, ...]:
    """Those of the transformer layers whose outputs stand at the positions of a sequence's targets: none."""
    del model
    return ()


def features(feature_extractor: ASTFeatureExtractor, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """Log-mel features (B, max_length, num_mel_bins), fp32, by transformers' own extractor.

    It fails on clips much shorter than a frame. They get silence up to where it works, of which it makes no frame
    either: like a clip just short of one frame, they are all padding, as they are in the exported graph.
    """
    rate_hz = feature_extractor.sampling_rate
    padded = [np.pad(waveform, (0, max(0, SHORTEST_SAMPLES - len(waveform)))) for waveform in waveforms]
    arrays = [feature_extractor(waveform, sampling_rate=rate_hz)["input_values"][0] for waveform in padded]
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def logits(model: AstModel, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (B, labels) of a batch of features (B, frames, mels), on the model's device."""
    return model(inputs.to(model.device)).logits


def batch_loss(model: AstModel, inputs: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over a batch of features (B, frames, mels) and label ids (B,), or tags (B, labels)."""
    return negative_log_likelihoods(logits(model, inputs), label_ids).mean()


def labelled_inputs(checkpoint: AstCheckpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    """Features (N, frames, mels) and labels, or tags, of the clips, by transformers' own extractor."""
    arrays = []
    for number, waveform in enumerate(clips.waveforms):
        arrays.append(features(checkpoint.feature_extractor, [waveform]))
        report(f"front end of clip {number + 1} of {len(clips)}", (number + 1) / len(clips))
    truth = clips.label_ids if clips.tags is None else clips.tags.astype(np.float32)
    return LabelledInputs(torch.cat(arrays), torch.from_numpy(truth))


def activation_bytes(model: AstModel, inputs: torch.Tensor) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config = model.config
    tokens = model.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1]
    per_token = 10 * config.hidden_size + 2 * config.intermediate_size
    return int(config.num_hidden_layers * tokens * per_token * inputs.element_size())


def mistakes(checkpoint: AstCheckpoint, model: AstModel, clips: LabelledInputs, answers: torch.Tensor) -> Mistakes:
    """Which clips' labels are not the first in the model's logits, answers (N, labels); what clips cost of the mAP.

    Raises:
        BadInput: clips may have several labels, and none has any.
    """
    del checkpoint, model
    if kind_of(clips.targets) == "tags":
        return _ranking_mistakes(answers, clips.targets)
    wrong = (answers.argmax(dim=1).cpu() != clips.targets).numpy().astype(np.float64)
    return Mistakes(wrong, np.ones_like(wrong))


def _ranking_mistakes(answers: torch.Tensor, tags: torch.Tensor) -> Mistakes:
    truth, scores = tags.numpy() > 0, answers.float().cpu().numpy()
    if not truth.any():
        raise BadInput(
            f"none of {len(truth)} held-out clips has a label to be ranked by; give more clips that have some"
        )
    return Mistakes(*clip_shares(scores, truth), scores, truth)


def slim_model(
    model: AstModel,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SlimASTForAudioClassification:
    """A new slim model with what `sites` keeps of `model`'s attention; everything else is copied.

    Heads and channels in `sites` count within `model` itself, dense or already slim. attention_states: the blocks'
    weights, as `surgery` makes them; by default the kept channels as they are. feed_forward_states: the same of the
    feed-forward blocks that become smaller, by name; the others are copied. The softmax scale is handed over as the
    constant that it is.
    """
    if attention_states is None:
        pairs = zip(attention_sites(model), sites, strict=True)
        attention_states = [kept_attention_state(site, site_plan) for site, site_plan in pairs]
    states = feed_forward_states or {}
    widths = [
        len(states[site.name]["first.bias"]) if site.name in states else site.width
        for site in feed_forward_sites(model)
    ]
    config = _slim_config(model.config, sites, attention_sites(model)[0].scaling, widths)
    with torch.device("meta"):
        slim = SlimASTForAudioClassification(config)
    changed: dict[str, torch.Tensor] = {}
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    for site, state in zip(attention_sites(model), attention_states, strict=True):
        for name, tensor in state.items():
            projection, parameter = name.split(".")
            changed[f"audio_spectrogram_transformer.{site.name}.{projections[projection]}.{parameter}"] = tensor
    layers = {"first": "fc1", "second": "fc2"}
    for block, state in states.items():
        for name, tensor in state.items():
            layer, parameter = name.split(".")
            changed[
                f"audio_spectrogram_transformer.{block.removesuffix('feed_forward')}mlp.{layers[layer]}.{parameter}"
            ] = tensor
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in changed}
    slim.load_state_dict({**rest, **changed}, strict=True, assign=True)
    return slim.eval().to(model.device)


def _slim_config(
    config: ASTConfig, sites: tuple[SitePlan, ...], scaling: float, feed_forward_widths: list[int]
) -> SlimASTConfig:
    slim = SlimASTConfig(
        query_key_widths=[list(site.query_key_widths) for site in sites],
        value_output_widths=[list(site.value_output_widths) for site in sites],
        attention_scaling=scaling,
        feed_forward_widths=feed_forward_widths,
        **slim_settings(config),
    )
    slim.architectures = [SlimASTForAudioClassification.__name__]
    slim.auto_map = {
        "AutoConfig": f"{MODELLING_FILE.stem}.{SlimASTConfig.__name__}",
        "AutoModelForAudioClassification": f"{MODELLING_FILE.stem}.{SlimASTForAudioClassification.__name__}",
    }
    return slim


def save_slim_checkpoint(
    model: SlimASTForAudioClassification,
    source: AstCheckpoint,
    plan: Plan,
    out: Path,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    It opens with `AutoModelForAudioClassification.from_pretrained(out, trust_remote_code=True)` where leanear is not
    installed, because the modelling file is inside, and with `load_checkpoint` without running that file.
    source: the checkpoint that was pruned; facts: written to pruning.json beside the plan, if there are any.

    Raises:
        BadInput: the model has weights that are not finite.
    """
    write_slim_folder(out, model, source.feature_extractor.save_pretrained, MODELLING_FILE, plan, facts)
