"""Sums over many clips, chunk by chunk: on one process or on many, interrupted and continued, always the same.

Chunks are computed wherever there is a process for them (`torchrun`), and added in their own order by the first
process, so that the number of processes does not change a sum. Each chunk is a file until all are there, which says
what it was made from and proves its contents.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import distributed

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_file
from leanear.runtimes.process.interrupts import remember_kept
from leanear.runtimes.process.notes import note

METADATA_KEY = "leanear"  # one key, because safetensors does not keep the order of several
Tensors = Mapping[str, torch.Tensor]
Progress = Callable[[int, int], None]


def keep_tensors(path: Path, tensors: Tensors, made_from: Mapping[str, str], told: Any = None) -> None:
    """Write the file, whole or not at all; told: what is to be known of the tensors, as JSON has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    described = json.dumps({"made_from": dict(made_from), "sha256": _sha256(whole), "told": told}, sort_keys=True)
    with replaced_file(path) as part:
        try:
            save_file(whole, part, metadata={METADATA_KEY: described})
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, str(error), str(path)) from None
        remember_kept(path)  # before it is there: an interruption can come in between


def kept_tensors(path: Path, made_from: Mapping[str, str]) -> dict[str, torch.Tensor] | None:
    """The tensors that `keep_tensors` wrote, or None: no such file, damaged in any byte, or made from other inputs."""
    return (kept_and_told(path, made_from) or (None,))[0]


def kept_and_told(path: Path, made_from: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], Any] | None:
    """The same, and what was told of them."""
    try:
        with safe_open(path, framework="pt") as stream:
            described = json.loads((stream.metadata() or {}).get(METADATA_KEY, "{}"))
            if described.get("made_from") != dict(made_from):
                return None
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
        whole = _sha256(tensors) == described.get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, json.JSONDecodeError):
        whole = False
    if not whole:
        note(f"{path}: damaged; what was kept in it is made again")
        return None
    remember_kept(path)
    return tensors, described.get("told")


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def processes() -> Iterator[int]:
    """Join the processes that `torchrun` started, over gloo, or nccl where they have GPUs; the rank, 0 if alone.

    Raises:
        BadInput: there are GPUs, and fewer of them than processes here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield rank()
        return
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < gpus < here:
        raise BadInput(f"torchrun started {here} processes, more than GPUs: give it --nproc-per-node {gpus}")
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield rank()
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(
    chunks: int,
    compute: Callable[[int], Tensors],
    *,
    folder: Path | None,
    made_from: Mapping[str, str],
    progress: Progress,
    taken: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> list[Tensors]:
    """What all chunks give, in their order; on processes other than the first, nothing.

    compute(number): the tensors of that chunk by name; folder: where finished chunks are kept, and taken from if they
    are whole and of the same made_from; progress: called with chunks done and in all; taken: called with every chunk in
    its order, gives what of it stays in memory.
    """
    kept = _kept_chunks(folder, chunks, made_from) if rank() == 0 else {}
    todo = _todo(chunks, kept)
    ready = 0

    def take() -> int:
        number = ready
        while number in kept:
            kept[number] = taken(kept[number])
            number += 1
        return number

    ready = take()
    for start in range(0, len(todo), world_size()):
        wave = todo[start : start + world_size()]
        own = compute(wave[rank()]) if rank() < len(wave) else {}
        if 0 < rank() < len(wave):
            told = _described(own)
            for tensor in (torch.tensor(len(told)), told, *own.values()):
                distributed.send(tensor.to(_device()).contiguous(), dst=0)
        for sender, number in enumerate(wave if rank() == 0 else ()):
            kept[number] = own if sender == 0 else _receive(sender)
            if folder is not None:
                keep_tensors(_chunk_file(folder, number), kept[number], made_from)
        own = {}  # which is large, and not held while the next is computed
        ready = take()
        progress(chunks - len(todo) + start + len(wave), chunks)
    return [kept[number] for number in range(chunks)] if rank() == 0 else []


class RunningSums:
    """Sums of the tensors of these names over chunks, which do not stay in memory: they are large.

    folder: where the sums are from one chunk to the next; None: in memory.
    """

    def __init__(self, names: Iterable[str], folder: Path | None = None) -> None:
        self._names, self._folder, self._sums = set(names), folder, dict[str, torch.Tensor]()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
            folder.mkdir(parents=True)

    def take(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
        """Add what is to be added as it comes; the others."""
        others = {}
        for name, tensor in tensors:
            if name not in self._names:
                others[name] = tensor
                continue
            so_far = self._taken_out(name)
            total = tensor if so_far is None else so_far.add_(tensor)
            if self._folder is None:
                self._sums[name] = total
            else:
                np.save(self._file(name), total.numpy())
        return others

    def pop(self, name: str) -> torch.Tensor:
        """The sum, which is not kept any longer."""
        found = self._taken_out(name)
        assert found is not None, name
        if self._folder is not None and not any(self._folder.iterdir()):
            self._folder.rmdir()
        return found

    def _taken_out(self, name: str) -> torch.Tensor | None:
        if self._folder is None or not self._file(name).exists():
            return self._sums.pop(name, None)
        found = torch.from_numpy(np.load(self._file(name), allow_pickle=False))
        self._file(name).unlink()
        return found

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name.replace('/', '-')}.npy"


def broadcast(tensors: Sequence[torch.Tensor]) -> None:
    """Fill the tensors of every process with those of the first one."""
    if not distributed.is_initialized():
        return
    for tensor in tensors:
        moved = tensor.to(_device()).contiguous()
        distributed.broadcast(moved, src=0)
        tensor.copy_(moved)


def shared(tensors: Tensors) -> Tensors:
    """The first process's tensors by name, on all of them; what the others give is not looked at."""
    if not distributed.is_initialized():
        return tensors
    told = _described(tensors)
    length = int(same(len(told)))
    told = told if rank() == 0 else torch.empty(length, dtype=torch.uint8)
    broadcast([told])
    here = dict(tensors) if rank() == 0 else _blank(told)
    broadcast(list(here.values()))
    return here


def same(value: float) -> float:
    """The first process's value, on all of them."""
    told = torch.tensor([value], dtype=torch.float64)
    broadcast([told])
    return float(told)


def wait() -> None:
    """Come back when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def _device() -> torch.device:
    """Where messages must lie: nccl only carries what is on a GPU."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _todo(count: int, kept: Mapping[int, Tensors]) -> list[int]:
    """Chunks that are still to be computed: what the first process lacks."""
    lacking = torch.tensor([number not in kept for number in range(count)], dtype=torch.uint8)
    broadcast([lacking])
    return [number for number in range(count) if lacking[number]]


def _receive(sender: int) -> Tensors:
    def arrived(blank: torch.Tensor) -> torch.Tensor:
        here = blank.to(_device())
        distributed.recv(here, src=sender)
        return here.cpu()

    told = arrived(torch.empty(int(arrived(torch.tensor(0))), dtype=torch.uint8))
    return {name: arrived(blank) for name, blank in _blank(told).items()}


def _described(tensors: Tensors) -> torch.Tensor:
    """Names, types and shapes, in the tensors' order, as bytes: what another process must know to receive them."""
    told = [(name, str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in tensors.items()]
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def _blank(told: torch.Tensor) -> dict[str, torch.Tensor]:
    described = json.loads(bytes(told.tolist()))
    return {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in described}


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:05d}.safetensors"


def _kept_chunks(folder: Path | None, count: int, made_from: Mapping[str, str]) -> dict[int, Tensors]:
    """The chunks in `folder` that are whole and made from just these inputs."""
    kept: dict[int, Tensors] = {}
    if folder is None:
        return kept
    for number in range(count):
        tensors = kept_tensors(_chunk_file(folder, number), made_from)
        if tensors is not None:
            kept[number] = tensors
    return kept
