"""A third family in one file, as a user of the contract would write it: wav2vec 2.0 as a classifier of waveforms.

Nothing in it is AST's or Whisper's: it hears the waveform itself through convolutions, has no class token, and norms
behind its blocks. It takes the first half second of a clip, and models that norm the first convolution by its channels
(`feat_extract_norm="group"`), which are trained without a mask: what is shorter is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.data.examples import LabelledInputs
from leanear.export.artifact import ClassifierFacts, collect_golden, write_classifier_artifact
from leanear.export.macs import Macs
from leanear.export.onnx.attention import add_attention
from leanear.export.onnx.graph import OPSET, ExportedGraph, Graph, model_sizes
from leanear.export.onnx.heads import read_attention, read_widths
from leanear.export.onnx.layers import add_layernorm, add_linear, array
from leanear.export.options import ExportOptions
from leanear.families import classifier
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.checkpoint_files import (
    SizeSigns,
    load_config,
    load_weights,
    read_model_type,
    slim_settings,
    write_slim_folder,
)
from leanear.families.classifier import check_head, labelled, metric_of
from leanear.families.family import AttentionBlocks
from leanear.families.slimming import slim_state
from leanear.plan import Plan, SitePlan, full_plan
from leanear.progress import Report, quiet
from leanear.runtimes.clips import Clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.tasks import classifier_task

FAMILY = "wav2vec2"
WINDOW_SAMPLES = 8000
VARIANCE_FLOOR = 1e-7
SIGNS = SizeSigns({"num_hidden_layers": r"encoder\.layers\.(\d+)\."}, {"num_labels": r"^classifier\.weight$"})

batch_loss, encoded, logits, mistakes = (
    classifier.batch_loss,
    classifier.encoded,
    classifier.logits,
    classifier.mistakes,
)
decoder_layers = classifier.decoder_layers


class SlimConfig(Wav2Vec2Config):
    model_type = "slim-wav2vec2"

    def __init__(self, query_key_widths=(), value_output_widths=(), attention_scaling=0.25, **settings):
        super().__init__(**settings)
        self.query_key_widths, self.value_output_widths = list(query_key_widths), list(value_output_widths)
        self.attention_scaling = attention_scaling


class SlimAttention(nn.Module):
    """Attention whose head h has query/key width K_h and value/output width V_h, head after head."""

    def __init__(self, config: SlimConfig, layer: int) -> None:
        super().__init__()
        self.query_key_widths = tuple(config.query_key_widths[layer])
        self.value_output_widths = tuple(config.value_output_widths[layer])
        self.scaling, width = config.attention_scaling, config.hidden_size
        self.q_proj = nn.Linear(width, sum(self.query_key_widths))
        self.k_proj = nn.Linear(width, sum(self.query_key_widths))
        self.v_proj = nn.Linear(width, sum(self.value_output_widths))
        self.out_proj = nn.Linear(sum(self.value_output_widths), width)

    def forward(self, hidden_states: torch.Tensor, **_others: Any) -> tuple[torch.Tensor, None]:
        query = self.q_proj(hidden_states).split(self.query_key_widths, dim=-1)
        key = self.k_proj(hidden_states).split(self.query_key_widths, dim=-1)
        value = self.v_proj(hidden_states).split(self.value_output_widths, dim=-1)
        heads = [
            functional.softmax(q @ k.mT * self.scaling, dim=-1) @ v for q, k, v in zip(query, key, value, strict=True)
        ]
        return self.out_proj(torch.cat(heads, dim=-1)), None


class SlimModel(Wav2Vec2ForSequenceClassification):
    config_class = SlimConfig

    def __init__(self, config: SlimConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.wav2vec2.encoder.layers):
            layer.attention = SlimAttention(config, number)


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    model: Any
    feature_extractor: Wav2Vec2FeatureExtractor
    labels: tuple[str, ...]

    @property
    def metric(self) -> str:
        return metric_of(self.model.config)


def load_checkpoint(folder: Path, asked: Asked = NOTHING_ASKED) -> Checkpoint:
    asked.refuse_for(folder)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    slim = read_model_type(folder) == SlimConfig.model_type
    model_class = SlimModel if slim else Wav2Vec2ForSequenceClassification
    config = load_config(SlimConfig if slim else Wav2Vec2Config, model_class, folder, SIGNS)
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    check_head(folder, config, labels)
    if config.do_stable_layer_norm or config.feat_extract_norm != "group" or config.use_weighted_layer_sum:
        raise BadInput(f"{folder}/config.json: only models that norm behind their blocks, and by channels, are taken")
    return Checkpoint(folder, load_weights(model_class, folder), extractor, labels)


def attention_sites(model: Any) -> tuple[AttentionSite, ...]:
    sites = []
    for number, layer in enumerate(model.wav2vec2.encoder.layers):
        block = layer.attention
        widths = read_widths(block)
        projections = (block.q_proj, block.k_proj, block.v_proj, block.out_proj)
        sites.append(AttentionSite(f"encoder.layers.{number}.attention", block, *projections, *widths, block.scaling))
    return tuple(sites)


def dense_plan(model: Any) -> Plan:
    return full_plan(FAMILY, attention_sites(model))


def encoder_layers(model: Any) -> tuple[nn.Module, ...]:
    return tuple(model.wav2vec2.encoder.layers)


def window_samples(feature_extractor: Wav2Vec2FeatureExtractor) -> int:
    del feature_extractor
    return WINDOW_SAMPLES


def features(feature_extractor: Wav2Vec2FeatureExtractor, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """Waveforms of mean zero and variance one, (B, window), by transformers' own extractor, zeros behind them."""
    rows = np.zeros((len(waveforms), WINDOW_SAMPLES), np.float32)
    for row, waveform in zip(rows, waveforms, strict=True):
        heard = waveform[:WINDOW_SAMPLES]
        row[: len(heard)] = feature_extractor(heard, sampling_rate=feature_extractor.sampling_rate)["input_values"][0]
    return torch.from_numpy(rows)


def labelled_inputs(checkpoint: Checkpoint, clips: Clips, report: Report = quiet) -> LabelledInputs:
    return labelled(lambda waveforms: features(checkpoint.feature_extractor, waveforms), clips, report)


calibration_inputs = labelled_inputs


def activation_bytes(model: Any, inputs: torch.Tensor) -> int:
    config = model.config
    per_token = 10 * config.hidden_size + 2 * config.intermediate_size
    return config.num_hidden_layers * token_count(model) * per_token * inputs.element_size()


def token_count(model: Any) -> int:
    return int(model._get_feat_extract_output_lengths(WINDOW_SAMPLES))


def macs(checkpoint: Checkpoint, model: Any, form: str = "portable") -> Macs:
    """Convolutions, projections, attention, MLPs and the head."""
    config, tokens = model.config, token_count(model)
    width, samples, inputs, total = config.hidden_size, WINDOW_SAMPLES, 1, 0
    for channels, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
        total, inputs = total + samples * channels * inputs * kernel, channels
    places = config.num_conv_pos_embeddings * width // config.num_conv_pos_embedding_groups
    total += tokens * width * (inputs + places + 2 * config.num_hidden_layers * config.intermediate_size)
    total += tokens * width * config.classifier_proj_size + config.classifier_proj_size * config.num_labels
    column = 2 * tokens * width + tokens * tokens
    columns = sum(sum(site.query_key_widths) + sum(site.value_output_widths) for site in attention_sites(model))
    heads = (lambda query_key, value_output: float(column * (query_key + value_output)),) * config.num_hidden_layers
    return Macs({"attention": column * columns, "all else": total}, heads, ())


def feed_forward_sites(model: Any) -> tuple[FeedForwardSite, ...]:
    return ()  # this family prunes attention alone


def attention_blocks(model: Any) -> AttentionBlocks:
    config = model.config
    return AttentionBlocks(("ordinary",) * config.num_hidden_layers, token_count(model), config.hidden_size)


def slim_model(
    model: Any,
    sites: tuple[SitePlan, ...],
    attention_states: Sequence[Mapping[str, torch.Tensor]] | None = None,
    feed_forward_states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SlimModel:
    dense_sites = attention_sites(model)
    config = SlimConfig(
        query_key_widths=[list(site.query_key_widths) for site in sites],
        value_output_widths=[list(site.value_output_widths) for site in sites],
        attention_scaling=dense_sites[0].scaling,
        **slim_settings(model.config),
    )
    config.architectures = [SlimModel.__name__]
    with torch.device("meta"):
        slim = SlimModel(config)
    state = slim_state(model, dense_sites, sites, attention_states, "wav2vec2", "out_proj")
    slim.load_state_dict(state, strict=True, assign=True)
    return slim.eval().to(model.device)


def save_slim_checkpoint(model: SlimModel, source: Checkpoint, plan: Plan, out: Path, facts: Any = None) -> None:
    write_slim_folder(out, model, source.feature_extractor.save_pretrained, Path(__file__), plan, facts)


def export(checkpoint: Checkpoint, golden_waveforms: Sequence[np.ndarray], out: Path, options: ExportOptions) -> object:
    model, extractor, config = checkpoint.model, checkpoint.feature_extractor, checkpoint.model.config
    if options.precision != "fp32":
        raise BadInput(f"precision {options.precision!r}: wav2vec 2.0 is exported in fp32")
    blocks = [layer.attention for layer in encoder_layers(model)]
    facts = ClassifierFacts(
        family=FAMILY,
        task=classifier_task(config.problem_type, config.num_labels),
        labels=checkpoint.labels,
        sample_rate_hz=extractor.sampling_rate,
        window_samples=WINDOW_SAMPLES,
        model={**model_sizes(model, blocks), "macs": macs(checkpoint, model).total, **options.source},
        made_from=options.made_from,
    )
    golden = collect_golden(model, lambda clip: features(extractor, [clip]), golden_waveforms)
    return write_classifier_artifact(out, golden, facts, lambda path: write_graph(model, path, options.form))


def write_graph(model: Any, path: Path, form: str) -> ExportedGraph:
    """The model as one ONNX file with its front end inside: operators over tokens (T, D)."""
    graph, body, tokens = Graph(), model.wav2vec2, token_count(model)
    hidden = _add_convolutions(graph, _add_front_end(graph), body.feature_extractor, tokens)
    hidden = add_layernorm(graph, hidden, body.feature_projection.layer_norm, "projection.norm")
    hidden = add_linear(graph, hidden, body.feature_projection.projection, "projection", "projected")
    hidden = _add_places(graph, hidden, body.encoder.pos_conv_embed.conv, tokens)
    hidden = add_layernorm(graph, hidden, body.encoder.layer_norm, "encoder.norm")
    for number, layer in enumerate(body.encoder.layers):
        name = f"layers.{number}"
        attended = add_attention(graph, hidden, read_attention(layer.attention), form, tokens, f"{name}.attention")
        hidden = graph.node("Add", [attended, hidden], f"{name}.attention.residual")
        hidden = add_layernorm(graph, hidden, layer.layer_norm, f"{name}.norm")
        wide = add_linear(graph, hidden, layer.feed_forward.intermediate_dense, f"{name}.fc1", f"{name}.wide")
        active = graph.node("Gelu", [wide], f"{name}.active")
        narrow = add_linear(graph, active, layer.feed_forward.output_dense, f"{name}.fc2", f"{name}.narrow")
        hidden = graph.node("Add", [narrow, hidden], f"{name}.residual")
        hidden = add_layernorm(graph, hidden, layer.final_layer_norm, f"{name}.final_norm")
    projected = add_linear(graph, hidden, model.projector, "projector", "answers")
    axis = graph.constant("pool.axis", np.array([0], np.int64))
    pooled = graph.node("ReduceMean", [projected, axis], "pooled", keepdims=1)
    add_linear(graph, pooled, model.classifier, "classifier", "logits")
    source = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, "samples"])
    graph.write(
        path,
        [source],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, model.config.num_labels])],
        FAMILY,
    )
    return ExportedGraph(path, form, OPSET, len(graph.nodes))


def _add_front_end(graph: Graph) -> str:
    """The clip's first samples at mean zero and variance one, zeros behind them: (1, 1, window)."""
    heard = graph.slice("waveform", 0, WINDOW_SAMPLES, 1, "heard")
    axis = graph.constant("time", np.array([1], np.int64))
    centred = graph.node("Sub", [heard, graph.node("ReduceMean", [heard, axis], "mean", keepdims=1)], "centred")
    squares = graph.node("Mul", [centred, centred], "squares")
    variance = graph.node("ReduceMean", [squares, axis], "variance", keepdims=1)
    floor = graph.constant("floor", np.array(VARIANCE_FLOOR, np.float32))
    spread = graph.node("Sqrt", [graph.node("Add", [variance, floor], "floored")], "spread")
    silence = graph.constant("silence", np.zeros((1, WINDOW_SAMPLES), np.float32))
    longer = graph.node("Concat", [graph.node("Div", [centred, spread], "normed"), silence], "longer", axis=1)
    return graph.reshape(graph.slice(longer, 0, WINDOW_SAMPLES, 1, "window"), (1, 1, WINDOW_SAMPLES), "signal")


def _add_convolutions(graph: Graph, signal: str, extractor: Any, tokens: int) -> str:
    for number, layer in enumerate(extractor.conv_layers):
        name, kernel = f"conv.{number}", layer.conv.weight
        inputs = [signal, graph.weight(f"{name}.weight", tuple(kernel.shape), lambda kernel=kernel: array(kernel))]
        if layer.conv.bias is not None:
            inputs.append(graph.constant(f"{name}.bias", array(layer.conv.bias)))
        signal = graph.node("Conv", inputs, name, strides=list(layer.conv.stride))
        if number == 0:  # one group for each channel
            norm = layer.layer_norm
            scale, shift = (
                graph.constant(f"norm.{n}", array(p)) for n, p in (("scale", norm.weight), ("shift", norm.bias))
            )
            signal = graph.node("InstanceNormalization", [signal, scale, shift], "norm", epsilon=norm.eps)
        signal = graph.node("Gelu", [signal], f"{name}.active")
    flat = graph.reshape(signal, (extractor.conv_layers[-1].out_conv_dim, tokens), "conv.flat")
    return graph.node("Transpose", [flat], "conv.tokens", perm=[1, 0])


def _add_places(graph: Graph, hidden: str, conv: Any, tokens: int) -> str:
    """Where a token stands, by a grouped convolution over its neighbours."""
    width, kernel = conv.out_channels, conv.weight.detach()
    columns = graph.reshape(
        graph.node("Transpose", [hidden], "places.turned", perm=[1, 0]), (1, width, tokens), "places.in"
    )
    inputs = [
        columns,
        graph.weight("places.weight", tuple(kernel.shape), lambda: kernel.numpy()),
        graph.constant("places.bias", array(conv.bias)),
    ]
    pads = list(conv.padding) * 2
    around = graph.node("Conv", inputs, "places.conv", group=conv.groups, pads=pads)
    active = graph.node("Gelu", [graph.slice(around, 0, tokens, 2, "places.cut")], "places.active")
    flat = graph.reshape(active, (width, tokens), "places.flat")
    return graph.node("Add", [hidden, graph.node("Transpose", [flat], "places.tokens", perm=[1, 0])], "placed")
