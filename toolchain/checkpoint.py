"""MODEL, as a user names it, to a checkpoint folder, its identity and its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from runtimes.errors import BadInput
from runtimes.files import sha256_file, sha256_json
from toolchain.demo import demo_model_folder

if TYPE_CHECKING:
    from toolchain.families.ast import AstCheckpoint

DEMO_MODEL = "demo-ast"
CHECKPOINT_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "plan.json",
)


def checkpoint_folder(model: str) -> Path:
    """The folder of MODEL: "demo-ast", a folder, or a Hub id, which is downloaded (weights in safetensors alone).

    Raises:
        BadInput: it is none of these, or the Hub cannot be reached.
    """
    if model == DEMO_MODEL:
        return demo_model_folder()
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(f"{folder}: no config.json in it; MODEL is a checkpoint folder, a Hub id or {DEMO_MODEL}")
        return folder
    if folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise BadInput(f"{model}: no such model folder; MODEL is a checkpoint folder, a Hub id or {DEMO_MODEL}")
    try:
        return Path(snapshot_download(model, allow_patterns=list(CHECKPOINT_FILES)))
    except HFValidationError:
        raise BadInput(f"{model}: neither a folder nor a well-formed Hub id (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{model}: no such folder here, and it could not be fetched from the Hub ({reason})") from None


def checkpoint_name(model: str) -> str:
    """A short name for MODEL, fit for a folder's name."""
    name = Path(model).resolve().name if Path(model).exists() else model.replace("/", "--")
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "model"


def checkpoint_sha256(folder: Path) -> str:
    """One hex sha256 over the names and contents of the checkpoint's files."""
    files = sorted({path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)})
    return sha256_json({path.name: sha256_file(path) for path in files})


def load_checkpoint(folder: Path) -> AstCheckpoint:
    """The checkpoint in `folder`, by the family that its config.json names.

    Raises:
        BadInput: config.json is unreadable or names a family that leanear does not have.
    """
    from toolchain.families import ast  # torch: seconds to import, so only where a model is really loaded

    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise BadInput(f"{path}: not a model configuration ({error})") from None
    if model_type in (ast.DENSE_MODEL_TYPE, ast.SLIM_MODEL_TYPE):
        return ast.load_checkpoint(folder)
    if model_type == "whisper":
        raise BadInput(
            f"{path}: Whisper is not supported by this version of leanear; Audio Spectrogram Transformers are"
        )
    raise BadInput(
        f"{path}: model_type is {model_type!r}; leanear takes Audio Spectrogram Transformers ({ast.DENSE_MODEL_TYPE})"
    )
