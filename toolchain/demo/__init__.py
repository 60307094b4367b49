"""The embedded defaults: a small AST, a small Whisper, and their clips, so that the whole job runs with no network."""

from __future__ import annotations

from pathlib import Path


def demo_model_folder(name: str = "demo-ast") -> Path:
    """The folder of the shipped checkpoint of this name ("demo-ast", "demo-whisper"), with all its files."""
    return Path(__file__).resolve().parent / name.removeprefix("demo-") / "model"


def demo_clips_folder(name: str = "demo-ast") -> Path:
    """The folder that holds `calibration/` and `evaluation/`, each an audiofolder with a `metadata.csv`."""
    return Path(__file__).resolve().parent / name.removeprefix("demo-") / "clips"
