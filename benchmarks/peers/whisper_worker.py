"""The engines of `whisper_speed`, one to a process; the same file runs in leanear's environment and in the peers'.

Every engine transcribes one window greedily with an exact number of tokens: the end token is forbidden to all of them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.peers.lasting_worker import answer_requests

TICK_S = 0.01  # in which Linux counts
RATE_HZ = 16000
MEASURE_S = 3.0


class Peer:
    """What the peers share: their features come from transformers' extractor."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        from transformers import WhisperFeatureExtractor

        torch.set_num_threads(request["threads"])
        self.threads, self.prompt, self.end = request["threads"], request["prompt"], request["end"]
        self.language = request["language"]
        self.extractor = WhisperFeatureExtractor.from_pretrained(request["checkpoint"])

    def features(self, waveform: np.ndarray) -> np.ndarray:
        return self.extractor(waveform, sampling_rate=RATE_HZ, return_tensors="np")["input_features"]


class CTranslate2(Peer):
    """faster-whisper's engine."""

    def __init__(self, request: dict[str, Any]) -> None:
        import ctranslate2

        super().__init__(request)
        self.model = ctranslate2.models.Whisper(
            request["model"], "cpu", compute_type=request["precision"], inter_threads=1, intra_threads=self.threads
        )
        self.view = ctranslate2.StorageView.from_array
        self.facts = {"ctranslate2": ctranslate2.__version__, "compute_type": self.model.compute_type}

    def encoder(self, features: np.ndarray) -> None:
        self.model.encode(self.view(features))

    def tokens(self, features: np.ndarray, count: int) -> list[int]:
        result = self.model.generate(
            self.view(features), [self.prompt], beam_size=1, max_length=2 * count, suppress_tokens=[-1, self.end]
        )
        return result[0].sequences_ids[0][:count]


class Transformers(Peer):
    """transformers' own model in torch."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        import transformers

        super().__init__(request)
        self.model = self.open(request)
        self.facts = {"transformers": transformers.__version__, "torch": torch.__version__}

    def open(self, request: dict[str, Any]) -> Any:
        from transformers import WhisperForConditionalGeneration

        return WhisperForConditionalGeneration.from_pretrained(request["model"]).eval()

    def encoder(self, features: np.ndarray) -> None:
        import torch

        with torch.inference_mode():
            self.model.get_encoder()(input_features=torch.from_numpy(features), attention_mask=None)

    def tokens(self, features: np.ndarray, count: int) -> list[int]:
        import torch

        with torch.inference_mode():
            answer = self.model.generate(
                torch.from_numpy(features), language=self.language, task="transcribe", return_timestamps=False,
                num_beams=1, do_sample=False, min_new_tokens=count, max_new_tokens=count,
            )  # fmt: skip
        return answer[0, -count:].tolist()


class Optimum(Transformers):
    """optimum's pipeline over ONNX Runtime, with its own defaults but for the threads."""

    def open(self, request: dict[str, Any]) -> Any:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return ORTModelForSpeechSeq2Seq.from_pretrained(
            request["model"], session_options=options, provider="CPUExecutionProvider"
        )


class PeerTimer:
    """Times a peer's parts."""

    def __init__(self, peer: Any) -> None:
        self.peer, self.facts = peer, peer.facts

    def encode(self, waveform: np.ndarray) -> dict[str, float]:
        start = time.perf_counter()
        features = self.peer.features(waveform)
        ready = time.perf_counter()
        self.peer.encoder(features)
        end = time.perf_counter()
        return {"front_end_s": ready - start, "total_s": end - start}

    def transcribe(self, waveform: np.ndarray, count: int) -> tuple[dict[str, float], list[int]]:
        start = time.perf_counter()
        features = self.peer.features(waveform)
        ready = time.perf_counter()
        tokens = self.peer.tokens(features, count)
        end = time.perf_counter()
        return {"front_end_s": ready - start, "total_s": end - start}, tokens


class Ours:
    """leanear's artifact on one of its runtimes, decoded by its own loop; the front end is in the encoder's graph."""

    def __init__(self, request: dict[str, Any]) -> None:
        from leanear.runtimes.artifact import read_artifact
        from leanear.runtimes.choose import require_runtime
        from leanear.runtimes.sessions import SessionOptions
        from leanear.runtimes.speech.long_audio import read_speech_model

        artifact = read_artifact(Path(request["model"]))
        options = SessionOptions(threads=request["threads"], precision=request["precision"])
        self.session = require_runtime(request["engine"], options).load(artifact, options)
        self.model, self.language = read_speech_model(artifact), request["language"]
        self.facts = self.session.facts()

    def encode(self, waveform: np.ndarray) -> dict[str, float]:
        start = time.perf_counter()
        self.session.encode(waveform)
        return {"total_s": time.perf_counter() - start}

    def transcribe(self, waveform: np.ndarray, count: int) -> tuple[dict[str, float], list[int]]:
        from leanear.runtimes.speech.decoding import decode_window

        options = self.options(count)
        start = time.perf_counter()
        self.session.encode(waveform)
        decoded = decode_window(self.session, self.model.tokens, options, no_speech=False)
        return {"total_s": time.perf_counter() - start}, list(decoded.tokens)

    def options(self, count: int, temperatures: tuple[float, ...] = (0.0,)) -> Any:
        """Greedy, as the peers are: a random model repeats itself, and nothing may stop it."""
        from leanear.runtimes.speech.decoding import DecodeOptions

        return DecodeOptions(
            language=self.language, timestamps=False, temperatures=temperatures, max_tokens=count, stop_repeats=False
        )

    def listen(self, clip: np.ndarray, seconds: float, count: int, fallback: bool) -> list[int]:
        """Resident bytes after each window of `clip` repeated for `seconds`, by the path that long audio takes."""
        from leanear.runtimes.speech.long_audio import transcribe_windows

        options = self.options(count, FALLBACK if fallback else (0.0,))
        windows = transcribe_windows(self.session, self.model, Repeated(clip, round(seconds * RATE_HZ)), options)
        return [status_bytes("VmRSS") for _ in windows]


class Repeated:
    """A clip again and again, up to `samples`, of which no more than a slice is in memory."""

    def __init__(self, clip: np.ndarray, samples: int) -> None:
        self.clip, self.samples = clip, samples

    def __getitem__(self, span: slice) -> np.ndarray:
        return self.clip[np.arange(span.start, min(span.stop, self.samples)) % len(self.clip)]


OURS = ("onnxruntime", "openvino")
PEERS = {"ctranslate2": CTranslate2, "optimum": Optimum, "transformers": Transformers}
FALLBACK = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """A peer's model of `checkpoint` in `out`."""
    checkpoint, out = Path(request["checkpoint"]), Path(request["out"])
    shutil.rmtree(out, ignore_errors=True)
    if request["engine"] == "ctranslate2":
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(checkpoint)).convert(str(out), quantization=request["precision"])
    elif request["engine"] == "optimum":
        from optimum.exporters.onnx import main_export

        main_export(str(checkpoint), out, task="automatic-speech-recognition-with-past", local_files_only=True)
    return {"bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file())}


class Worker:
    """The one engine of this process and its waveform."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.waveform = np.zeros(0, np.float32)

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        self.waveform = np.load(request["waveform"], allow_pickle=False)
        ours = request["engine"] in OURS
        self.engine = Ours(request) if ours else PeerTimer(PEERS[request["engine"]](request))
        return {"facts": {"python": platform.python_version(), "numpy": np.__version__, **self.engine.facts}}

    def encode(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        with Disturbance() as others:
            timing = self.engine.encode(self.waveform)
        return {**timing, "others_share": others.share, "cpu_s": others.own_s}

    def transcribe(self, request: dict[str, Any]) -> dict[str, Any]:
        with Disturbance() as others:
            timing, tokens = self.engine.transcribe(self.waveform, request["tokens"])
        if len(tokens) != request["tokens"]:
            raise ValueError(f"{len(tokens)} tokens instead of {request['tokens']}")
        return {**timing, "others_share": others.share, "cpu_s": others.own_s, "tokens": [int(t) for t in tokens]}

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """Peak and resident bytes of this process: after a window, after long audio, after a window with retries."""
        loaded = status_bytes("VmRSS")
        self.engine.transcribe(self.waveform, request["tokens"])
        first_peak = status_bytes("VmHWM")
        resident = self.engine.listen(self.waveform, request["seconds"], request["tokens"], fallback=False)
        long_peak = status_bytes("VmHWM")
        self.engine.listen(self.waveform, len(self.waveform) / RATE_HZ, request["tokens"], fallback=True)
        return {
            "loaded_bytes": loaded,
            "first_peak_bytes": first_peak,
            "long_peak_bytes": long_peak,
            "fallback_peak_bytes": status_bytes("VmHWM"),
            "resident_bytes": resident,
        }


class Disturbance:
    """How much of all cores others used during a block, and the seconds of a core that this process used."""

    share: float
    own_s: float

    def __enter__(self) -> Disturbance:
        self._begin = (time.perf_counter(), _all_busy_s(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        begin, busy_s, own_s = self._begin
        wall_s = time.perf_counter() - begin
        self.own_s = time.process_time() - own_s
        others_s = _all_busy_s() - busy_s - self.own_s
        self.share = round(max(0.0, others_s - TICK_S) / (wall_s * (os.cpu_count() or 1)), 4)


def _all_busy_s() -> float:
    """Seconds that all cores together were busy since the system started, stolen time included."""
    with open("/proc/stat", encoding="ascii") as stream:
        ticks = [int(field) for field in stream.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) * TICK_S  # all but idle and waiting for a disk


def status_bytes(field: str) -> int:
    """Bytes of this process by /proc: VmRSS, in memory now; VmHWM, the most that ever were."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status: it has no line {field}")


def measure_reading(request: dict[str, Any]) -> dict[str, Any]:
    """GB/s at which `threads` threads read `bytes` of weights again and again, as products of matrices by a vector."""
    threads, width = request["threads"], 384
    rows = request["bytes"] // (4 * width * threads)
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((rows, width), dtype=np.float32) for _ in range(threads)]
    vector, outputs = np.ones(width, np.float32), [np.empty(rows, np.float32) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool, Disturbance() as others:
        deadline = time.perf_counter() + MEASURE_S
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            list(pool.map(lambda part, out: np.dot(part, vector, out=out), parts, outputs))
            seconds.append(time.perf_counter() - start)
    gigabytes = threads * rows * width * 4 / 1e9
    speeds = gigabytes / np.array(seconds)
    return {"median": float(np.median(speeds)), "best": float(speeds.max()), "others_share": others.share}


def measure_multiplying(request: dict[str, Any]) -> dict[str, Any]:
    """GFLOP/s of `threads` threads that multiply matrices of the encoder's sizes."""
    threads, generator = request["threads"], np.random.default_rng(0)
    rows = 1500 // threads
    first = [generator.standard_normal((rows, 384), dtype=np.float32) for _ in range(threads)]
    second = generator.standard_normal((384, 1536), dtype=np.float32)
    outputs = [np.empty((rows, 1536), np.float32) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool, Disturbance() as others:
        deadline = time.perf_counter() + MEASURE_S
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            list(pool.map(lambda part, out: np.dot(part, second, out=out), first, outputs))
            seconds.append(time.perf_counter() - start)
    speeds = 2 * threads * rows * 384 * 1536 / 1e9 / np.array(seconds)
    return {"median": float(np.median(speeds)), "best": float(speeds.max()), "others_share": others.share}


def peers_checkpoint(checkpoint: Path, out: Path) -> Path:
    """A checkpoint as transformers 4 reads it: the same weights, a tokeniser file that has no newer settings."""
    out.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.iterdir():
        if path.name != "tokenizer_config.json":
            shutil.copyfile(path, out / path.name)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return out


if __name__ == "__main__":
    worker = Worker()
    answer_requests(
        {
            "convert": convert,
            "load": worker.load,
            "encode": worker.encode,
            "transcribe": worker.transcribe,
            "memory": worker.memory,
            "reading": measure_reading,
            "multiplying": measure_multiplying,
        }
    )
