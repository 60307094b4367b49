"""Times our Whisper against the same weights in CTranslate2 (faster-whisper's engine) and in optimum's pipeline.

    python -m leanear.benchmarks.peers.whisper_speed                    speed, on a machine that does nothing else
    python -m leanear.benchmarks.peers.whisper_speed --memory           and 30 minutes of audio through ours

One window of 30 s, greedy, a set number of tokens (the end token and timestamps are forbidden to everyone), batch 1.
Weights are random and of Whisper-tiny's size. The peers live in an environment of their own (.venv-whisper beside this
file, from requirements-whisper.txt), which the command builds if it is not there. Each engine has its own process.
The processes take turns, a request at a time after a rest, so that nobody's idle threads are in somebody else's time.
The front end counts for everyone: transformers' extractor for the peers, part of the encoder's graph for ours. Slim
models are ours alone, against the peers' dense ones: their heads have different widths, which no peer can load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from leanear.benchmarks.peers.lasting_worker import ROOT, LastingWorker, WorkerFailed
from leanear.benchmarks.peers.whisper_results import (
    Turn,
    agreement,
    bytes_per_token,
    compare,
    encoder_operations,
    growth_bytes,
    others_share,
    show_floor,
    show_memory,
    show_ratios,
    show_speed,
)
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.files import write_json

ENVIRONMENT = Path(__file__).with_name(".venv-whisper")
REQUIREMENTS = Path(__file__).with_name("requirements-whisper.txt")
SHARED = ROOT.parent / "shared" / "data"
SCHEMA = "leanear-peers-whisper-1"
WORKER = "leanear.benchmarks.peers.whisper_worker"
RATE_HZ, WINDOW_S = 16000, 30
REST_S = 0.3  # until the threads of the engine before have stopped waiting for more work
LEAST_KEPT, MOST_KEPT, STEP = 8, 56, 4  # of a head's 64 channels, in the pruned model
MEMORY_MARGIN_BYTES = 150e6
LONG_AUDIO_S = 1800.0


@dataclass(frozen=True)
class Engine:
    """Who transcribes: an engine of the worker, a precision, and which model of the run it is given."""

    name: str
    engine: str
    precision: str
    model: str = "dense"  # dense or slim
    ours: bool = True

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, so that its tokens are those of the others that do."""
        return self.precision in ("fp32", "float32")

    @property
    def form(self) -> str:
        return f"{self.model}-{self.engine}-{self.precision}"


ENGINES = (
    Engine("ours fp32", "onnxruntime", "fp32"),
    Engine("ours int8", "onnxruntime", "int8"),
    Engine("ours OpenVINO fp32", "openvino", "fp32"),
    Engine("CTranslate2 float32", "ctranslate2", "float32", ours=False),
    Engine("CTranslate2 int8_float32", "ctranslate2", "int8_float32", ours=False),
    Engine("optimum fp32", "optimum", "fp32", ours=False),
    Engine("transformers fp32", "transformers", "fp32", ours=False),
    Engine("ours fp32, 50 % pruned", "onnxruntime", "fp32", "slim"),
    Engine("ours int8, 50 % pruned", "onnxruntime", "int8", "slim"),
    Engine("ours OpenVINO fp32, 50 % pruned", "openvino", "fp32", "slim"),
)


def build_environment(environment: Path = ENVIRONMENT, requirements: Path = REQUIREMENTS) -> Path:
    """The peers' python, in an environment of its own that is built if it is not there."""
    python = environment / "bin" / "python"
    ready = environment / ".ready"  # an installation that was interrupted is not ready
    wanted = requirements.read_text(encoding="utf-8")
    if not (ready.exists() and ready.read_text(encoding="utf-8") == wanted):
        print(f"setting up {environment} (a few minutes, once)", flush=True)
        subprocess.run([sys.executable, "-I", "-m", "venv", str(environment)], check=True)
        pip = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python


def clip() -> tuple[np.ndarray, str]:
    """Mono speech at 16 kHz and what it is: a recording where there is one, else made up."""
    from leanear.data.audio import read_waveform
    from leanear.deploy.exporting import made_up_sounds

    path = SHARED / "jfk.flac"
    if path.is_file():
        return read_waveform(path, RATE_HZ), path.name
    return np.concatenate(made_up_sounds(RATE_HZ, 0)), "made-up sounds"


def window_of(waveform: np.ndarray) -> np.ndarray:
    """One window, filled up with silence."""
    window = np.zeros(RATE_HZ * WINDOW_S, dtype=np.float32)
    window[: min(len(waveform), len(window))] = waveform[: len(window)]
    return window


def write_dense(folder: Path) -> None:
    """The checkpoint of Whisper-tiny's size with random weights, in which nothing but text can be said."""
    from transformers import WhisperFeatureExtractor

    from leanear.benchmarks.peers import whisper_tiny_size as tiny

    model = tiny.tiny_size_model()
    settings = model.generation_config
    timestamps = range(tiny.NO_TIMESTAMPS + 1, tiny.VOCABULARY)
    settings.suppress_tokens = sorted({*settings.suppress_tokens, tiny.END, *timestamps})
    settings.forced_decoder_ids = None  # an older way to say the prompt
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_S).save_pretrained(folder)
    tiny.tiny_size_tokenizer(SHARED / "whisper-multilingual.tiktoken").save_pretrained(folder)


def half_pruned(checkpoint: Any, seed: int = 0) -> Any:
    """The checkpoint with half of all heads' channels, every head's widths drawn at random as pruning makes them."""
    from leanear.families import whisper

    generator = np.random.default_rng(seed)
    plan = whisper.dense_plan(checkpoint.model)
    sites = []
    for site in plan.sites:
        widths = [ragged_widths(generator, len(site.heads)) for _ in range(2)]
        heads = tuple(
            replace(head, query_key=tuple(range(query_key)), value_output=tuple(range(value_output)))
            for head, query_key, value_output in zip(site.heads, *widths, strict=True)
        )
        sites.append(replace(site, heads=heads))
    return replace(checkpoint, model=whisper.slim_model(checkpoint.model, tuple(sites)))


def ragged_widths(generator: np.random.Generator, heads: int) -> list[int]:
    """Widths from LEAST_KEPT to MOST_KEPT that are multiples of STEP and whose mean is in the middle."""
    low, high, middle = LEAST_KEPT // STEP, MOST_KEPT // STEP, (LEAST_KEPT + MOST_KEPT) // (2 * STEP)
    steps = generator.integers(low, high + 1, heads)
    while steps.sum() != middle * heads:
        head, change = generator.integers(heads), 1 if steps.sum() < middle * heads else -1
        steps[head] = min(max(steps[head] + change, low), high)
    return [int(step) * STEP for step in steps]


class Run:
    """The folder, models and processes of one run of the command."""

    def __init__(self, python: Path, folder: Path, threads: int, tokens: int, engines: tuple[Engine, ...]) -> None:
        self.python, self.folder, self.threads, self.tokens = python, folder, threads, tokens
        self.engines = engines
        self.failures: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.models: dict[str, Path] = {}
        self.workers: dict[str, LastingWorker] = {}

    def fail(self, engine: Engine, reason: object) -> None:
        """Leave an engine out from here on, in one line."""
        self.failures[engine.name] = str(reason)
        print(f"{engine.name}: {reason}", file=sys.stderr, flush=True)
        if engine.name in self.workers:
            self.workers.pop(engine.name).close()

    def worker(self, engine: Engine) -> LastingWorker:
        environment = {
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        return LastingWorker(Path(sys.executable) if engine.ours else self.python, WORKER, environment)

    def prepare(self, waveform: np.ndarray) -> None:
        """Write the window and every engine's model."""
        from leanear.benchmarks.peers.whisper_worker import peers_checkpoint
        from leanear.families import whisper

        np.save(self.folder / "window.npy", window_of(waveform))
        np.save(self.folder / "clip.npy", waveform)
        write_dense(self.folder / "dense")
        dense = whisper.load_checkpoint(self.folder / "dense")
        checkpoints = {"dense": dense, "slim": half_pruned(dense)}
        self.config = json.loads((self.folder / "dense" / "config.json").read_text(encoding="utf-8"))
        self.prompt = whisper.prompt_tokens(dense.tokenizer, "en")
        self.end = dense.model.generation_config.eos_token_id
        peers_folder = peers_checkpoint(self.folder / "dense", self.folder / "peers")
        for engine in self.engines:
            print(f"preparing {engine.name}", flush=True)
            out = self.folder / engine.form
            try:
                if engine.ours:
                    export_ours(checkpoints[engine.model], engine, waveform, out)
                elif engine.engine == "transformers":
                    out = peers_folder
                else:
                    self._convert(engine, peers_folder, out)
            except (LeanearError, WorkerFailed) as error:
                self.fail(engine, error)
            else:
                self.models[engine.name] = out

    def _convert(self, engine: Engine, checkpoint: Path, out: Path) -> None:
        request = {"do": "convert", "engine": engine.engine, "precision": engine.precision}
        worker = self.worker(engine)
        try:
            worker.ask({**request, "checkpoint": str(checkpoint), "out": str(out)})
        finally:
            worker.close()

    def load(self, engine: Engine) -> LastingWorker:
        """A process in which the engine is ready."""
        worker = self.worker(engine)
        request = {
            "do": "load",
            "engine": engine.engine,
            "precision": engine.precision,
            "model": str(self.models[engine.name]),
            "checkpoint": str(self.folder / "peers"),
            "threads": self.threads,
            "prompt": self.prompt,
            "end": self.end,
            "language": "en",
            "waveform": str(self.folder / "window.npy"),
        }
        try:
            self.facts[engine.name] = worker.ask(request)["facts"]
        except WorkerFailed:
            worker.close()
            raise
        return worker

    def running(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.name in self.workers]

    def start(self) -> dict[str, list[int]]:
        """Start and warm up every engine; the tokens of each."""
        tokens = {}
        for engine in self.engines:
            if engine.name not in self.models:
                continue
            try:
                self.workers[engine.name] = self.load(engine)
                tokens[engine.name] = self.workers[engine.name].ask(self.request())["tokens"]
            except WorkerFailed as error:
                self.fail(engine, error)
        return tokens

    def request(self) -> dict[str, Any]:
        return {"do": "transcribe", "tokens": self.tokens}

    def rounds(self, count: int) -> dict[str, list[Turn]]:
        """The turns of every engine that lasted to the end; who begins alternates."""
        turns: dict[str, list[Turn]] = {engine.name: [] for engine in self.running()}
        for number in range(count):
            print(f"round {number + 1} of {count}", flush=True)
            engines = self.running()
            for engine in engines if number % 2 == 0 else engines[::-1]:
                worker = self.workers[engine.name]
                try:
                    time.sleep(REST_S)
                    encoded = worker.ask({"do": "encode"})
                    time.sleep(REST_S)
                    whole = worker.ask(self.request())
                except WorkerFailed as error:
                    self.fail(engine, error)
                    continue
                turn = Turn(
                    total_s=whole["total_s"],
                    encode_s=encoded["total_s"],
                    front_end_s=whole.get("front_end_s"),
                    others_share=max(whole["others_share"], encoded["others_share"]),
                    cpu_s=whole["cpu_s"],
                )
                turns[engine.name].append(turn)
        return {name: found for name, found in turns.items() if len(found) == count}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


def export_ours(checkpoint: Any, engine: Engine, waveform: np.ndarray, out: Path) -> None:
    """Our artifact of a checkpoint in the form of a runtime."""
    from leanear.export.artifact import export_artifact
    from leanear.export.whisper_artifact import Speech
    from leanear.families import whisper

    decoding = whisper.decoding_settings(checkpoint)
    speech = Speech(whisper.vocabulary_tokens(checkpoint), decoding["end"], decoding)
    export_artifact(
        checkpoint.model,
        checkpoint.feature_extractor,
        [waveform[: RATE_HZ * WINDOW_S]],
        out,
        form=engine.engine,
        source={"source": "random weights"},
        made_from={},
        speech=speech,
        precision=engine.precision,
    )


def check_tokens(run: Run, tokens: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    """How many tokens every engine shares with the first exact one of its model, and whether it must share them all."""
    found = {}
    for model in ("dense", "slim"):
        engines = [engine for engine in run.engines if engine.model == model and engine.name in tokens]
        judge = next((engine for engine in engines if engine.exact and not engine.ours), None)
        judge = judge or next((engine for engine in engines if engine.exact), None)
        for engine in engines if judge else []:
            assert judge is not None
            same = agreement(tokens[engine.name], tokens[judge.name])
            found[engine.name] = {"same_tokens": same, "as": judge.name, "must": engine.exact, "of": run.tokens}
    return found


def measure_floor(run: Run) -> dict[str, Any]:
    """The least time of a step and of the encoder on this machine in float32, from measured speeds."""
    needed = bytes_per_token(run.config, run.tokens)
    worker = LastingWorker(Path(sys.executable), WORKER, {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
    total = sum(needed.values())
    try:
        reading = worker.ask({"do": "reading", "threads": run.threads, "bytes": total})
        multiplying = worker.ask({"do": "multiplying", "threads": run.threads})
    finally:
        worker.close()
    operations = encoder_operations(run.config)
    return {
        "bytes_per_token": needed,
        "reading_gb_per_s": reading,
        "token_ms": 1e3 * total / 1e9 / reading["best"],
        "encoder_gflop": operations / 1e9,
        "multiplying_gflop_per_s": multiplying,
        "encoder_ms": 1e3 * operations / 1e9 / multiplying["best"],
    }


def measure_memory(run: Run, seconds: float) -> dict[str, dict[str, Any]]:
    """Peak and growth of a process that does nothing but transcribe, for each of ours, one after the other."""
    found = {}
    for engine in run.engines:
        if not engine.ours or engine.name not in run.models:
            continue
        print(f"memory of {engine.name}", flush=True)
        manifest = json.loads((run.models[engine.name] / "manifest.json").read_text(encoding="utf-8"))
        graph_bytes = sum(graph["bytes"] for graph in manifest["graphs"].values())
        weight_bytes = manifest["model"]["checkpoint_bytes"] if engine.exact else graph_bytes
        try:
            worker = run.load(engine)
            try:
                answer = worker.ask({"do": "memory", "tokens": run.tokens, "seconds": seconds}, limit_s=7200)
            finally:
                worker.close()
        except WorkerFailed as error:
            run.fail(engine, error)
            continue
        answer["weight_bytes"], answer["audio_s"] = weight_bytes, seconds
        answer["limit_bytes"] = weight_bytes + MEMORY_MARGIN_BYTES
        answer["growth_bytes"] = growth_bytes(answer["resident_bytes"])
        found[engine.name] = answer
    return found


def machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "load_before": os.getloadavg()[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", help="part of an engine's name; may be repeated")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--audio", type=float, default=LONG_AUDIO_S, help="seconds of audio for --memory")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    options = parser.parse_args()
    if options.rounds < 0 or options.tokens < 1 or options.threads < 1:
        parser.error("rounds, tokens and threads: whole numbers that make sense")
    if not (SHARED / "whisper-multilingual.tiktoken").is_file():
        parser.error(f"{SHARED / 'whisper-multilingual.tiktoken'}: no such file; the checkpoint needs the vocabulary")
    engines = tuple(
        engine for engine in ENGINES if not options.only or any(part in engine.name for part in options.only)
    )
    python = build_environment()
    console = Console(width=170)
    waveform, sound = clip()
    conditions = {
        **machine(), "threads": options.threads, "tokens": options.tokens, "rounds": options.rounds, "sound": sound,
        "window_s": WINDOW_S,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="leanear-peers-") as name:
        run = Run(python, Path(name), options.threads, options.tokens, engines)
        run.prepare(waveform)
        floor = measure_floor(run)
        try:
            tokens = run.start()
            same = check_tokens(run, tokens)
            turns = run.rounds(options.rounds) if options.rounds else {}
        finally:
            run.close()
        memory = measure_memory(run, options.audio) if options.memory else {}
    said = f"{WINDOW_S} s window ({sound}), {options.tokens} tokens, greedy"
    console.print(f"{conditions['cpu']}, {options.threads} threads; {said}")
    rows = compare(turns)
    if turns:
        console.print(f"other programs used {others_share(turns):.0%} of all cores in the median turn")
        show_speed(console, turns, same, options.tokens)
        show_ratios(console, rows)
    show_floor(console, floor)
    if memory:
        show_memory(console, memory)
    for engine, reason in run.failures.items():
        console.print(f"not measured: {engine}: {reason}", markup=False)
    wrong = [name for name, found in same.items() if found["must"] and found["same_tokens"] != found["of"]]
    for name in wrong:
        console.print(f"{name}: other tokens than {same[name]['as']} from {same[name]['same_tokens']} on")
    if options.json:
        turns_json = {name: [vars(turn) for turn in found] for name, found in turns.items()}
        write_json(
            options.json,
            {
                "schema": SCHEMA, "conditions": conditions, "facts": run.facts, "turns": turns_json, "tokens": same,
                "ratios": rows, "floor": floor, "memory": memory, "not_measured": run.failures,
            },
        )  # fmt: skip
    return 1 if wrong or run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
