"""An Audio Spectrogram Transformer whose heads and feed-forward blocks have their own widths.

This file travels inside every slim checkpoint folder and needs torch and transformers, nothing else:

    from transformers import AutoModelForAudioClassification
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)

Dimension letters: B batch, T tokens, D model width, H heads, K per-head query/key width, V per-head value/output width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import ASTConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput


class SlimASTConfig(ASTConfig):
    """The settings of ASTConfig and, per layer, the widths of every kept head.

    query_key_widths, value_output_widths: one list per layer, one width per kept head, none where only the output bias
    is left.
    feed_forward_widths: one width per layer, hidden channels of its feed-forward block, 0 where only its bias is left;
    none: intermediate_size everywhere.
    attention_scaling: what query-key products are multiplied by. It belongs to the trained model (1/sqrt of the dense
    head width) and is never derived from a width of this model.
    """

    model_type = "slim-audio-spectrogram-transformer"

    def __init__(
        self,
        query_key_widths: Sequence[Sequence[int]] = (),
        value_output_widths: Sequence[Sequence[int]] = (),
        attention_scaling: float = 0.125,
        feed_forward_widths: Sequence[int] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.query_key_widths = [list(widths) for widths in query_key_widths]
        self.value_output_widths = [list(widths) for widths in value_output_widths]
        self.attention_scaling = attention_scaling
        self.feed_forward_widths = list(feed_forward_widths)


class SlimAttention(nn.Module):
    """Multi-head self-attention in which head h has query/key width K_h and value/output width V_h.

    The projections hold the heads one after the other: q_proj and k_proj (sum K, D), v_proj (sum V, D),
    o_proj (D, sum V).
    """

    def __init__(self, config: SlimASTConfig, layer: int):
        super().__init__()
        self.query_key_widths = tuple(config.query_key_widths[layer])
        self.value_output_widths = tuple(config.value_output_widths[layer])
        self.scaling = config.attention_scaling
        self.attention_dropout = config.attention_probs_dropout_prob
        self.q_proj = _linear(config.hidden_size, sum(self.query_key_widths), bias=config.qkv_bias)
        self.k_proj = _linear(config.hidden_size, sum(self.query_key_widths), bias=config.qkv_bias)
        self.v_proj = _linear(config.hidden_size, sum(self.value_output_widths), bias=config.qkv_bias)
        self.o_proj = _linear(sum(self.value_output_widths), config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.query_key_widths:
            return self.o_proj.bias.expand_as(hidden_states)
        width = max(self.query_key_widths + self.value_output_widths)
        query = _split_heads(self.q_proj(hidden_states), self.query_key_widths, width)  # (B, H, T, width)
        key = _split_heads(self.k_proj(hidden_states), self.query_key_widths, width)
        value = _split_heads(self.v_proj(hidden_states), self.value_output_widths, width)
        context = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.attention_dropout if self.training else 0.0, scale=self.scaling
        )
        return self.o_proj(_join_heads(context, self.value_output_widths))


def _split_heads(states: torch.Tensor, widths: tuple[int, ...], padded: int) -> torch.Tensor:
    """(B, T, sum of widths) as (B, H, T, padded); narrower heads are filled with zeros, which changes no product."""
    if all(width == padded for width in widths):
        return states.view(*states.shape[:2], len(widths), padded).transpose(1, 2)
    heads = [functional.pad(head, (0, padded - head.shape[-1])) for head in states.split(widths, dim=-1)]
    return torch.stack(heads, dim=1)


def _join_heads(states: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """(B, H, T, padded) as (B, T, sum of widths), without what `_split_heads` filled in."""
    if all(width == states.shape[-1] for width in widths):
        return states.transpose(1, 2).reshape(states.shape[0], states.shape[2], -1)
    return torch.cat([states[:, head, :, :width] for head, width in enumerate(widths)], dim=-1)


class SlimMLP(nn.Module):
    def __init__(self, config: SlimASTConfig, layer: int):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        width = config.feed_forward_widths[layer] if config.feed_forward_widths else config.intermediate_size
        self.fc1 = _linear(config.hidden_size, width)
        self.fc2 = _linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.fc1.out_features == 0:
            return self.fc2.bias.expand_as(hidden_states)
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer; of one that has no inputs or outputs torch says that there is nothing to initialise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return nn.Linear(inputs, outputs, bias=bias)


class SlimLayer(nn.Module):
    def __init__(self, config: SlimASTConfig, layer: int):
        super().__init__()
        self.attention = SlimAttention(config, layer)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SlimMLP(config, layer)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.dropout(self.attention(self.layernorm_before(hidden_states)))
        hidden_states = attended + hidden_states
        return self.dropout(self.mlp(self.layernorm_after(hidden_states))) + hidden_states


class SlimPatchEmbeddings(nn.Module):
    def __init__(self, config: SlimASTConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            1, config.hidden_size, kernel_size=config.patch_size, stride=(config.frequency_stride, config.time_stride)
        )

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        patches = self.projection(input_values.unsqueeze(1).transpose(2, 3))  # (B, D, frequency, time)
        return patches.flatten(2).transpose(1, 2)


class SlimEmbeddings(nn.Module):
    """Patch embeddings behind a class token and a distillation token, plus positions: (B, T, D)."""

    def __init__(self, config: SlimASTConfig):
        super().__init__()
        patch_height, patch_width = (
            config.patch_size if isinstance(config.patch_size, (list, tuple)) else (config.patch_size,) * 2
        )
        frequencies = (config.num_mel_bins - patch_height) // config.frequency_stride + 1
        times = (config.max_length - patch_width) // config.time_stride + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = SlimPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, frequencies * times + 2, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embeddings(input_values)
        tokens = [self.cls_token.expand(len(patches), -1, -1), self.distillation_token.expand(len(patches), -1, -1)]
        return self.dropout(torch.cat([*tokens, patches], dim=1) + self.position_embeddings)


class SlimASTModel(nn.Module):
    def __init__(self, config: SlimASTConfig):
        super().__init__()
        self.embeddings = SlimEmbeddings(config)
        self.layers = nn.ModuleList([SlimLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.embeddings(input_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return (hidden_states[:, 0] + hidden_states[:, 1]) / 2  # (B, D)


class SlimClassifier(nn.Module):
    def __init__(self, config: SlimASTConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layernorm(pooled))


class SlimASTForAudioClassification(PreTrainedModel):
    """AST with a classification head: log-mel features (B, max_length, num_mel_bins) in, logits (B, labels) out.

    With `labels`, the loss is what ASTForAudioClassification's is for `config.problem_type`: cross-entropy for one
    label per clip (the default), binary cross-entropy for several.
    """

    config_class = SlimASTConfig
    base_model_prefix = "audio_spectrogram_transformer"
    main_input_name = "input_values"
    _supports_sdpa = True
    _no_split_modules = ("SlimEmbeddings", "SlimLayer")

    def __init__(self, config: SlimASTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.audio_spectrogram_transformer = SlimASTModel(config)
        self.classifier = SlimClassifier(config)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **_kwargs,  # what transformers passes to every model, e.g. num_items_in_batch
    ) -> SequenceClassifierOutput | tuple:
        logits = self.classifier(self.audio_spectrogram_transformer(input_values))
        loss = None if labels is None else _loss(logits, labels, self.config)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _loss(logits: torch.Tensor, labels: torch.Tensor, config: SlimASTConfig) -> torch.Tensor:
    if config.problem_type == "regression" or config.num_labels == 1:
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(logits.squeeze(-1).shape))
    if config.problem_type == "multi_label_classification" or labels.is_floating_point():
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels.view(-1))
