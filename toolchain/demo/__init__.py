"""A small AST, a small Whisper, and their clips, so that the whole job runs with no network; only in a source tree."""

from pathlib import Path

from leanear.runtimes.errors import BadInput


def demo_model_folder(name: str = "demo-ast") -> Path:
    """The folder of the demo checkpoint of this name ("demo-ast", "demo-whisper"), with all its files."""
    return _folder(name) / "model"


def demo_clips_folder(name: str = "demo-ast") -> Path:
    """The folder that holds `calibration/` and `evaluation/`, each an audiofolder with a `metadata.csv`."""
    return _folder(name) / "clips"


def _folder(name: str) -> Path:
    folder = Path(__file__).resolve().parent / name.removeprefix("demo-")
    if not folder.is_dir():
        raise BadInput(f"{name} comes with leanear's source tree alone; give a MODEL and --data")
    return folder
