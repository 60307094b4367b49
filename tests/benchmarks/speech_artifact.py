"""A speech artifact without a usable graph, for the null runtime, and clips in which it hears given words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leanear.runtimes.artifact import Golden, GoldenSpeech, write_golden
from leanear.runtimes.backends.null_sessions import STRETCHES
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.manifest import MANIFEST_SCHEMA

WORDS = ("a", "the", "cat", "dog", "sat", "ran", "home", "seven", "lights", "on", "off", "down")
TEXT_TOKENS = ["Ġum", *(f"Ġ{word}" for word in WORDS)]  # the null runtime hears token 0 nowhere
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
SAMPLE_RATE_HZ = 16_000
STRETCH_SAMPLES = 800
WINDOW_SAMPLES = STRETCHES * STRETCH_SAMPLES
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ
POSITIONS = 24
CACHE_DENSE = {
    "layers": [{"self_key": [2, 16], "self_value": [2, 16], "cross_key": [2, 20, 16], "cross_value": [2, 20, 16]}] * 2,
    "bytes_per_token": 512,
    "cross_bytes": 10_240,
    "padded_bytes_per_token": 512,
    "padded_cross_bytes": 10_240,
}
CACHE_SLIM = {
    "layers": [{"self_key": [2, 4], "self_value": [2, 12], "cross_key": [1, 20, 4], "cross_value": [1, 20, 16]}] * 2,
    "bytes_per_token": 256,
    "cross_bytes": 3_200,
    "padded_bytes_per_token": 320,
    "padded_cross_bytes": 4_000,
}


def say(*words: str) -> np.ndarray:
    """One window in which the null runtime hears these words, at most 8."""
    window = np.zeros(WINDOW_SAMPLES, np.float32)
    for place, word in enumerate(words):
        loudness = (1 + WORDS.index(word)) / 1000
        window[place * STRETCH_SAMPLES : (place + 1) * STRETCH_SAMPLES] = loudness
    return window


def write_speech_artifact(
    folder: Path, *, source: str, cache: dict[str, Any] = CACHE_DENSE, model: dict[str, Any] | None = None
) -> Path:
    """`folder`, now a Whisper artifact whose graphs are a few bytes."""
    folder.mkdir(parents=True)
    tokens = [*TEXT_TOKENS, *SPECIAL, *(f"<|{step * 0.02:.2f}|>" for step in range(round(WINDOW_S / 0.02) + 1))]
    ids = {token: index for index, token in enumerate(tokens)}
    for role in ("encoder", "decoder"):
        (folder / f"{role}.onnx").write_bytes(f"{source} {role}".encode() * (20 if cache is CACHE_DENSE else 10))
        (folder / f"{role}.bin").write_bytes(b"data")
    vocabulary = {"schema": "leanear-vocabulary-1", "tokens": tokens, "special_from": len(TEXT_TOKENS)}
    write_json(folder / "vocabulary.json", vocabulary)
    speech = GoldenSpeech(np.array([0]), np.zeros((1, 1), np.int64), np.arange(4), np.zeros((1, 2), np.float32))
    write_golden(folder / "golden.npz", Golden((say("cat"),), np.zeros((1, 2, 4)), speech))
    write_json(
        folder / "manifest.json",
        {
            "schema": MANIFEST_SCHEMA,
            "family": "whisper",
            "task": "automatic-speech-recognition",
            "model": {
                "source": source,
                "parameters": 2000,
                "attention_parameters": 900,
                "macs": 90_000,
                "checkpoint_bytes": 8000,
                **(model or {}),
            },
            "graphs": {
                role: {
                    "file": f"{role}.onnx",
                    "sha256": sha256_file(folder / f"{role}.onnx"),
                    "bytes": (folder / f"{role}.onnx").stat().st_size,
                    "data": {"file": f"{role}.bin", "sha256": sha256_file(folder / f"{role}.bin")},
                    "form": "portable",
                    "opset": 20,
                    "nodes": 4,
                    "precision": "fp32",
                }
                for role in ("encoder", "decoder")
            },
            "input": {
                "name": "waveform",
                "dtype": "float32",
                "shape": [1, "samples"],
                "sample_rate_hz": SAMPLE_RATE_HZ,
                "window_samples": WINDOW_SAMPLES,
            },
            "output": {"name": "logits", "dtype": "float32", "shape": ["rows", len(tokens)]},
            "vocabulary": {"file": "vocabulary.json", "sha256": sha256_file(folder / "vocabulary.json")},
            "decoding": {
                "start": ids["<|startoftranscript|>"],
                "end": ids["<|endoftext|>"],
                "previous": ids["<|startofprev|>"],
                "no_speech": ids["<|nospeech|>"],
                "no_timestamps": ids["<|notimestamps|>"],
                "timestamp_begin": ids["<|0.00|>"],
                "transcribe": ids["<|transcribe|>"],
                "translate": ids["<|translate|>"],
                "languages": {"en": ids["<|en|>"], "de": ids["<|de|>"]},
                "default_language": "en",
                "multilingual": True,
                "suppress": [],
                "begin_suppress": [],
                "max_initial_timestamp_index": 50,
                "positions": POSITIONS,
                "timestamp_step_s": 0.02,
                "window_s": WINDOW_S,
            },
            "embedding": {
                "file": "decoder.bin",
                "offset": 0,
                "shape": [len(tokens), 1],
                "precision": "fp32",
                "blocks": None,
            },
            "cache": cache,
            "golden": {"file": "golden.npz", "sha256": sha256_file(folder / "golden.npz"), "clips": 1},
            "parity": None,
            "made_from": {},
        },
    )
    return folder
