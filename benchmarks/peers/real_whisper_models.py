"""What each engine of `real_whisper` needs before it can hear: its environment, and its model of the checkpoint."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanear.benchmarks.peers.environments import build_environment, run
from leanear.benchmarks.peers.ggml import write_ggml
from leanear.benchmarks.peers.lasting_worker import ROOT, LastingWorker
from leanear.data.clips import read_examples_for
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.deploy.exporting import QUANTISER_CLIPS, write_proved_artifact
from leanear.export.options import ExportOptions
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256, load_checkpoint
from leanear.runtimes.files import sha256_file, sha256_json
from leanear.runtimes.tasks import SPEECH_TASK

OURS = ("onnxruntime", "openvino")
WORKER = "leanear.benchmarks.peers.real_whisper_worker"
RATE_HZ = 16_000
TITLES = {"onnxruntime": "leanear, ONNX Runtime", "openvino": "leanear, OpenVINO", "openvino-genai": "OpenVINO GenAI"}


@dataclass(frozen=True)
class Engine:
    """Who hears: a library, its precision, how it is used (a window, batches), and which of the two models it has."""

    library: str
    precision: str
    how: str = ""
    slim: bool = False

    @property
    def ours(self) -> bool:
        return self.library in OURS

    @property
    def name(self) -> str:
        parts = [f"{TITLES.get(self.library, self.library)} {self.precision}", self.how]
        return ", ".join([part for part in parts if part] + (["slim"] if self.slim else []))


def peers() -> list[Engine]:
    """Other people's engines."""
    faster = [Engine("faster-whisper", each, how) for each in ("float32", "int8_float32") for how in ("", "batched")]
    cpp = [Engine("whisper.cpp", form, how) for form in ("f16", "q8_0", "q5_1") for how in ("", "audio_ctx")]
    return [*faster, *cpp, *(Engine("openvino-genai", each) for each in ("fp32", "int8", "int8-bf16"))]


def our_engines(slim: bool) -> list[Engine]:
    """leanear's own, the dense model in both windows and, where there is one, the slim one in short ones."""
    found = []
    for library, precision in [(each, "fp32") for each in OURS] + [(each, "int8") for each in OURS]:
        found += [Engine(library, precision, how) for how in ("full", "auto")]
    found.append(Engine("openvino", "int8-bf16", "auto"))
    return found + [Engine(one.library, one.precision, "auto", True) for one in found if slim and one.how == "auto"]


def sources_sha256(*folders: str) -> str:
    """One hex sha256 over our own code in some of the top folders: what it makes, or measures, is another one then."""
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sha256_json([[str(path.relative_to(ROOT)), sha256_file(path)] for path in files])


class Models:
    """The environments and models under one folder, each made when it is first asked for, whole or not at all."""

    def __init__(self, folder: Path, checkpoint: str, slim: str | None, data: Path) -> None:
        self._folder, self._checkpoint, self._slim, self._data = folder, checkpoint, slim, data
        self._calibration: Any = None

    def python(self, engine: Engine) -> Path:
        """The interpreter that has the engine.

        Raises:
            WorkerFailed: its packages cannot be had here.
        """
        if engine.ours:
            return Path(sys.executable)
        requirements = Path(__file__).with_name(f"requirements-{engine.library.replace('.', '-')}.txt")
        # For pictures; a build for another torch keeps models from loading.
        unwanted = "torchvision" if engine.library == "openvino-genai" else ""
        return build_environment(self._folder / f"environment-{engine.library}", requirements, unwanted)

    def model(self, engine: Engine) -> Path:
        """The engine's model of the checkpoint.

        Raises:
            WorkerFailed: it cannot be made.
            LeanearError: ours cannot, or is not proved.
        """
        weights = engine.precision.removesuffix("-bf16")
        source = self._slim if engine.slim else self._checkpoint
        assert source is not None
        made_of = [checkpoint_sha256(checkpoint_folder(source)), sources_sha256("export") if engine.ours else ""]
        parts = [engine.library, weights, *([engine.how] if engine.ours else []), sha256_json(made_of)[:8]]
        out = self._folder / "-".join(parts)
        if not out.exists():
            print(f"making {out.name}", flush=True)
            part = out.with_name(f"{out.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            self._make(engine, weights, part)
            part.rename(out)
        return out / "model.bin" if engine.library == "whisper.cpp" else out

    def _make(self, engine: Engine, weights: str, out: Path) -> None:
        if engine.ours:
            return self._export(engine, weights, out)
        folder = checkpoint_folder(self._checkpoint)
        if engine.library == "whisper.cpp":
            out.mkdir()
            return write_ggml(folder, out / "model.bin", weights)
        python = self.python(engine)
        if engine.library == "openvino-genai":
            command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(folder)]
            task = ["--task", "automatic-speech-recognition-with-past", "--weight-format", weights]
            return run([*command, *task, str(out)])
        worker = LastingWorker(python, WORKER)
        try:
            worker.ask({"do": "convert", "checkpoint": str(folder), "out": str(out), "precision": weights})
        finally:
            worker.close()

    def _export(self, engine: Engine, weights: str, out: Path) -> None:
        if self._calibration is None:
            splits = read_splits(self._data, QUANTISER_CLIPS, 0, column_for(SPEECH_TASK))
            examples = splits.calibration[:QUANTISER_CLIPS]
            self._calibration = read_examples_for(SPEECH_TASK, examples, (), RATE_HZ).waveforms
        source = self._slim if engine.slim else self._checkpoint
        assert source is not None
        checkpoint = load_checkpoint(checkpoint_folder(source))
        options = ExportOptions(engine.library, {"source": source}, {}, weights, window=engine.how)
        proof = write_proved_artifact(checkpoint, self._calibration, out, options)
        print(proof.sentence, flush=True)
