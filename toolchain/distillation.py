"""Recovery by distillation: a slim model learns on calibration clips to answer as its dense self does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from calibration.order import stratified_order
from calibration.targets import answered, positions, strata
from runtimes.errors import BadInput
from runtimes.files import replaced_file, sha256_json
from toolchain.examples import Inputs
from toolchain.narration import Report, quiet
from toolchain.recovery import masked, with_lora

Logits = Callable[[nn.Module, Any], torch.Tensor]
Method = Literal["lora", "full"]
METHODS: tuple[Method, ...] = ("lora", "full")
LEARNING_RATES: dict[Method, float] = {"lora": 1e-3, "full": 2e-4}

STATE_FILE = "distillation.safetensors"
STATE_SCHEMA = "leanear-distillation-1"
METADATA_KEY = "leanear"  # one key, because safetensors does not keep the order of several
LARGEST_GRADIENT_NORM = 1.0
MOST_KEPT_BYTES = 512 * 1024**2  # of the dense model's answers; above, it answers every batch anew
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names of what AdamW keeps of every parameter

ALL_EPOCHS = "all epochs are done"
ALL_STEPS = "max_steps updates are done"
NO_BETTER = "the held-out KL no longer falls"
DIVERGED = "the loss is not finite any more"


@dataclass(frozen=True)
class Distillation:
    """How a slim model is trained to answer as the dense one.

    The defaults of method, rate, temperature and masks are what measured best on the demo's held-out clips.

    method: "full" trains every parameter, "lora" updates alpha/rank * B A of every linear layer's weight, which are
    merged; learning_rate: None takes the method's own; epochs: passes over the training clips, at most; batch_size:
    clips per update, of all processes together; temperature, label_weight: the loss is label_weight * cross-entropy of
    the observed labels + (1 - label_weight) * temperature^2 KL(dense || slim), both softened by the temperature, and
    the mean over all targets; held_out: share of the clips, balanced, that is not trained on: their KL at temperature 1
    decides which epoch's state is kept, the first of them that before any training, and training stops after `patience`
    epochs that do not lower it; 0 trains on all clips and keeps the last state; warm_up: share of the updates in which
    the rate rises linearly, before half a cosine takes it to 0; frequency_mask_bins, time_mask_frames: widest band and
    span of the features that is blanked per training clip, for both models alike; max_steps: updates, at most.
    """

    method: Method = "full"
    rank: int = 16
    alpha: float = 16.0
    learning_rate: float | None = None
    epochs: int = 10
    batch_size: int = 16
    temperature: float = 4.0
    label_weight: float = 0.0
    held_out: float = 0.15
    patience: int = 3
    warm_up: float = 0.05
    frequency_mask_bins: int = 0
    time_mask_frames: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"distillation method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        for name in ("rank", "epochs", "batch_size", "patience", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"distillation {name} is {value}; it must be at least 1")
        for name in ("frequency_mask_bins", "time_mask_frames"):
            if getattr(self, name) < 0:
                raise BadInput(f"distillation {name} is {getattr(self, name)}; it must be at least 0")
        for name in ("alpha", "learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise BadInput(f"distillation {name} is {value:g}; it must be above 0")
        for name, largest in (("label_weight", 1.0), ("held_out", 0.5), ("warm_up", 1.0)):
            if not 0.0 <= getattr(self, name) <= largest:
                raise BadInput(f"distillation {name} is {getattr(self, name):g}; it must lie between 0 and {largest:g}")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, the method's own unless one was given."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def masks(self) -> bool:
        """Whether training clips are blanked in part."""
        return self.frequency_mask_bins > 0 or self.time_mask_frames > 0


@dataclass(frozen=True)
class Distilled:
    """What a distillation did.

    updates: made in all; training_losses: mean of every epoch; held_out_kls: KL(dense || slim) in nats per target of
    the held-out clips, before training and after every epoch, empty without held-out clips; best_epoch: after which
    epoch the state was taken that the model has now, 0 for the one before training; stopped: why training ended.
    """

    updates: int = 0
    training_losses: tuple[float, ...] = ()
    held_out_kls: tuple[float, ...] = ()
    best_epoch: int = 0
    stopped: str = ""


@dataclass(frozen=True)
class _Work:
    """All that stays the same during a distillation; the clips are numbers of rows of `inputs`."""

    accelerator: Any
    student: nn.Module
    teacher: nn.Module
    inputs: Inputs
    targets: torch.Tensor
    logits: Logits
    options: Distillation
    training: torch.Tensor
    held_out: torch.Tensor
    seed: int
    report: Report

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.training) / self.options.batch_size)

    @property
    def updates_planned(self) -> int:
        planned = self.options.epochs * self.updates_per_epoch
        return planned if self.options.max_steps is None else min(planned, self.options.max_steps)


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    logits: Logits,
    options: Distillation,
    *,
    order: torch.Tensor | None = None,
    seed: int = 0,
    state: Path | None = None,
    made_from: Mapping[str, str] | None = None,
    report: Report = quiet,
) -> Distilled:
    """Train the student in place to answer as the teacher does, and keep its best state; what the training did.

    inputs: (N, ...) as the models take them; targets: (N,), or (N, L) as in `calibration.targets`; both on the CPU;
    logits(model, inputs): (B, C), or (B, L, C); order: clips to use, int64, or None for all. The student's structure,
    mode, requires_grad flags and device stay, and the teacher stays as it is.

    state: a folder from which an interrupted run goes on after its last finished epoch, to the same bytes; made_from:
    sha256 by kind of student, teacher and clips: what is in the folder of others, or of other options, is not used.

    Runs on the processes and the accelerators that `accelerate launch` or `torchrun` gave, or on one; all processes
    call it alike and end with the same student. Only the first reports and writes.

    Raises:
        BadInput: too few clips, or the processes do not see the same state.
    """
    from accelerate import Accelerator  # imports much; only recovery needs it

    if state is not None and not made_from:
        raise ValueError("a state folder is of no use without made_from: it could be another model's")
    # without this flag, several processes on CPUs would each train alone
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    device = accelerator.device
    training, held_out = _split(strata(targets), order, options, seed)
    identity = sha256_json(
        [dict(made_from or {}), dataclasses.asdict(options), seed, training.tolist(), held_out.tolist()]
    )
    work = _Work(
        accelerator, student, teacher, inputs, targets, logits, options, training, held_out, seed,
        report if accelerator.is_main_process else quiet,
    )  # fmt: skip
    state_path = None if state is None else state / STATE_FILE
    random_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=random_devices), _visiting(student, device), _visiting(teacher, device):
        torch.manual_seed(seed)
        teacher.eval()
        if options.method == "full":
            return _distill(work, dict(student.named_parameters()), state_path, identity)
        adapted = with_lora(student, options.rank, options.alpha)
        try:
            distilled = _distill(work, _learning(student), state_path, identity)
        except BaseException:
            adapted.unload()
            raise
        adapted.merge_and_unload()
        return distilled


def _split(
    label_ids: torch.Tensor, order: torch.Tensor | None, options: Distillation, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips to train on and clips held out, both balanced over the labels."""
    order = torch.arange(len(label_ids)) if order is None else order
    balanced = order[torch.from_numpy(stratified_order(label_ids[order].numpy(), seed))]
    held_out_clips = round(options.held_out * len(order))
    if len(order) - held_out_clips < 1 or (options.held_out and not held_out_clips):
        raise BadInput(f"{len(order)} clips are too few to hold out {options.held_out:g} of them (held_out)")
    return balanced[held_out_clips:], balanced[:held_out_clips]


@contextlib.contextmanager
def _visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device`; afterwards back where it was, with its mode and its requires_grad flags."""
    training_mode = model.training
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home).train(training_mode)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
            parameter.grad = None


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _distill(work: _Work, trained: dict[str, nn.Parameter], state_path: Path | None, identity: str) -> Distilled:
    """Train the parameters `trained`, epoch by epoch, and leave them in their best state."""
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=work.options.peak_learning_rate, weight_decay=0.0)
    best = {name: parameter.detach().clone() for name, parameter in trained.items()}
    kept = _read_state(state_path, identity, best, work.accelerator.device)
    _check_same_state(work.accelerator, kept, state_path)
    done = Distilled()
    if kept is not None:
        done, tensors = kept
        best = tensors["best"]
        if done.stopped:
            work.report("recovery was finished before", None)
        else:
            work.report(f"recovery goes on after epoch {len(done.training_losses)}", None)
            _copy_into(trained, tensors["trained"])
            _restore_moments(optimizer, trained, tensors)
    if not done.stopped:
        held_out_logits = None
        if _bytes_of_logits(work, work.held_out) <= MOST_KEPT_BYTES:
            held_out_logits = _all_logits(work, work.teacher, work.held_out)
        # with masks the teacher hears every batch anew, because what is blanked changes
        anew = work.options.masks or _bytes_of_logits(work, work.training) > MOST_KEPT_BYTES
        training_logits = None if anew else _all_logits(work, work.teacher, work.training)
        if kept is None and len(work.held_out):
            done = dataclasses.replace(done, held_out_kls=(_held_out_kl(work, held_out_logits),))
        while not done.stopped:
            done = _train_epoch(work, trained, optimizer, training_logits, held_out_logits, done)
            if done.best_epoch == len(done.training_losses):
                best = {name: parameter.detach().clone() for name, parameter in trained.items()}
            if state_path is not None and work.accelerator.is_main_process:
                _write_state(state_path, identity, done, trained, best, optimizer)
    _copy_into(trained, best)
    work.accelerator.wait_for_everyone()
    return done


def _train_epoch(
    work: _Work,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    training_logits: torch.Tensor | None,
    held_out_logits: torch.Tensor | None,
    done: Distilled,
) -> Distilled:
    """One more pass over the training clips, and what is known after it. Its draws depend on seed and epoch alone."""
    options, accelerator = work.options, work.accelerator
    epoch = len(done.training_losses) + 1
    draws = torch.Generator().manual_seed(work.seed * 1_000_003 + epoch)
    # dropout, if the model has any, differs between processes; what `draws` gives does not
    torch.manual_seed((work.seed * 1_000_003 + epoch) * 4_099 + accelerator.process_index)
    work.student.train()
    updates, loss_sum, clips = done.updates, 0.0, 0
    so_far = f", held-out KL {done.held_out_kls[-1]:.4f} nats" if done.held_out_kls else ""
    batches = torch.randperm(len(work.training), generator=draws).split(options.batch_size)
    for rows in batches[: work.updates_planned - updates]:
        blanked = masked(work.inputs[work.training[rows]], options.frequency_mask_bins, options.time_mask_frames, draws)
        optimizer.param_groups[0]["lr"] = options.peak_learning_rate * _rate_share(work, updates)
        loss = _mean_loss_gradients(work, trained, rows, blanked, training_logits)
        torch.nn.utils.clip_grad_norm_(trained.values(), LARGEST_GRADIENT_NORM)
        if math.isfinite(loss):
            optimizer.step()
        updates, loss_sum, clips = updates + 1, loss_sum + loss * len(rows), clips + len(rows)
        work.report(f"recovery, update {updates}/{work.updates_planned}{so_far}", updates / work.updates_planned)
    held_out_kls = done.held_out_kls
    best_epoch = epoch
    if len(work.held_out):
        held_out_kls = (*held_out_kls, _held_out_kl(work, held_out_logits))
        best_epoch = epoch if held_out_kls[-1] < held_out_kls[done.best_epoch] else done.best_epoch
    elif not math.isfinite(loss_sum):
        best_epoch = done.best_epoch
    stopped = ""
    if not math.isfinite(loss_sum):
        stopped = DIVERGED
    elif updates >= work.updates_planned:
        stopped = ALL_EPOCHS if updates == options.epochs * work.updates_per_epoch else ALL_STEPS
    elif epoch - best_epoch >= options.patience:
        stopped = NO_BETTER
    return Distilled(updates, (*done.training_losses, loss_sum / clips), held_out_kls, best_epoch, stopped)


def _rate_share(work: _Work, updates: int) -> float:
    """Share of the learning rate for the next update: a linear rise, then half a cosine to 0."""
    warm_up = round(work.options.warm_up * work.updates_planned)
    if updates < warm_up:
        return (updates + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (updates - warm_up) / (work.updates_planned - warm_up)))


def _mean_loss_gradients(
    work: _Work,
    trained: Mapping[str, nn.Parameter],
    rows: torch.Tensor,
    blanked: Inputs,
    training_logits: torch.Tensor | None,
) -> float:
    """The mean loss of a batch shared out among the processes; leaves its gradients in the parameters of each.

    The gradients are summed here, not by DistributedDataParallel: so a last batch that does not divide evenly keeps
    its exact mean, and a block that keeps no head, whose parameters get no gradient, is no error.
    """
    accelerator = work.accelerator
    mine = _share(accelerator, torch.arange(len(rows)))
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    loss = torch.zeros((), device=accelerator.device)
    if len(mine):
        part = blanked[mine].to(accelerator.device)
        if training_logits is None:
            with torch.no_grad():
                dense_logits = work.logits(work.teacher, part)
        else:
            dense_logits = training_logits[rows[mine].to(accelerator.device)]
        targets = work.targets[work.training[rows[mine]]].to(accelerator.device)
        loss = _loss_sum(work.logits(work.student, part), dense_logits, targets, work.options)
        loss = loss / positions(work.targets[work.training[rows]])
        accelerator.backward(loss)
    if accelerator.num_processes > 1:
        gradients = torch.cat([parameter.grad.flatten() for parameter in trained.values()])  # type: ignore[union-attr]
        summed = accelerator.reduce(gradients, "sum").split([parameter.numel() for parameter in trained.values()])
        for parameter, gradient in zip(trained.values(), summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
    return float(accelerator.reduce(loss.detach(), "sum"))


def _loss_sum(
    slim_logits: torch.Tensor, dense_logits: torch.Tensor, targets: torch.Tensor, options: Distillation
) -> torch.Tensor:
    """The loss that `Distillation` defines, summed over the clips' targets; logits are (B, C) or (B, L, C)."""
    temperature = options.temperature
    divergences = kl_divergences(dense_logits / temperature, slim_logits / temperature, targets)
    softened = temperature**2 * divergences.sum()
    if not options.label_weight:
        return softened
    labelled = functional.cross_entropy(*answered(slim_logits, targets), reduction="sum")
    return options.label_weight * labelled + (1 - options.label_weight) * softened


def kl_divergences(dense_logits: torch.Tensor, slim_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(dense || slim) at every target in nats, (P,), from logits (B, C), or (B, L, C) with targets (B, L)."""
    dense, slim = (functional.log_softmax(answered(each, targets)[0], dim=1) for each in (dense_logits, slim_logits))
    return functional.kl_div(slim, dense, log_target=True, reduction="none").sum(dim=1)


def _share(accelerator: Any, clips: torch.Tensor) -> torch.Tensor:
    """This process's part of the clips: in one piece, and as large as the others' give or take one."""
    return torch.tensor_split(clips, accelerator.num_processes)[accelerator.process_index]


@torch.no_grad()
def _bytes_of_logits(work: _Work, clips: torch.Tensor) -> int:
    """What the logits of all these clips take."""
    if work.targets.ndim == 1 or not len(clips):
        return 0  # a label each: never much
    work.teacher.eval()
    one = work.logits(work.teacher, work.inputs[clips[:1]].to(work.accelerator.device))
    return len(clips) * one.numel() * one.element_size()


@torch.no_grad()
def _logits_of(work: _Work, model: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    model.eval()
    batches = clips.split(work.options.batch_size)
    parts = [work.logits(model, work.inputs[batch].to(work.accelerator.device)) for batch in batches if len(batch)]
    return torch.cat(parts) if parts else torch.zeros(0, *[1] * work.targets.ndim, device=work.accelerator.device)


def _all_logits(work: _Work, model: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """The model's logits of the clips, (clips, ...), the same on all processes, each of which computes a part."""
    accelerator = work.accelerator
    own = _logits_of(work, model, _share(accelerator, clips))
    if accelerator.num_processes == 1:
        return own
    sizes = accelerator.reduce(torch.tensor(own.shape[1:], device=accelerator.device), "max").tolist()
    everything = torch.zeros(len(clips), *sizes, device=accelerator.device)
    if len(own):
        everything[_share(accelerator, torch.arange(len(clips))).to(accelerator.device)] = own
    return accelerator.reduce(everything, "sum")


def _held_out_kl(work: _Work, held_out_logits: torch.Tensor | None) -> float:
    """The mean KL(dense || slim) at the targets of the held-out clips, nats, the same on all processes.

    held_out_logits: the dense model's, or None to ask it batch by batch.
    """
    targets = work.targets[work.held_out]
    if held_out_logits is not None:
        slim_logits = _all_logits(work, work.student, work.held_out)
        return float(kl_divergences(held_out_logits, slim_logits, targets).cpu().double().mean())
    total = torch.zeros((), dtype=torch.float64)
    for clips in _share(work.accelerator, work.held_out).split(work.options.batch_size):
        if len(clips):
            dense, slim = (_logits_of(work, model, clips) for model in (work.teacher, work.student))
            total += kl_divergences(dense, slim, work.targets[clips]).cpu().double().sum()
    total = work.accelerator.reduce(total.to(work.accelerator.device), "sum")
    return float(total) / positions(targets)


def _copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def _restore_moments(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    states = {number: {moment: tensors[moment][name] for moment in MOMENTS} for number, name in enumerate(trained)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _write_state(
    path: Path,
    identity: str,
    done: Distilled,
    trained: Mapping[str, nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write what a later run needs, whole or not at all: of a finished training its best state alone."""
    tensors = {f"best/{name}": value for name, value in best.items()}
    if not done.stopped:
        for name, parameter in trained.items():
            tensors[f"trained/{name}"] = parameter.detach()
            tensors |= {f"{moment}/{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    description = {"schema": STATE_SCHEMA, "identity": identity, "done": dataclasses.asdict(done)}
    with replaced_file(path) as part:
        try:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                part,
                metadata={METADATA_KEY: json.dumps(description, sort_keys=True)},
            )
        except SafetensorError as error:  # it has no errno of its own: a full disk, most often
            raise OSError(0, str(error), str(path)) from None


def _read_state(
    path: Path | None, identity: str, expected: Mapping[str, torch.Tensor], device: torch.device
) -> tuple[Distilled, dict[str, dict[str, torch.Tensor]]] | None:
    """What was done and the tensors by kind and name, or None where there is no whole state of these inputs."""
    if path is None or not path.is_file():
        return None
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as stream:
            description = json.loads((stream.metadata() or {}).get(METADATA_KEY, "{}"))
            if (description.get("schema"), description.get("identity")) != (STATE_SCHEMA, identity):
                return None
            for key in stream.keys():  # noqa: SIM118 - not a dict, it has no iterator
                kind, name = key.split("/", 1)
                # torch keeps AdamW's step on the CPU
                tensors.setdefault(kind, {})[name] = stream.get_tensor(key).to("cpu" if kind == "step" else device)
    except (SafetensorError, json.JSONDecodeError):
        return None  # damaged: the training is done again
    done = _distilled(description["done"])
    kinds = {"best"} if done.stopped else {"best", "trained", *MOMENTS}
    whole = tensors.keys() == kinds and all(tensors[kind].keys() == expected.keys() for kind in kinds)
    if not whole or any(tensors["best"][name].shape != value.shape for name, value in expected.items()):
        return None
    return done, tensors


def _distilled(value: Mapping[str, Any]) -> Distilled:
    return Distilled(
        updates=value["updates"],
        training_losses=tuple(value["training_losses"]),
        held_out_kls=tuple(value["held_out_kls"]),
        best_epoch=value["best_epoch"],
        stopped=value["stopped"],
    )


def _check_same_state(accelerator: Any, kept: tuple[Distilled, Any] | None, path: Path | None) -> None:
    """Processes that go on after different epochs would wait for each other for ever."""
    epochs = -1 if kept is None else len(kept[0].training_losses)
    found = accelerator.gather(torch.tensor([epochs], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise BadInput(f"{path}: the processes do not see the same state; its folder must be on a disk that they share")
