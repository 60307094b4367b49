"""The public face: a model, what is made of it, and what runs and measures that."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leanear.benchmarks.sensors.device import usable_cores
from leanear.parameter_names import in_python
from leanear.runtimes.artifact import Artifact as Files
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.audio.formats import beyond_full_scale
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_folder
from leanear.runtimes.process.notes import LOGGER, note
from leanear.runtimes.sessions import SessionOptions, own_precision

if TYPE_CHECKING:
    from leanear.benchmarks.results import Results
    from leanear.plan import Plan, Prune
    from leanear.prune.document import PruningDocument
    from leanear.runtimes.speech.transcript import Segment

    PathLike = str | os.PathLike[str]
Recovery = Literal["full", "lora"]


@in_python
def load(model: PathLike, *, task: str | None = None, language: str | None = None, progress: bool = False) -> Model:
    """A trained model: a checkpoint folder, a Hub id, "demo-ast" or "demo-whisper".

    Args:
        task, language: of a Whisper, what it does by itself from now on ("transcribe" or "translate"; a code such as
            "en", or "auto").
        progress: say on standard error what goes on.

    Raises:
        BadInput: there is no such model, its family is not one of leanear's, or it has not this task or language.
    """
    from leanear.cli.early import check_early
    from leanear.families.asked import Asked
    from leanear.families.checkpoint import checkpoint_folder
    from leanear.families.registry import task_of

    folder, asked = checkpoint_folder(os.fspath(model)), Asked(task, language)
    check_early(str(folder), asked)
    return Model(os.fspath(model), folder, task_of(folder), asked, progress)


def open_artifact(folder: PathLike) -> Artifact:
    """An exported artifact, every file of it checked.

    Raises:
        BadInput: the folder is no artifact, or a file in it is not the one that its manifest names.
    """
    return Artifact(read_artifact(Path(folder)))


@dataclass(frozen=True)
class Model:
    """A checkpoint, dense or slim.

    name: as it was asked for; folder: where its files are; task: "audio-classification", "audio-tagging" (several
    labels a clip) or "automatic-speech-recognition".
    """

    name: str
    folder: Path
    task: str
    asked: Any
    progress: bool = False
    _scratch: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def plan(self) -> Plan | None:
        """The widths of every head, dense and kept; None of a model that was never pruned."""
        from leanear.plan import read_plan

        path = self.folder / "plan.json"
        return read_plan(path) if path.is_file() else None

    @property
    def pruning(self) -> PruningDocument | None:
        """pruning.json: what pruning estimated, and what it then measured on held-out calibration clips (`.loss`)."""
        from leanear.prune.document import read_pruning

        return read_pruning(self.folder)

    @in_python
    def prune(  # noqa: PLR0913, an option each
        self,
        data: PathLike | None = None,
        *,
        sparsity: float | None = None,
        macs: float | None = None,
        latency_ms: float | None = None,
        speedup: float | None = None,
        rtf: float | None = None,
        max_drop: float | None = None,
        target: str = "cpu",
        prune: Prune = "attention",
        recovery: Recovery | None = None,
        recipe: PathLike | None = None,
        calibration_clips: int = 256,
        seed: int = 0,
        out: PathLike | None = None,
    ) -> Model:
        """The slim model, its loss measured; the arguments are options of `leanear prune`, by their names.

        It takes minutes, of which `load(..., progress=True)` tells. A plan that does damage is warned of in any case,
        by the logger "leanear", which writes to standard error where no handler is set.

        Args:
            data: folder of audio with labels or texts; None: the demo's own clips.
            recipe: a recipe file (docs/recipe.md).
            out: where the checkpoint is written; None: a folder that goes when the model is forgotten (see `save`).

        Raises:
            LeanearError: the data is not usable, the goal is out of reach, or `out` holds something else.
        """
        from leanear.cli.job import prune_job
        from leanear.prune.notes import loss_warning
        from leanear.prune.pruning import prune_checkpoint
        from leanear.prune.recipe import Recipe, read_recipe

        read = Recipe() if recipe is None else read_recipe(Path(recipe))
        flags = {
            "sparsity": sparsity, "macs": macs, "latency_ms": latency_ms, "speedup": speedup, "rtf": rtf,
            "max_drop": max_drop, "recipe": read, "prune": prune, "recovery": recovery or "none",
            "calibration_clips": calibration_clips, "seed": seed, "asked": self.asked,
            **dict.fromkeys(("precision", "clip_seconds", "tokens", "window")),
        }  # fmt: skip
        job = prune_job(self.name, target, flags, ships=False)
        scratch = tempfile.TemporaryDirectory(prefix="leanear-") if out is None else None
        folder = Path(scratch.name) / "slim" if scratch is not None else Path(os.fspath(out))  # type: ignore[arg-type]
        told = prune_checkpoint(self.name, data=_data(data), job=job, out=folder, narrator=_narrator(self.progress))
        if warning := loss_warning(told["pruning"]):
            LOGGER.warning("WARNING: %s", warning)
        return Model(str(folder), folder, self.task, self.asked, self.progress, scratch)

    def save(self, out: PathLike) -> Model:
        """A copy of the checkpoint in the new folder `out`.

        Raises:
            BadInput: there is something at `out`.
        """
        if Path(out).exists():
            raise BadInput(f"{os.fspath(out)}: there is something there already")
        with replaced_folder(Path(out)) as fresh:
            shutil.copytree(self.folder, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(fresh.name))
        return Model(os.fspath(out), Path(out), self.task, self.asked, self.progress)

    def evaluate(self, data: PathLike | None = None, *, seed: int = 0) -> dict[str, Any]:
        """Accuracy, mAP or word error rate in torch on evaluation clips of `data`, by the keys of `leanear eval`."""
        return _evaluated(self.name, data, "onnxruntime", None, usable_cores(), seed, self.asked, self.progress)

    @in_python
    def export(
        self,
        out: PathLike,
        *,
        target: str = "cpu",
        precision: str | None = None,
        window: str | None = None,
        word_timestamps: bool = False,
        data: PathLike | None = None,
        seed: int = 0,
    ) -> Artifact:
        """The artifact in the folder `out`, in the form and the precision of a target, proved to compute the same.

        Args:
            precision: "fp32", "fp16" or "int8" (which takes its ranges from `data`); None: the target's own.
            window: of a Whisper, "full", "auto" or seconds.
            word_timestamps: of a Whisper, its sessions can be asked for them.

        Raises:
            LeanearError: the graph is not equivalent; `out` is left as it was.
        """
        from leanear.deploy.exporting import export_checkpoint
        from leanear.runtimes.choose import graph_precision
        from leanear.targets.target import read_target, with_precision

        device = with_precision(read_target(target), precision)
        export_checkpoint(
            self.name, out=Path(out), form=device.graph_form, data=_data(data), seed=seed, asked=self.asked,
            precision=graph_precision(device.precision), window=window, word_timestamps=word_timestamps,
            narrator=_narrator(self.progress),
        )  # fmt: skip
        return Artifact(read_artifact(Path(out)), device.runtime, device.precision, self.progress)


@dataclass(frozen=True)
class Artifact:
    """Graphs and all that runs them, in one folder.

    runtime, precision: what it is opened with where nothing else is asked for; None: ONNX Runtime, or OpenVINO for
    graphs of its form, and what the graphs are of.
    """

    files: Files
    runtime: str | None = None
    precision: str | None = None
    progress: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.files.folder

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in the order of its logits."""
        return self.files.labels

    @property
    def sample_rate_hz(self) -> int:
        """Of the waveforms that it takes."""
        return self.files.sample_rate_hz

    def open(self, *, runtime: str | None = None, precision: str | None = None, threads: int | None = None) -> Session:
        """A session that is ready to run.

        Raises:
            LeanearError: the runtime is not installed here, or does not run this artifact.
        """
        chosen, options = self._options(runtime, precision, threads)
        return Session(self.files, require_runtime(chosen, options).load(self.files, options))

    def evaluate(
        self,
        data: PathLike | None = None,
        *,
        runtime: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Accuracy, mAP or word error rate on the evaluation clips of `data`, by the keys of `leanear eval`."""
        from leanear.families.asked import Asked

        chosen, own = self._options(runtime, precision, threads)
        return _evaluated(str(self.folder), data, chosen, own.precision, own.threads, seed, Asked(), self.progress)

    def bench(
        self,
        data: PathLike | None = None,
        *,
        against: Artifact | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        budget_s: float = 40.0,
        out: PathLike | None = None,
        seed: int = 0,
    ) -> Measured:
        """Latency, memory and, with `data`, accuracy or word errors, measured here in fresh processes.

        Args:
            against: another artifact (the dense one), measured in turn with this one.
            budget_s: seconds for latency samples.
            out: the results file; None: none is kept.
        """
        from leanear.deploy.benching import bench_artifacts

        chosen, options = self._options(runtime, precision, threads)
        with tempfile.TemporaryDirectory(prefix="leanear-") as scratch:
            path = Path(scratch) / "results.json" if out is None else Path(out)
            results = bench_artifacts(
                self.folder, against=None if against is None else against.folder, runtime=chosen,
                precision=options.precision, threads=options.threads, budget_s=budget_s, data=_data(data), out=path,
                seed=seed, command=("leanear", "bench", str(self.folder)), narrator=_narrator(self.progress),
            )  # fmt: skip
        return Measured(results)

    def _options(self, runtime: str | None, precision: str | None, threads: int | None) -> tuple[str, SessionOptions]:
        chosen = runtime or self.runtime or ("openvino" if "openvino" in self.files.forms else "onnxruntime")
        computed = precision or (self.precision if chosen == self.runtime else None)
        cores = usable_cores() if threads is None else threads
        return chosen, SessionOptions(cores, computed or own_precision(self.files, chosen))


class Session:
    """A loaded artifact: numpy in, numpy out. Close it, or use it in a `with` block."""

    def __init__(self, files: Files, own: Any) -> None:
        self.files, self._noted = files, False
        self._own: Any = own

    def run(self, waveform: np.ndarray) -> np.ndarray:
        """A classifier's logits, float32 (labels,), of one waveform (samples,): floats within -1 to 1, or int16.

        Raises:
            BadInput: the waveform is of another shape or type, the session is closed, or the model writes down speech
                (see `transcribe`).
        """
        if self.files.is_speech:
            raise BadInput(f"{self.files.folder}: it writes down speech: use transcribe()")
        return np.asarray(self._opened().run(self._heard(waveform)))

    @in_python
    def transcribe(self, waveform: np.ndarray, *, word_timestamps: bool = False, **options: Any) -> list[Segment]:
        """What is said in a waveform of any length, (samples,) at the artifact's rate: floats, or int16 PCM.

        Args:
            word_timestamps: each segment has its `words` with times, for which the artifact has to be made.
            options: task, language, timestamps (True), beam_size, temperatures (a tuple), condition (False), prompt,
                hotwords (a tuple) and the others of `leanear.runtimes.speech.decode_options.DecodeOptions`.

        Raises:
            BadInput: the model classifies or has no word times, the session is closed, or what is given is not usable.
        """
        from leanear.runtimes.speech.decode_options import named_options
        from leanear.runtimes.speech.long_audio import transcribe
        from leanear.runtimes.speech.speech_model import read_speech_model, require_word_times

        if not self.files.is_speech:
            raise BadInput(f"{self.files.folder}: it classifies: use run()")
        own, model, asked = self._opened(), read_speech_model(self.files, None), named_options(options)
        if word_timestamps not in (False, True):
            raise BadInput(f"transcribe: word_timestamps is {word_timestamps!r}, expected true or false")
        if word_timestamps:
            require_word_times(model, self.files.folder)
        return list(transcribe(own, model, self._heard(waveform), asked, words=word_timestamps))

    def close(self) -> None:
        """Release the graphs and their memory, unless that was done."""
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def _opened(self) -> Any:
        if self._own is None:
            raise BadInput(f"{self.files.folder}: this session is closed; open the artifact again")
        return self._own

    def _heard(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform, after a word on the first of the session that is plainly not within -1 to 1."""
        from leanear.runtimes.audio.waveforms import checked_waveform

        heard: np.ndarray = checked_waveform(waveform)[0]
        for finding in () if self._noted else beyond_full_scale(float(np.abs(heard).max())):
            note(f"waveform: {finding}")
            self._noted = True
        return heard

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Measured:
    """Results of one measurement; `results.document` is the whole of the results file."""

    results: Results

    def table(self) -> str:
        """The headline as text, a line per figure, and the verdict."""
        from leanear.benchmarks.report.headline import headline_text

        return headline_text(self.results)


@in_python
def _evaluated(
    name: str,
    data: PathLike | None,
    runtime: str,
    precision: str | None,
    threads: int,
    seed: int,
    asked: Any,
    progress: bool,
) -> dict[str, Any]:
    from leanear.deploy.benching import CALIBRATION_CLIPS
    from leanear.evaluate.evaluation import evaluate

    return evaluate(
        name, data=_data(data), split="evaluation", runtime=runtime, precision=precision,
        threads=threads, calibration_clips=CALIBRATION_CLIPS, seed=seed, asked=asked, narrator=_narrator(progress),
    )  # fmt: skip


def _data(data: PathLike | None) -> str | None:
    return None if data is None else os.fspath(data)


def _narrator(progress: bool) -> Any:
    from leanear.progress import Narrator

    return Narrator("normal" if progress else "quiet")
