"""One engine of `real_whisper` in a process of its own: converts its model, loads it, hears one clip after another.

It runs in the engine's environment, of which it needs numpy and the engine. Waveforms are files of float32 at 16 kHz,
of English. Every engine decodes greedily at temperature 0 without fallback, and asks for timestamps only where a clip
is longer than a window.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.peers.lasting_worker import answer_requests

RATE_HZ, WINDOW_S = 16_000, 30
BATCH = 8
MOST_TOKENS = 440  # of a window, prompt aside
POSITIONS_PER_S = 50
SHORTEST_S, TAIL_S = 10, 2  # of the part of a window that whisper.cpp is given as audio_ctx, as our own windows
LOGS = "/dev/null"


class Ours:
    """leanear's artifact on one of its runtimes; what its encoder and its decoder take is timed apart."""

    def __init__(self, request: dict[str, Any]) -> None:
        from leanear.benchmarks.measure.transcripts import evaluation_options
        from leanear.runtimes.artifact import read_artifact
        from leanear.runtimes.choose import require_runtime
        from leanear.runtimes.sessions import SessionOptions
        from leanear.runtimes.speech.long_audio import transcribe
        from leanear.runtimes.speech.speech_model import read_speech_model
        from leanear.runtimes.speech.transcript import Tally

        artifact = read_artifact(Path(request["model"]))
        options = SessionOptions(threads=request["threads"], precision=request["precision"])
        self._session = TimedSession(require_runtime(request["library"], options).load(artifact, options))
        self._model = read_speech_model(artifact, request["how"])
        self._options, self._transcribe, self._tally = evaluation_options, transcribe, Tally
        self.version = str(self._session.facts()["version"])

    def hear(self, waveform: np.ndarray) -> dict[str, Any]:
        tally, session = self._tally(), self._session
        session.encode_s = session.step_s = 0.0
        options = replace(self._options(len(waveform) / RATE_HZ, WINDOW_S), language="en")
        segments = list(self._transcribe(session, self._model, waveform, options, tally))
        return {
            "text": "".join(segment.text for segment in segments),
            "encode_s": session.encode_s,
            "step_s": session.step_s,
            "short": tally.short,
            "second_tries": tally.heard_again,
        }


class TimedSession:
    """A session whose encoding and steps are timed."""

    def __init__(self, session: Any) -> None:
        self._session, self.encode_s, self.step_s = session, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def encode(self, waveform: np.ndarray, window: int | None = None) -> None:
        begin = time.perf_counter()
        self._session.encode(waveform, window)
        self.encode_s += time.perf_counter() - begin

    def encode_several(self, waveforms: list[np.ndarray], window: int | None = None) -> None:
        begin = time.perf_counter()
        self._session.encode_several(waveforms, window)
        self.encode_s += time.perf_counter() - begin

    def step(self, tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
        begin = time.perf_counter()
        logits = self._session.step(tokens, parents)
        self.step_s += time.perf_counter() - begin
        return logits


class FasterWhisper:
    def __init__(self, request: dict[str, Any]) -> None:
        import ctranslate2
        import faster_whisper

        self._model = faster_whisper.WhisperModel(
            request["model"], device="cpu", compute_type=request["precision"], cpu_threads=request["threads"]
        )
        self._batched = faster_whisper.BatchedInferencePipeline(self._model) if request["how"] == "batched" else None
        self.version = f"{faster_whisper.__version__}, CTranslate2 {ctranslate2.__version__}"

    def hear(self, waveform: np.ndarray) -> dict[str, Any]:
        asked = {
            "language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False,
            "compression_ratio_threshold": None, "log_prob_threshold": None, "no_speech_threshold": None,
            "without_timestamps": self._batched is not None or len(waveform) <= WINDOW_S * RATE_HZ,
        }  # fmt: skip
        if self._batched is not None:
            segments, _ = self._batched.transcribe(waveform, batch_size=BATCH, **asked)
        else:
            segments, _ = self._model.transcribe(waveform, **asked)
        return {"text": "".join(segment.text for segment in segments)}


class WhisperCpp:
    def __init__(self, request: dict[str, Any]) -> None:
        import pywhispercpp.model

        self._model = pywhispercpp.model.Model(
            request["model"], n_threads=request["threads"], language="en", greedy={"best_of": 1}, temperature_inc=0.0,
            no_context=True, suppress_nst=True, print_progress=False, redirect_whispercpp_logs_to=LOGS,
        )  # fmt: skip
        self._shortens = request["how"] == "audio_ctx"
        self.version = f"pywhispercpp {pywhispercpp.model.__version__}"

    def hear(self, waveform: np.ndarray) -> dict[str, Any]:
        fits = len(waveform) <= WINDOW_S * RATE_HZ
        seconds = max(SHORTEST_S, math.ceil(len(waveform) / RATE_HZ + TAIL_S))
        positions = seconds * POSITIONS_PER_S if self._shortens and seconds < WINDOW_S else 0
        segments = self._model.transcribe(waveform, audio_ctx=positions, no_timestamps=fits, single_segment=fits)
        return {"text": " ".join(segment.text for segment in segments)}


class OpenVinoGenAi:
    def __init__(self, request: dict[str, Any]) -> None:
        import openvino_genai

        precision = "bf16" if request["precision"].endswith("bf16") else "f32"  # its own choice is bf16 where there is
        self._pipeline = openvino_genai.WhisperPipeline(
            request["model"], "CPU", INFERENCE_NUM_THREADS=request["threads"], INFERENCE_PRECISION_HINT=precision
        )
        many = self._pipeline.get_generation_config().is_multilingual
        self._language = {"language": "<|en|>", "task": "transcribe"} if many else {}
        self.version = openvino_genai.__version__

    def hear(self, waveform: np.ndarray) -> dict[str, Any]:
        long = len(waveform) > WINDOW_S * RATE_HZ
        settings = self._language if long else {**self._language, "max_new_tokens": MOST_TOKENS}
        result = self._pipeline.generate(waveform, return_timestamps=long, **settings)
        parts = result.perf_metrics.whisper_raw_metrics
        encoded = sum(parts.features_extraction_durations) + sum(parts.encode_inference_durations)
        return {
            "text": result.texts[0],
            "encode_s": 1e-6 * encoded,
            "step_s": 1e-6 * sum(parts.decode_inference_durations),
        }


ENGINES = {
    "onnxruntime": Ours,
    "openvino": Ours,
    "faster-whisper": FasterWhisper,
    "whisper.cpp": WhisperCpp,
    "openvino-genai": OpenVinoGenAi,
}


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """CTranslate2's model of `checkpoint` in the folder `out`."""
    from ctranslate2.converters import TransformersConverter

    readable = _older_checkpoint(Path(request["checkpoint"]), Path(request["out"] + ".part"))
    files = ["tokenizer.json", "preprocessor_config.json"]
    converter = TransformersConverter(str(readable), copy_files=files)
    converter.convert(request["out"], quantization=request["precision"])
    shutil.rmtree(readable)
    return {}


def _older_checkpoint(checkpoint: Path, out: Path) -> Path:
    """A copy as transformers 4 reads it: the same weights, a tokeniser's configuration without newer settings."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != "tokenizer_config.json":
            shutil.copyfile(path, out / path.name)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return out


class Worker:
    """The one engine of this process."""

    def __init__(self) -> None:
        self.engine: Any = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds until the engine is there, the import of its libraries included, and its version."""
        begin = time.perf_counter()
        self.engine = ENGINES[request["library"]](request)
        seconds = time.perf_counter() - begin
        return {"load_s": seconds, "version": self.engine.version, "python": platform.python_version()}

    def hear(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the engine hears in some files, one after another, and the seconds of the clock and of all threads."""
        heard = []
        for path in request["clips"]:
            waveform = np.load(path, allow_pickle=False)
            begin, cpu = time.perf_counter(), time.process_time()
            answer = self.engine.hear(waveform)
            spent = {"seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}
            heard.append({**answer, **spent})
        return {"heard": heard, "peak_bytes": status_bytes("VmHWM")}


def status_bytes(field: str) -> int:
    """Bytes of this process by /proc: VmRSS, in memory now; VmHWM, the most that ever were."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status: it has no line {field}")


if __name__ == "__main__":
    worker = Worker()
    answer_requests({"convert": convert, "load": worker.load, "hear": worker.hear})
