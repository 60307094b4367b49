"""Reading and writing checkpoint folders, whatever the family: a fault is one line that names the folder or file."""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from leanear.plan import Plan, write_plan
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object, replaced_folder
from leanear.runtimes.process.notes import named, note
from leanear.runtimes.records import write

PRUNING_FILE = "pruning.json"
MOST_OF_STORED = 2  # times as many parameters as the weights hold: no model is built that is larger
MOST_OF_FRONT_END = {  # whole numbers of a front end's settings: more than these is no front end, and would take hours
    "sampling_rate": 1_000_000,
    "feature_size": 4096,
    "num_mel_bins": 4096,
    "n_fft": 2**16,
    "hop_length": 2**16,
    "chunk_length": 3600,
    "max_length": 10**6,
}
NUMBERS_OF_FRONT_END = ("padding_value", "dither", "mean", "std")
SLIM_SETTINGS = ("query_key_widths", "value_output_widths", "attention_scaling", "feed_forward_widths")

# What transformers raises on settings that make no sense, none of it by a name of its own.
UNUSABLE_SETTINGS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ZeroDivisionError,
    RuntimeError,
    AssertionError,
    StrictDataclassError,
)


def read_model_type(folder: Path) -> str | None:
    """`model_type` of the folder's config.json."""
    return read_object(folder / "config.json").get("model_type")


def check_front_end(path: Path) -> None:
    """Nothing, where the numbers of a front end's settings may be meant; transformers does not look at them.

    Raises:
        BadInput: one is no number, or of another size.
    """
    settings = read_object(path)
    inner = settings.get("feature_extractor")  # of a processor's settings
    for key, value in (inner if isinstance(inner, dict) else settings).items():
        most = MOST_OF_FRONT_END.get(key)
        if most is not None and not (type(value) is int and 0 < value <= most):
            raise BadInput(f"{path}: {key} is {value!r}; a whole number from 1 to {most:,} is wanted")
        if key in NUMBERS_OF_FRONT_END and not (type(value) in (int, float) and math.isfinite(value)):
            raise BadInput(f"{path}: {key} is {value!r}; a number is wanted")


def require_features(
    folder: Path, extractor: Any, features: Callable[[Any, Any], torch.Tensor], shape: tuple[int, int]
) -> None:
    """Nothing, where the checkpoint's front end makes features of this shape of a moment of silence.

    features(extractor, waveforms): (1, ...), by it.

    Raises:
        BadInput: it fails, or makes others, or numbers that are none.
    """
    path = f"{folder}/preprocessor_config.json"
    try:
        found = features(extractor, [np.zeros(extractor.sampling_rate // 10, np.float32)])
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: no features can be made by it ({first_line(error)})") from None
    if tuple(found.shape[1:]) != shape:
        raise BadInput(f"{path}: it makes features of {tuple(found.shape[1:])}, and the model takes {shape}")
    if not torch.isfinite(found).all():
        raise BadInput(f"{path}: it makes features of silence that are NaN or infinite")


def require_gelu(folder: Path, key: str, config: PreTrainedConfig) -> None:
    """Nothing, where feed-forward blocks have the activation that graphs are written with."""
    if getattr(config, key) != "gelu":
        raise BadInput(f"{folder}/config.json: {key} is {getattr(config, key)!r}; only 'gelu' can be exported")


@dataclass(frozen=True)
class SizeSigns:
    """Where the names and shapes of a family's weights show what config.json says.

    layers: by key, a pattern whose group is the number of a layer; widths: by key, a tensor as long as it says.
    """

    layers: Mapping[str, str]
    widths: Mapping[str, str]


def load_config(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], folder: Path, signs: SizeSigns
) -> PreTrainedConfig:
    """The settings in config.json, once a model, apart from its weights, was built from them.

    They are held against the weights' names and shapes first: of settings alone a model can be of any size, and even
    to find out that it is too large would take hours.

    Raises:
        BadInput: no model can be built from them, or the weights are unreadable or of a model of another size.
    """
    stored = stored_shapes(folder)
    _check_sizes(folder, signs, stored)
    try:
        config = config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            built = sum(parameter.numel() for parameter in model_class(config).parameters())
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{folder}/config.json: no model can be built from it ({first_line(error)})") from None
    held = sum(math.prod(shape) for shape in stored.values())
    if built > MOST_OF_STORED * held:
        raise BadInput(f"{folder}/config.json: a model of {built:,} parameters, but the weights hold {held:,}")
    return config


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the folder's safetensors files, from their headers alone.

    Raises:
        BadInput: there are none, or one is unreadable.
    """
    paths = [folder / "model.safetensors"]
    if not paths[0].is_file():
        paths = _shards(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path}: weights cannot be read ({first_line(error)})") from None
    return shapes


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(named))]
    except FileNotFoundError:
        raise BadInput(f"{folder}: weights cannot be read (there is no model.safetensors in it)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{index}: weights cannot be read ({first_line(error)})") from None


def _check_sizes(folder: Path, signs: SizeSigns, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raises BadInput where a number in config.json is not the one that the weights show."""
    said = read_object(folder / "config.json")
    shown = {}
    for key, pattern in signs.layers.items():
        shown[key] = len({found[1] for name in stored if (found := re.search(pattern, name))})
    for key, pattern in signs.widths.items():
        shown[key] = next((shape[0] for name, shape in stored.items() if shape and re.search(pattern, name)), 0)
    for key, number in shown.items():
        if isinstance(said.get(key), int) and said[key] > 0 and number > 0 and said[key] != number:
            raise BadInput(f"{folder}/config.json: {key} is {said[key]}, but the weights are those of {number}")


def load_weights(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """The model in the folder, fp32 and in eval mode. Weights come from safetensors; no code in the folder is run.

    Raises:
        BadInput: weights are unreadable, absent, of another shape than config.json says, or not finite.
    """
    try:
        with only_our_words():
            model, loading = model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder}: weights cannot be read ({first_line(error)})") from None
    mismatched = sorted(str(entry[0]) for entry in loading["mismatched_keys"])
    if mismatched:
        raise BadInput(f"{folder}: {mismatched[0]!r} has another shape in the weights than config.json says")
    absent = sorted(loading["missing_keys"])
    if absent:
        raise BadInput(f"{folder}: the weights lack {absent[0]!r} ({len(absent)} tensors missing)")
    if strange := sorted(loading["unexpected_keys"]):
        note(f"{folder}: weights that are none of the model's are not used: {named(strange)}")
    wrong = not_finite(model)
    if wrong is not None:
        raise BadInput(f"{folder}: the weights hold NaN or infinite values, in {wrong!r}")
    return model.eval()


def not_finite(model: torch.nn.Module) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all is well."""
    return next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)


def slim_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a slim configuration takes over from `config`, dense or slim: all but names, versions and widths."""
    settings = config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", *SLIM_SETTINGS):
        settings.pop(key, None)
    return settings


def write_slim_folder(
    out: Path,
    model: PreTrainedModel,
    write_processor: Callable[[Path], object],
    modelling_file: Path,
    plan: Plan,
    facts: Any,
) -> None:
    """Write the slim checkpoint folder, whole or not at all.

    write_processor: writes what stands before and behind the model; modelling_file: goes in, so that the folder opens
    where leanear is not installed; facts: the document pruning.json, if there is one.

    Raises:
        BadInput: the model has weights that are not finite.
    """
    wrong = not_finite(model)
    if wrong is not None:
        raise BadInput(f"{out}: not written, because pruning made NaN or infinite weights, in {wrong!r}")
    with replaced_folder(out) as folder, only_our_words():
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, first_line(error), str(out)) from None
        write_processor(folder)
        shutil.copyfile(modelling_file, folder / modelling_file.name)
        write_plan(folder / "plan.json", plan)
        if facts is not None:
            write(folder / PRUNING_FILE, facts)
        for file in folder.iterdir():
            file.chmod(0o644)  # the weights come with 0600


@contextlib.contextmanager
def only_our_words() -> Iterator[None]:
    """transformers draws bars for work that takes milliseconds, and tables of weights where one line is ours."""
    shown, said = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or what it is."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
