"""MODEL, as a user names it, to a checkpoint folder, its identity and its family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leanear.data.dataset import Data, DataFolder, as_folder
from leanear.demo import demo_clips_folder, demo_model_folder
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.registry import family_in
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file, sha256_json

if TYPE_CHECKING:  # torch: seconds to import
    from leanear.families.family import Checkpoint

DEMO_MODEL = "demo-ast"  # where none is named
DEMO_MODELS = (DEMO_MODEL, "demo-whisper")
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "plan.json",
    "adapter_config.json",  # read to be refused
)
_MODEL_IS = f"MODEL is a checkpoint folder, a Hub id, {' or '.join(DEMO_MODELS)}"


def checkpoint_folder(model: str) -> Path:
    """The folder of MODEL: a demo model, a folder, or a Hub id, which is downloaded (weights in safetensors alone).

    Raises:
        BadInput: it is none of these, or the Hub cannot be reached.
    """
    if model in DEMO_MODELS:
        return demo_model_folder(model)
    folder = Path(model)
    if folder.is_dir():
        require_no_adapter(folder)
        if not (folder / "config.json").is_file():
            parts = " and ".join(part for part in ("dense", "slim") if (folder / part / "manifest.json").is_file())
            here = f"a deployment, whose artifacts are {parts} in it" if parts else f"no config.json in it; {_MODEL_IS}"
            raise BadInput(f"{folder}: {here}")
        return folder
    if folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise BadInput(f"{model}: no such model folder; {_MODEL_IS}")
    # A quarter of what every command would take to start.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(CHECKPOINT_FILES)))
    except HFValidationError:
        raise BadInput(f"{model}: neither a folder nor a well-formed Hub id (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{model}: no such folder here, and it could not be fetched from the Hub ({reason})") from None
    require_no_adapter(folder)
    return folder


def data_folder(model: str, data: Data | None) -> DataFolder:
    """DATA, or a demo's own clips where there is no DATA and nothing but that demo is asked for.

    Raises:
        BadInput: no DATA was given for a model that brings none.
    """
    if data is not None:
        return as_folder(data)
    if model in DEMO_MODELS:
        return DataFolder(demo_clips_folder(model))
    raise BadInput(f"--data is missing: {model} brings no audio of its own ({' and '.join(DEMO_MODELS)} do)")


def require_no_adapter(folder: Path) -> None:
    """Nothing, where the folder's weights are all of the model.

    Raises:
        BadInput: they are those of an adapter (LoRA), or one lies beside them, which torch would add and a graph not.
    """
    path = folder / "adapter_config.json"
    if path.exists():
        raise BadInput(
            f"{path}: an adapter, not a whole model; merge it into its model first (peft's merge_and_unload), and save"
            " that in a folder of its own"
        )


def checkpoint_name(model: str) -> str:
    """A short name for MODEL, fit for a folder's name."""
    name = Path(model).resolve().name if Path(model).exists() else model.replace("/", "--")
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "model"


def checkpoint_sha256(folder: Path) -> str:
    """One hex sha256 over the names and contents of the checkpoint's files."""
    files = sorted({path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)})
    return sha256_json({path.name: sha256_file(path) for path in files})


def load_checkpoint(folder: Path, asked: Asked = NOTHING_ASKED) -> Checkpoint:
    """The checkpoint in `folder`, by the family that its config.json names.

    asked: becomes a Whisper's own task and language, in memory.

    Raises:
        BadInput: config.json is unreadable or names a family that leanear does not have, plan.json is not a plan, or
            the model does not have what is asked for.
    """
    require_no_adapter(folder)
    if (folder / "plan.json").is_file():
        from leanear.plan import read_plan  # which needs torch

        read_plan(folder / "plan.json")  # what is wrong in it is said, whoever reads it later
    return family_in(folder).load_checkpoint(folder, asked)
