"""Tensors that a later run may use again, in a file that says what it was made from and proves its contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from leanear.runtimes.files import replaced_file
from leanear.runtimes.process.kept_work import remember_kept

METADATA_KEY = "leanear"  # one key, because safetensors does not keep the order of several


def keep_tensors(path: Path, tensors: Mapping[str, torch.Tensor], made_from: Mapping[str, str]) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    described = json.dumps({"made_from": dict(made_from), "sha256": _sha256(whole)}, sort_keys=True)
    with replaced_file(path) as part:
        try:
            save_file(whole, part, metadata={METADATA_KEY: described})
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, str(error), str(path)) from None
        remember_kept(path)  # before it is there: an interruption can come in between


def kept_tensors(path: Path, made_from: Mapping[str, str]) -> dict[str, torch.Tensor] | None:
    """What `keep_tensors` wrote, or None: no such file, damaged in any byte, or made from other inputs."""
    try:
        with safe_open(path, framework="pt") as stream:
            described = json.loads((stream.metadata() or {}).get(METADATA_KEY, "{}"))
            if described.get("made_from") != dict(made_from):
                return None
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
    except (OSError, SafetensorError, json.JSONDecodeError):
        return None
    if _sha256(tensors) != described.get("sha256"):
        return None
    remember_kept(path)
    return tensors


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
