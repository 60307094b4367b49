"""The Audio Spectrogram Transformer family: loading, attention sites, loss, slimming, saving."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from transformers.utils import logging

from calibration.sites import AttentionSite
from runtimes.errors import BadInput
from runtimes.files import replaced_folder, write_json
from toolchain.families import modeling_slim_ast
from toolchain.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from toolchain.plan import Plan, SitePlan, full_plan, write_plan
from toolchain.surgery import kept_attention_state

FAMILY = "ast"
TASK = "audio-classification"
DENSE_MODEL_TYPE = "audio-spectrogram-transformer"
SLIM_MODEL_TYPE = SlimASTConfig.model_type
SHORTEST_SAMPLES = 240  # the fewest of which transformers' extractor makes features, and no frame
PRUNING_FILE = "pruning.json"
MODELLING_FILE = Path(modeling_slim_ast.__file__)

# What transformers raises on settings that make no sense, none of it by a name of its own.
UNUSABLE_SETTINGS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    RuntimeError,
    StrictDataclassError,
)

AstModel: TypeAlias = "ASTForAudioClassification | SlimASTForAudioClassification"


@dataclass(frozen=True)
class AstCheckpoint:
    """A checkpoint in memory, in eval mode: the model, its feature extractor, and one label name per logit."""

    folder: Path
    model: AstModel
    feature_extractor: ASTFeatureExtractor
    labels: tuple[str, ...]

    @property
    def is_slim(self) -> bool:
        """Whether the heads have widths of their own."""
        return isinstance(self.model, SlimASTForAudioClassification)


def load_checkpoint(folder: Path) -> AstCheckpoint:
    """The dense or slim AST checkpoint in `folder` (fp32). Weights come from safetensors; no code in the folder is run.

    Raises:
        BadInput: a file is missing or damaged, or the model and its feature extractor disagree.
    """
    folder = Path(folder)
    feature_extractor = _load_feature_extractor(folder)
    config_json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    slim = config_json.get("model_type") == SLIM_MODEL_TYPE
    model_class = SlimASTForAudioClassification if slim else ASTForAudioClassification
    try:
        config = (SlimASTConfig if slim else ASTConfig).from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model_class(config)  # whatever the settings cannot build fails here, apart from the weights
        labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{folder}/config.json: no model can be built from it ({_first_line(error)})") from None
    if config.num_hidden_layers < 1:
        raise BadInput(f"{folder}/config.json: num_hidden_layers is 0; there is no attention to prune")
    try:
        with _without_progress_bars():
            model, loading = model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder}: weights cannot be read ({_first_line(error)})") from None
    mismatched = sorted(str(entry[0]) for entry in loading["mismatched_keys"])
    if mismatched:
        raise BadInput(f"{folder}: {mismatched[0]!r} has another shape in the weights than config.json says")
    absent = sorted(loading["missing_keys"])
    if absent:
        raise BadInput(f"{folder}: the weights lack {absent[0]!r} ({len(absent)} tensors missing)")
    wrong = next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
    if wrong is not None:
        raise BadInput(f"{folder}: the weights hold NaN or infinite values, in {wrong!r}")
    config = model.config
    for key, found in (("max_length", feature_extractor.max_length), ("num_mel_bins", feature_extractor.num_mel_bins)):
        if getattr(config, key) != found:
            raise BadInput(
                f"{folder}/preprocessor_config.json: {key} is {found}, but config.json says {getattr(config, key)}"
            )
    return AstCheckpoint(folder=folder, model=model.eval(), feature_extractor=feature_extractor, labels=labels)


def _load_feature_extractor(folder: Path) -> ASTFeatureExtractor:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the audio front end's settings are needed")
    try:
        return ASTFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not the settings of an ASTFeatureExtractor ({_first_line(error)})") from None


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws bars of its own for work that takes milliseconds; ours say what the user waits for."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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


def dense_plan(model: AstModel) -> Plan:
    """The plan that keeps all of a dense model.

    Raises:
        BadInput: the model is slim already: what its channels were in the dense one is not known from it.
    """
    if isinstance(model, SlimASTForAudioClassification):
        raise BadInput("the model is already slim; prune its dense checkpoint, with a higher sparsity")
    return full_plan(FAMILY, attention_sites(model))


def encoder_layers(model: AstModel) -> tuple[torch.nn.Module, ...]:
    """The model's transformer layers, for activation checkpointing."""
    return tuple(model.audio_spectrogram_transformer.layers)


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
    """Logits (B, labels) of a batch of features (B, frames, mels)."""
    return model(inputs).logits


def batch_loss(model: AstModel, inputs: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over a batch of features (B, frames, mels) and label ids (B,)."""
    return functional.cross_entropy(model(inputs).logits, label_ids)


def slim_model(
    model: AstModel,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
) -> SlimASTForAudioClassification:
    """A new slim model with what `sites` keeps of `model`'s attention; everything else is copied.

    Heads and channels in `sites` count within `model` itself, dense or already slim. attention_states: the blocks'
    weights, as `surgery` makes them; by default the kept channels as they are. The softmax scale is handed over as the
    constant that it is.
    """
    if attention_states is None:
        pairs = zip(attention_sites(model), sites, strict=True)
        attention_states = [kept_attention_state(site, site_plan) for site, site_plan in pairs]
    config = _slim_config(model.config, sites, attention_sites(model)[0].scaling)
    with torch.device("meta"):
        slim = SlimASTForAudioClassification(config)
    attention: dict[str, torch.Tensor] = {}
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    for site, state in zip(attention_sites(model), attention_states, strict=True):
        for name, tensor in state.items():
            projection, parameter = name.split(".")
            attention[f"audio_spectrogram_transformer.{site.name}.{projections[projection]}.{parameter}"] = tensor
    rest = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in attention}
    slim.load_state_dict({**rest, **attention}, strict=True, assign=True)
    return slim.eval()


def _slim_config(config: ASTConfig, sites: tuple[SitePlan, ...], scaling: float) -> SlimASTConfig:
    settings = config.to_dict()
    for key in (
        "model_type",
        "architectures",
        "auto_map",
        "transformers_version",
        "query_key_widths",
        "value_output_widths",
        "attention_scaling",
    ):
        settings.pop(key, None)
    slim = SlimASTConfig(
        query_key_widths=[list(site.query_key_widths) for site in sites],
        value_output_widths=[list(site.value_output_widths) for site in sites],
        attention_scaling=scaling,
        **settings,
    )
    slim.architectures = [SlimASTForAudioClassification.__name__]
    slim.auto_map = {
        "AutoConfig": f"{MODELLING_FILE.stem}.{SlimASTConfig.__name__}",
        "AutoModelForAudioClassification": f"{MODELLING_FILE.stem}.{SlimASTForAudioClassification.__name__}",
    }
    return slim


def save_slim_checkpoint(
    model: SlimASTForAudioClassification,
    feature_extractor: ASTFeatureExtractor,
    plan: Plan,
    out: Path,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    It opens with `AutoModelForAudioClassification.from_pretrained(out, trust_remote_code=True)` where leanear is not
    installed, because the modelling file is inside, and with `load_checkpoint` without running that file.
    facts: written to pruning.json beside the plan, if there are any.

    Raises:
        BadInput: the model has weights that are not finite.
    """
    wrong = next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
    if wrong is not None:
        raise BadInput(f"{out}: not written, because pruning made NaN or infinite weights, in {wrong!r}")
    with replaced_folder(out) as folder, _without_progress_bars():
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, _first_line(error), str(out)) from None
        feature_extractor.save_pretrained(folder)
        shutil.copyfile(MODELLING_FILE, folder / MODELLING_FILE.name)
        write_plan(folder / "plan.json", plan)
        if facts is not None:
            write_json(folder / PRUNING_FILE, facts)
        for file in folder.iterdir():
            file.chmod(0o644)  # the weights come with 0600
