"""A Whisper checkpoint as whisper.cpp's ggml file: float16, or weights in blocks of 8 or 5 bits.

The file is, little-endian: a magic number, eleven sizes, the mel filters, the tokens' bytes, then every tensor with its
dimensions innermost first, its type, its name in openai's spelling and its data. Whatever has two dimensions and is no
positional embedding is in blocks; convolutions stay float16, vectors and positions float32.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAGIC = 0x67676D6C
BLOCK = 32  # numbers that share a scale
F32, F16, Q5_1, Q8_0 = 0, 1, 7, 8  # tensor types
QUANTISED_VERSION = 2000  # added to the file's type where weights are in blocks
FILE_TYPES = {"f16": (1, F16), "q8_0": (QUANTISED_VERSION + 7, Q8_0), "q5_1": (QUANTISED_VERSION + 9, Q5_1)}
NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn", "cross_attn"),
    (r"self_attn", "attn"),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"v_proj", "value"),
    (r"out_proj", "out"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"final_layer_norm", "mlp_ln"),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"^encoder\.layer_norm", "encoder.ln_post"),
    (r"^decoder\.layer_norm", "decoder.ln"),
)


def write_ggml(checkpoint: Path, out: Path, form: str) -> None:
    """`checkpoint`, a transformers folder, as the file `out`; form: one of FILE_TYPES."""
    from safetensors.numpy import load_file
    from transformers import WhisperFeatureExtractor

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    filters = WhisperFeatureExtractor.from_pretrained(checkpoint).mel_filters.T.astype("<f4")
    file_type, matrix_type = FILE_TYPES[form]
    with open(out, "wb") as stream:
        _integers(stream, MAGIC, *_sizes(config), file_type)
        _integers(stream, *filters.shape)
        stream.write(filters.tobytes())
        _write_tokens(stream, checkpoint / "vocab.json")
        for name, values in load_file(checkpoint / "model.safetensors").items():
            if name != "proj_out.weight":  # the embedding again
                _write_tensor(stream, openai_name(name), values.astype(np.float32), matrix_type)


def openai_name(name: str) -> str:
    """transformers' name of a parameter as openai spells it."""
    for pattern, said in NAMES:
        name = re.sub(pattern, said, name)
    return name


def _sizes(config: dict) -> list[int]:
    audio = [config[f"encoder_{part}"] for part in ("attention_heads", "layers")]
    text = [config[f"decoder_{part}"] for part in ("attention_heads", "layers")]
    width = config["d_model"]
    return [
        config["vocab_size"], config["max_source_positions"], width, *audio,
        config["max_target_positions"], width, *text, config["num_mel_bins"],
    ]  # fmt: skip


def _write_tokens(stream: BinaryIO, path: Path) -> None:
    """The bytes of every token; in the file their bytes are letters, as byte-level BPE spells them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = json.loads(path.read_text(encoding="utf-8"))
    _integers(stream, len(tokens))
    for token in sorted(tokens, key=tokens.__getitem__):
        spelled = bytes(letters[letter] for letter in token)
        _integers(stream, len(spelled))
        stream.write(spelled)


def _write_tensor(stream: BinaryIO, name: str, values: np.ndarray, matrix_type: int) -> None:
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, np.newaxis]
    kind = F32 if values.ndim == 1 or name.endswith(("positional_embedding", "conv1.bias", "conv2.bias")) else F16
    if kind == F16 and values.ndim == 2:
        kind = matrix_type
    _integers(stream, values.ndim, len(name), kind, *values.shape[::-1])
    stream.write(name.encode())
    stream.write(packed(values, kind))


def packed(values: np.ndarray, kind: int) -> bytes:
    """float32 values in a tensor type's bytes; of types in blocks, the last dimension is a multiple of BLOCK."""
    if kind in (F32, F16):
        return values.astype("<f4" if kind == F32 else "<f2").tobytes()
    blocks = values.reshape(-1, BLOCK)
    return _eight_bits(blocks) if kind == Q8_0 else _five_bits(blocks)


def _eight_bits(blocks: np.ndarray) -> bytes:
    """Each block: a scale in float16, 32 signed bytes."""
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    quotients = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
    packs = np.empty(len(blocks), [("scale", "<f2"), ("levels", "i1", BLOCK)])
    packs["scale"], packs["levels"] = scales[:, 0], np.rint(quotients)
    return packs.tobytes()


def _five_bits(blocks: np.ndarray) -> bytes:
    """Each block: step and least value in float16, 32 fifth bits, then the low nibbles of both halves, interleaved."""
    least = blocks.min(axis=1, keepdims=True)
    steps = (blocks.max(axis=1, keepdims=True) - least) / 31
    quotients = np.divide(blocks - least, steps, out=np.zeros_like(blocks), where=steps > 0)
    levels = np.clip(np.rint(quotients), 0, 31).astype(np.uint32)
    packs = np.empty(len(blocks), [("step", "<f2"), ("least", "<f2"), ("high", "<u4"), ("low", "u1", BLOCK // 2)])
    packs["step"], packs["least"] = steps[:, 0], least[:, 0]
    packs["high"] = np.bitwise_or.reduce((levels >> 4) << np.arange(BLOCK, dtype=np.uint32), axis=1)
    low = levels & 15
    packs["low"] = low[:, : BLOCK // 2] | (low[:, BLOCK // 2 :] << 4)
    return packs.tobytes()


def _integers(stream: BinaryIO, *values: int) -> None:
    stream.write(struct.pack(f"<{len(values)}i", *values))
