"""A real Whisper on a CPU, ours and its peers side by side on the same clips: time, word errors, memory, loading.

    python -m leanear.benchmarks.peers.real_whisper CHECKPOINT --data DATA --state DIR [--slim SLIM] [--minutes 5]

Peers are faster-whisper, whisper.cpp (pywhispercpp) and OpenVINO GenAI, each in an environment of its own under DIR,
each with its own model made of CHECKPOINT, a folder in Hugging Face's format. DATA has test/ to judge on, and train/
for the ranges of our 8 bits. Every engine has its own process and hears some clips, one file after another; then the
next one has its turn at the same clips, and who begins moves on. The first round is all clips and counts the words,
by Whisper's own normaliser; further rounds are the first --clips; then all clips joined are heard as one recording.
What was heard is kept in DIR, and a later run goes on from there, unless our own code has changed since; --minutes
stops at the end of a turn, 0 prepares alone. An engine that cannot be had is said in one line. The tables are markdown.
Ratios are of neighbouring turns; times want a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.peers.lasting_worker import LastingWorker, WorkerFailed
from leanear.benchmarks.peers.real_whisper_models import (
    RATE_HZ,
    WORKER,
    Engine,
    Models,
    our_engines,
    peers,
    sources_sha256,
)
from leanear.benchmarks.peers.real_whisper_table import Ears, tables
from leanear.data.clips import read_examples_for
from leanear.data.dataset import column_for
from leanear.data.splits import read_splits
from leanear.families.checkpoint import checkpoint_folder, checkpoint_sha256
from leanear.runtimes.errors import BadInput, LeanearError
from leanear.runtimes.files import sha256_json
from leanear.runtimes.tasks import SPEECH_TASK

JOINED = "all clips joined"
REST_S = 0.2  # until the threads of the engine before have stopped waiting for more work
TURN_CLIPS = 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a Whisper in Hugging Face's format")
    parser.add_argument("--slim", help="the same, pruned by leanear; no peer can load it")
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--state", type=Path, required=True, help="for environments, models and what was heard")
    parser.add_argument("--only", action="append", help="part of an engine's name; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="the first of all clips, the others of --clips")
    parser.add_argument("--clips", type=int, default=20, help="of the rounds after the first")
    parser.add_argument("--no-joined", action="store_true", help="leave the joined clips out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to go on another time")
    options = parser.parse_args()
    if options.rounds < 1 or options.clips < 1 or options.threads < 1:
        parser.error("rounds, clips and threads: whole numbers of at least 1")
    return options


class Run:
    """The clips, the engines that can be had, and everything that was heard so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, folder = options, checkpoint_folder(options.checkpoint)
        options.state.mkdir(parents=True, exist_ok=True)
        splits = read_splits(options.data, 1, 0, column_for(SPEECH_TASK))
        self.clips = read_examples_for(SPEECH_TASK, splits.evaluation, (), RATE_HZ)
        if self.clips.texts is None:
            raise BadInput(f"{options.data}: the clips have no transcripts")
        shas = [checkpoint_sha256(checkpoint_folder(each)) if each else None for each in (folder, options.slim)]
        ours = sources_sha256("export", "runtimes")
        self._key = sha256_json([shas, ours, list(self.clips.names), options.threads])[:16]
        self.kept = options.state / f"heard-{self._key}.jsonl"
        lines = self.kept.read_text(encoding="utf-8").splitlines() if self.kept.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._models = Models(options.state, options.checkpoint, options.slim, options.data)
        self._workers: dict[Engine, LastingWorker] = {}
        self.failures: dict[str, str] = {}
        self._files = self._write_clips()

    def _write_clips(self) -> dict[str, str]:
        """The clips, and all of them joined, as files that a process in any environment can read."""
        folder = self.options.state / f"clips-{self._key}"
        folder.mkdir(exist_ok=True)
        named = {**dict(zip(self.clips.names, self.clips.waveforms)), JOINED: np.concatenate(self.clips.waveforms)}
        files = {}
        for place, (name, waveform) in enumerate(named.items()):
            path = folder / f"{place}.npy"
            np.save(path, np.asarray(waveform, np.float32))
            files[name] = str(path)
        return files

    def prepare(self, engines: list[Engine]) -> None:
        """Start and warm up every engine; those that cannot be had are left out."""
        for engine in engines:
            try:
                self._start(engine)
            except (LeanearError, WorkerFailed) as error:
                self._fail(engine, error)

    def _start(self, engine: Engine) -> None:
        model = self._models.model(engine)
        threads = {"OMP_NUM_THREADS": str(self.options.threads), "HF_HUB_OFFLINE": "1"}
        worker = self._workers[engine] = LastingWorker(self._models.python(engine), WORKER, threads)
        request = {"library": engine.library, "precision": engine.precision, "how": engine.how}
        loaded = worker.ask({"do": "load", "model": str(model), "threads": self.options.threads, **request})
        size = sum(path.stat().st_size for path in model.rglob("*")) if model.is_dir() else model.stat().st_size
        warm = worker.ask({"do": "hear", "clips": [self._files[self.clips.names[0]]]})
        row = {"engine": engine.name, "library": engine.library, "model_bytes": size, **loaded}
        self._keep([{**row, "first_s": warm["heard"][0]["seconds"]}])

    def _fail(self, engine: Engine, reason: object) -> None:
        self.failures[engine.name] = str(reason)
        print(f"not measured: {engine.name}: {reason}", file=sys.stderr, flush=True)
        if engine in self._workers:
            self._workers.pop(engine).close()

    def turns(self) -> list[tuple[int, list[str]]]:
        """Each round's number and the clips of one turn."""
        names, options = list(self.clips.names), self.options
        found = []
        for number in range(options.rounds):
            heard = names if number == 0 else names[: options.clips]
            found += [(number, heard[begin : begin + TURN_CLIPS]) for begin in range(0, len(heard), TURN_CLIPS)]
        return found if options.no_joined else [*found, (0, [JOINED])]

    def hear_all(self) -> bool:
        """Let the engines take turns at what not all of them have heard yet; whether that is all there is."""
        begin = time.monotonic()
        done = {(row["engine"], row["round"], row["clip"]) for row in self.rows if "clip" in row}
        for place, (number, names) in enumerate(turns := self.turns()):
            engines = list(self._workers)
            if all((engine.name, number, name) in done for engine in engines for name in names):
                continue
            if time.monotonic() - begin > 60 * self.options.minutes:
                print(f"stopped after {place} of {len(turns)} turns; the same command goes on", file=sys.stderr)
                return False
            first = place % max(len(engines), 1)
            self._keep([row for one in engines[first:] + engines[:first] for row in self._turn(one, number, names)])
            print(f"{place + 1} of {len(turns)} turns", file=sys.stderr, flush=True)
        return True

    def _turn(self, engine: Engine, number: int, names: list[str]) -> list[dict[str, Any]]:
        time.sleep(REST_S)
        try:
            answer = self._workers[engine].ask({"do": "hear", "clips": [self._files[name] for name in names]})
        except WorkerFailed as error:
            self._fail(engine, error)
            return []
        common = {"engine": engine.name, "round": number, "peak_bytes": answer["peak_bytes"]}
        return [{**common, "clip": name, **heard} for name, heard in zip(names, answer["heard"], strict=True)]

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows
        with open(self.kept, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def chosen_engines(options: argparse.Namespace) -> list[Engine]:
    """Those that --only names, else all.

    Raises:
        BadInput: it names none.
    """
    engines = [*peers(), *our_engines(options.slim is not None)]
    found = [one for one in engines if not options.only or any(part in one.name for part in options.only)]
    if not found:
        raise BadInput(
            f"--only {', '.join(options.only)}: part of no engine's name: {'; '.join(e.name for e in engines)}"
        )
    return found


def main() -> int:
    options = parse()
    try:
        engines = chosen_engines(options)
        run = Run(options)
        try:
            run.prepare(engines)
            whole = run.hear_all()
        finally:
            run.close()
        ears = Ears(run.rows, [engine.name for engine in engines], run.clips, JOINED)
        print("\n".join(tables(ears, checkpoint_folder(options.checkpoint), options.threads)))
        for name, reason in run.failures.items():
            print(f"\nnot measured: {name}: {reason}")
        return 0 if whole and not run.failures else 1
    except LeanearError as error:
        print(f"leanear: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
