"""Multiply-accumulates (MACs) of one inference or window, by kind of operation.

Counted are the products of the graph at the widths that the model keeps: the last layer for the tokens that are read,
as the graph computes it (all but its attention in the form for TensorRT). Zeros by which heads are filled up to a
common width are not counted: they are a cost of the export, not of the model. Additions alone, normalisation, softmax
and activation are not MACs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from leanear.export.ast.front_end import FrontEnd
from leanear.export.ast.graph import READ_TOKENS, WHOLE_LAST_ATTENTION, patch_size, token_count
from leanear.export.onnx.heads import read_widths
from leanear.export.whisper.log_mel import LogMel

MACS_TOKENS = 100  # decoded tokens of a window, for which a Whisper's MACs are stated


@dataclass(frozen=True)
class Macs:
    """MACs of one clip. projections: query, key, value and output; attention: scores and weighted sums."""

    front_end: int
    patches: int
    projections: int
    attention: int
    mlp: int
    head: int

    @property
    def total(self) -> int:
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        return asdict(self)


def count_macs(
    model: Any,
    front_end: FrontEnd | None = None,
    read_tokens: int | None = READ_TOKENS,
    form: str = "portable",
) -> Macs:
    """The MACs of a loaded AST classifier (stock or slim) for one clip.

    front_end: counted if given. read_tokens: how many tokens the last layer is computed for, as in the exported graph;
    None counts the last layer for all tokens, as the model in torch computes it. form: of the graph, as in FORMS.
    """
    config, layers = model.config, model.audio_spectrogram_transformer.layers
    tokens, width = token_count(config), config.hidden_size
    height, length = patch_size(config)
    projections = attention = mlp = 0
    for number, layer in enumerate(layers):
        query_key_widths, value_output_widths = read_widths(layer.attention)
        query_key, value_output = sum(query_key_widths), sum(value_output_widths)
        if number + 1 < len(layers) or read_tokens is None:
            projections += tokens * width * 2 * (query_key + value_output)
            attention += tokens * tokens * (query_key + value_output)
            mlp += tokens * 2 * width * layer.mlp.fc1.out_features
            continue
        mlp += read_tokens * 2 * width * layer.mlp.fc1.out_features
        if form in WHOLE_LAST_ATTENTION:
            projections += tokens * width * 2 * (query_key + value_output)
            attention += tokens * tokens * (query_key + value_output)
        else:
            projections += read_tokens * width * 2 * (query_key + value_output)
            attention += read_tokens * len(query_key_widths) * tokens * 2 * width
    return Macs(
        front_end=0 if front_end is None else front_end.macs,
        patches=(tokens - READ_TOKENS) * height * length * width,
        projections=projections,
        attention=attention,
        mlp=mlp,
        head=width * config.num_labels,
    )


@dataclass(frozen=True)
class WhisperMacs:
    """MACs of one window and `tokens` decoded tokens.

    front_end, convolutions, encoder: once per window; cross_keys_values: what the encoder's graph makes of its states
    for the decoder; decoder: layers, for all tokens, each of which looks at those before it and at itself; head: the
    logits of every token.
    """

    tokens: int
    front_end: int
    convolutions: int
    encoder: int
    cross_keys_values: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        return {key: value for key, value in asdict(self).items() if key != "tokens"}


def count_whisper_macs(model: Any, log_mel: LogMel | None = None, tokens: int = MACS_TOKENS) -> WhisperMacs:
    """The MACs of a loaded Whisper (stock or slim) for one window and `tokens` tokens fed one by one.

    log_mel: the front end, counted if given.
    """
    config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
    positions, width = config.max_source_positions, config.d_model
    convolutions = 2 * positions * 3 * config.num_mel_bins * width + positions * 3 * width * width
    encoding = crossing = 0
    for layer in encoder.layers:
        query_key, value_output = (sum(widths) for widths in read_widths(layer.self_attn))
        encoding += positions * width * 2 * (query_key + value_output)
        encoding += positions * positions * (query_key + value_output)
        encoding += positions * 2 * width * layer.fc1.out_features
    decoding = 0
    for layer in decoder.layers:
        query_key, value_output = (sum(widths) for widths in read_widths(layer.self_attn))
        cross_query_key, cross_value_output = (sum(widths) for widths in read_widths(layer.encoder_attn))
        crossing += positions * width * (cross_query_key + cross_value_output)
        decoding += tokens * width * 2 * (query_key + value_output)
        decoding += tokens * (tokens + 1) // 2 * (query_key + value_output)
        decoding += tokens * (width + positions) * (cross_query_key + cross_value_output)
        decoding += tokens * 2 * width * layer.fc1.out_features
    return WhisperMacs(
        tokens=tokens,
        front_end=0 if log_mel is None else log_mel.macs,
        convolutions=convolutions,
        encoder=encoding,
        cross_keys_values=crossing,
        decoder=decoding,
        head=tokens * width * config.vocab_size,
    )
