"""Multiply-accumulates (MACs) of one inference: the only count of them, for goals, manifests and reports alike.

Counted are the products of matrices and the convolutions of the exported graph, its front end's with them, at the
widths that the model keeps. Of an AST one inference is one whole window, the last layer for the tokens that are read,
as the graph computes it (all but its attention in the form for TensorRT). Of a Whisper it is one full window through
the encoder, the keys and values of cross-attention made once, and some tokens fed to the decoder one by one, each of
which looks at those before it and at itself and gets the logits of the whole vocabulary; the prompt is not counted.
Zeros by which heads are padded to a common width are not counted: they are a cost of the export, not of the model.
Additions alone, normalisation, softmax and activation are not MACs.

Dimension letters: T encoder tokens, L tokens that the decoder is fed, D model width, K, V a head's widths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leanear.export.ast.front_end import FrontEnd
from leanear.export.ast.graph import READ_TOKENS, WHOLE_LAST_ATTENTION, patch_size, token_count
from leanear.export.onnx.heads import read_widths
from leanear.export.whisper.log_mel import LogMel

HeadCost = Callable[[int, int], float]


@dataclass(frozen=True)
class Macs:
    """MACs of one inference.

    by_kind: by kind of operation; heads: block by block, of one head of widths (K, V), none of one that is gone;
    channels: block by block, of one hidden channel of a feed-forward block.
    """

    by_kind: dict[str, int]
    heads: tuple[HeadCost, ...]
    channels: tuple[int, ...]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_kind.values())


@dataclass(frozen=True)
class _Columns:
    """MACs of one column of a head's widths in one attention block; per_head: of any head that stays."""

    projections: int
    pairs: int
    per_head: int = 0

    def head(self, query_key: int, value_output: int) -> float:
        columns = query_key + value_output
        return float((self.projections + self.pairs) * columns + (self.per_head if columns else 0))

    def block(self, attention: Any) -> tuple[int, int]:
        """Of a block's projections, and of its scores and weighted sums."""
        widths = read_widths(attention)
        columns = sum(map(sum, widths))
        return self.projections * columns, self.pairs * columns + self.per_head * len(widths[0])


def count_macs(
    model: Any, front_end: FrontEnd | None = None, read_tokens: int | None = READ_TOKENS, form: str = "portable"
) -> Macs:
    """The MACs of a loaded AST classifier (stock or slim) for one window.

    front_end: counted if given. read_tokens: how many tokens the last layer is computed for, as in the exported graph;
    None counts the last layer for all tokens, as the model in torch computes it. form: of the graph, as in FORMS.
    """
    config, layers = model.config, model.audio_spectrogram_transformer.layers
    tokens, width = token_count(config), config.hidden_size
    height, length = patch_size(config)
    blocks = [_Columns(2 * tokens * width, tokens * tokens)] * len(layers)
    channels = [2 * width * tokens] * len(layers)
    if read_tokens is not None:
        channels[-1] = 2 * width * read_tokens
        if form not in WHOLE_LAST_ATTENTION:
            blocks[-1] = _Columns(2 * read_tokens * width, 0, per_head=2 * read_tokens * tokens * width)
    counted = [block.block(layer.attention) for block, layer in zip(blocks, layers, strict=True)]
    by_kind = {
        "front_end": 0 if front_end is None else front_end.macs,
        "patches": (tokens - READ_TOKENS) * height * length * width,
        "projections": sum(projections for projections, _ in counted),
        "attention": sum(pairs for _, pairs in counted),
        "mlp": sum(channel * layer.mlp.fc1.out_features for channel, layer in zip(channels, layers, strict=True)),
        "head": width * config.num_labels,
    }
    return Macs(by_kind, tuple(block.head for block in blocks), tuple(channels))


def count_whisper_macs(model: Any, log_mel: LogMel | None, tokens: int) -> Macs:
    """The MACs of a loaded Whisper (stock or slim) for one full window and `tokens` tokens.

    log_mel: the front end, counted if given. Kinds: front_end, convolutions and encoder once per window;
    cross_keys_values, what the encoder's graph makes of its states for the decoder; decoder, its layers for all tokens;
    head, every token's logits.
    """
    config, encoder, decoder = model.config, model.model.encoder.layers, model.model.decoder.layers
    positions, width = config.max_source_positions, config.d_model
    listening = _Columns(2 * positions * width, positions * positions)
    saying = _Columns(2 * tokens * width, tokens * (tokens + 1) // 2)
    crossing = _Columns((tokens + positions) * width, tokens * positions)
    channels = [2 * positions * width] * len(encoder) + [2 * tokens * width] * len(decoder)
    feed_forward = [
        channel * layer.fc1.out_features for channel, layer in zip(channels, [*encoder, *decoder], strict=True)
    ]
    self_attention = sum(sum(saying.block(layer.self_attn)) for layer in decoder)
    cross_attention = sum(sum(crossing.block(layer.encoder_attn)) for layer in decoder)
    keys_values = positions * width * sum(sum(map(sum, read_widths(layer.encoder_attn))) for layer in decoder)
    by_kind = {
        "front_end": 0 if log_mel is None else log_mel.macs,
        "convolutions": 2 * positions * 3 * config.num_mel_bins * width + positions * 3 * width * width,
        "encoder": sum(sum(listening.block(layer.self_attn)) for layer in encoder) + sum(feed_forward[: len(encoder)]),
        "cross_keys_values": keys_values,
        "decoder": self_attention + cross_attention - keys_values + sum(feed_forward[len(encoder) :]),
        "head": tokens * width * config.vocab_size,
    }
    return Macs(
        by_kind, (listening.head,) * len(encoder) + (saying.head, crossing.head) * len(decoder), tuple(channels)
    )
