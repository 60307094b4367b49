"""The Audio Spectrogram Transformer family: loading, attention sites, loss, slimming, saving."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.data.examples import LabelledInputs
from leanear.export.artifact import export_artifact
from leanear.export.ast.front_end import read_front_end
from leanear.export.ast.graph import token_count
from leanear.export.macs import Macs, count_macs
from leanear.export.options import ExportOptions
from leanear.families import modeling_slim_ast
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
    require_gelu,
    write_slim_folder,
)
from leanear.families.classifier import (
    batch_loss,
    check_head,
    decoder_layers,
    encoded,
    labelled,
    logits,
    metric_of,
    mistakes,
)
from leanear.families.family import AttentionBlocks
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.families.slimming import smaller_model
from leanear.plan import Plan, SitePlan, full_plan
from leanear.progress import Report, quiet
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import classifier_task

FAMILY = "ast"
SLIM_MODEL_TYPE = SlimASTConfig.model_type
BODY = "audio_spectrogram_transformer"  # where the layers are
SHORTEST_SAMPLES = 240  # the fewest of which transformers' extractor makes features, and no frame
SIZE_SIGNS = SizeSigns(
    layers={"num_hidden_layers": r"\.layers?\.(\d+)\."},
    widths={"hidden_size": r"^classifier\.layernorm\.weight$", "num_labels": r"^classifier\.dense\.weight$"},
)
MODELLING_FILE = Path(modeling_slim_ast.__file__)
SLIM = (SlimASTConfig, SlimASTForAudioClassification, "AutoModelForAudioClassification")

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
    def task(self) -> str:
        """What it is for, as in `leanear.runtimes.tasks`."""
        return classifier_task(self.model.config.problem_type, len(self.labels))

    @property
    def metric(self) -> str:
        """What the share of its mistakes is told of."""
        return metric_of(self.model.config)


def load_checkpoint(folder: Path, asked: Asked = NOTHING_ASKED) -> AstCheckpoint:
    """The dense or slim AST checkpoint in `folder` (fp32). Weights come from safetensors; no code in the folder is run.

    Raises:
        BadInput: a file is missing or damaged, the model and its feature extractor disagree, or something is asked.
    """
    asked.refuse_for(folder)
    folder = Path(folder)
    feature_extractor = _load_feature_extractor(folder)
    slim = read_model_type(folder) == SLIM_MODEL_TYPE
    model_class = SlimASTForAudioClassification if slim else ASTForAudioClassification
    config = load_config(SlimASTConfig if slim else ASTConfig, model_class, folder, SIZE_SIGNS)
    try:
        labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    except KeyError as error:
        raise BadInput(f"{folder}/config.json: id2label has no label {error}") from None
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{folder}/config.json: no model can be built from it ({first_line(error)})") from None
    check_head(folder, config, labels)
    wanted = feature_extractor.max_length, feature_extractor.num_mel_bins
    require_features(folder, feature_extractor, features, wanted)
    if config.num_hidden_layers < 1:
        raise BadInput(f"{folder}/config.json: num_hidden_layers is 0; there is no attention to prune")
    require_gelu(folder, "hidden_act", config)
    model = load_weights(model_class, folder)
    config = model.config
    for key, found in (("max_length", feature_extractor.max_length), ("num_mel_bins", feature_extractor.num_mel_bins)):
        if getattr(config, key) != found:
            raise BadInput(
                f"{folder}/preprocessor_config.json: {key} is {found}, but config.json says {getattr(config, key)}"
            )
    return AstCheckpoint(folder=folder, model=model, feature_extractor=feature_extractor, labels=labels)


def _load_feature_extractor(folder: Path) -> ASTFeatureExtractor:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the audio front end's settings are needed")
    check_front_end(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
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
                may_go=True,
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


def window_samples(feature_extractor: ASTFeatureExtractor) -> int:
    """How much of a waveform the model hears, at most."""
    return read_front_end(feature_extractor).window_samples


def features(feature_extractor: ASTFeatureExtractor, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """Log-mel features (B, max_length, num_mel_bins), fp32, by transformers' own extractor.

    It fails on clips much shorter than a frame. They get silence up to where it works, of which it makes no frame
    either: like a clip just short of one frame, they are all padding, as they are in the exported graph.
    """
    rate_hz = feature_extractor.sampling_rate
    padded = [np.pad(waveform, (0, max(0, SHORTEST_SAMPLES - len(waveform)))) for waveform in waveforms]
    arrays = [feature_extractor(waveform, sampling_rate=rate_hz)["input_values"][0] for waveform in padded]
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def labelled_inputs(checkpoint: AstCheckpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    """Features (N, frames, mels) and labels, or tags, of the clips, by transformers' own extractor."""
    return labelled(lambda waveforms: features(checkpoint.feature_extractor, waveforms), clips, report)


calibration_inputs = labelled_inputs


def activation_bytes(model: AstModel, inputs: torch.Tensor) -> int:
    """Roughly what one clip's activations take when all layers keep theirs for the backward pass, in bytes."""
    config = model.config
    tokens = model.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1]
    per_token = 10 * config.hidden_size + 2 * config.intermediate_size
    return int(config.num_hidden_layers * tokens * per_token * inputs.element_size())


def macs(checkpoint: AstCheckpoint, model: AstModel, form: str = "portable") -> Macs:
    """The MACs of one window, as a graph of `form` computes it."""
    return count_macs(model, read_front_end(checkpoint.feature_extractor), form=form)


def attention_blocks(model: AstModel) -> AttentionBlocks:
    """Ordinary blocks, and the last one, which is computed for the tokens that the classifier reads."""
    config = model.config
    kinds = ("ordinary",) * (config.num_hidden_layers - 1) + ("last",)
    return AttentionBlocks(kinds, token_count(config), config.hidden_size)


def slim_model(
    model: AstModel,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SlimASTForAudioClassification:
    """A new slim model with what `sites` keeps of `model`'s attention; everything else is copied.

    Heads and channels in `sites` count within `model` itself, dense or already slim. attention_states: the blocks'
    weights, as `slimming` makes them; by default the kept channels as they are. feed_forward_states: the same of the
    feed-forward blocks that become smaller, by name; the others are copied. The softmax scale is handed over as the
    constant that it is.
    """
    blocks = attention_sites(model), feed_forward_sites(model)
    return smaller_model(
        model, SLIM, blocks, sites, attention_states, feed_forward_states, (BODY, "o_proj"),
        lambda name: f"{BODY}.{name.removesuffix('feed_forward')}mlp",
    ).to(model.device)  # fmt: skip


def save_slim_checkpoint(
    model: SlimASTForAudioClassification, source: AstCheckpoint, plan: Plan, out: Path, facts: Any = None
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    It opens with `AutoModelForAudioClassification.from_pretrained(out, trust_remote_code=True)` where leanear is not
    installed, because the modelling file is inside, and with `load_checkpoint` without running that file.
    source: the checkpoint that was pruned; facts: the document pruning.json, if there is one.

    Raises:
        BadInput: the model has weights that are not finite.
    """
    write_slim_folder(out, model, source.feature_extractor.save_pretrained, MODELLING_FILE, plan, facts)


def export(
    checkpoint: AstCheckpoint, golden_waveforms: Sequence[np.ndarray], out: Path, options: ExportOptions
) -> object:
    """Write the artifact folder, whole or not at all, its parity null."""
    return export_artifact(checkpoint.model, checkpoint.feature_extractor, golden_waveforms, out, options)
