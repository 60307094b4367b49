"""The embedded default: a small AST and its clips, so that the whole job runs with no network."""

from __future__ import annotations

from pathlib import Path


def demo_model_folder() -> Path:
    """The folder of the shipped checkpoint: `config.json`, `model.safetensors`, `preprocessor_config.json`."""
    return Path(__file__).resolve().parent / "ast" / "model"


def demo_clips_folder() -> Path:
    """The folder that holds `calibration/` and `evaluation/`, each an audiofolder with a `metadata.csv`."""
    return Path(__file__).resolve().parent / "ast" / "clips"
