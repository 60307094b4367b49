"""Where a deployment goes that was given no --out: one folder per model, also where two models have the same name."""

import hashlib
from pathlib import Path

from leanear.families.checkpoint import DEMO_MODELS, checkpoint_name
from leanear.runtimes.files import write_text

DEPLOYMENTS = Path("deployments")
OWNER_FILE = ".leanear-model"  # in a model's folder: which model that is
LETTERS = 8


def default_folder(model: str, target: str) -> Path:
    """deployments/NAME/TARGET, or, where NAME is another model's folder, deployments/NAME-HASH/TARGET."""
    name = checkpoint_name(model)
    if _owner(DEPLOYMENTS / name) not in ("", _identity(model)):
        name = f"{name}-{hashlib.sha256(_identity(model).encode()).hexdigest()[:LETTERS]}"
    return DEPLOYMENTS / name / target


def claim(folder: Path, model: str) -> None:
    """Write down that `folder`, a `default_folder`, and all beside it are of MODEL."""
    if not _owner(folder.parent):
        write_text(folder.parent / OWNER_FILE, _identity(model) + "\n")


def _identity(model: str) -> str:
    """The checkpoint's own folder, or the name by which everybody has the same."""
    return model if model in DEMO_MODELS or not Path(model).is_dir() else str(Path(model).resolve())


def _owner(folder: Path) -> str:
    """Which model's a folder is, "" where nothing says so."""
    path = folder / OWNER_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
