"""Compares word times with those of openai's own package, which is given the same weights.

    python -m leanear.benchmarks.peers.word_times CHECKPOINT AUDIO... --model FOLDER[:RUNTIME] --model ...

CHECKPOINT: a dense Whisper with alignment heads, which openai's package runs in an environment of its own
(.venv-words beside this file, from requirements-words.txt; built if it is not there). AUDIO: files, or folders of
them. Each --model is a checkpoint, or an artifact made with --word-timestamps, on ONNX Runtime or the runtime named.
Words that both wrote, in the same order, are compared: the start and the end of each. What is said of words that only
one of them wrote is how many they are.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from leanear.benchmarks.peers.environments import build_environment
from leanear.data.audio import read_waveform
from leanear.evaluate.speech_evaluation import open_transcriber
from leanear.runtimes.files import write_json
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.long_audio import transcribe

ENVIRONMENT = Path(__file__).with_name(".venv-words")
REQUIREMENTS = Path(__file__).with_name("requirements-words.txt")
WORKER = Path(__file__).with_name("word_times_worker.py")
RATE_HZ = 16_000
AUDIO_ENDINGS = (".flac", ".wav", ".ogg", ".mp3")
TOLD_S = 0.25

Timed = tuple[str, float, float]


@dataclass
class Differences:
    """Seconds by which ours are later than theirs, of words that both wrote; how many words each wrote."""

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    ours: int = 0
    theirs: int = 0

    def add(self, ours: list[Timed], theirs: list[Timed]) -> None:
        """Compare one clip's words."""
        self.ours, self.theirs = self.ours + len(ours), self.theirs + len(theirs)
        spelled = [["".join(filter(str.isalnum, word.lower())) for word, _, _ in words] for words in (ours, theirs)]
        matcher = difflib.SequenceMatcher(None, *spelled, autojunk=False)
        for block in matcher.get_matching_blocks():
            for place in range(block.size):
                mine, other = ours[block.a + place], theirs[block.b + place]
                self.starts.append(mine[1] - other[1])
                self.ends.append(mine[2] - other[2])

    @property
    def both(self) -> np.ndarray:
        """Absolute differences of starts and ends."""
        return np.abs([*self.starts, *self.ends])


def read_audio(paths: list[Path]) -> dict[str, np.ndarray]:
    """Waveforms at RATE_HZ by file name."""
    files = [
        file
        for path in paths
        for file in (sorted(p for p in path.rglob("*") if p.suffix in AUDIO_ENDINGS) if path.is_dir() else [path])
    ]
    return {file.name: read_waveform(file, RATE_HZ) for file in files}


def their_words(checkpoint: Path, clips: dict[str, np.ndarray]) -> dict[str, list[Timed]]:
    """The words of openai's package."""
    python = build_environment(ENVIRONMENT, REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="leanear-words-") as folder:
        given, out = Path(folder, "clips.npz"), Path(folder, "words.json")
        np.savez(given, **clips)
        subprocess.run([str(python), "-I", str(WORKER), str(checkpoint), str(given), str(out)], check=True)
        found = json.loads(out.read_text(encoding="utf-8"))
    return {name: [(str(word), float(start), float(end)) for word, start, end in said] for name, said in found.items()}


def our_words(model: str, clips: dict[str, np.ndarray], threads: int, window: str) -> dict[str, list[Timed]]:
    """The words of one of our models, `FOLDER` or `FOLDER:RUNTIME`."""
    folder, _, runtime = model.partition(":")
    transcriber = open_transcriber(folder, runtime or "onnxruntime", None, threads, window)
    found = {}
    for name, clip in clips.items():
        segments = transcribe(transcriber.session, transcriber.model, clip, DecodeOptions(), words=True)
        found[name] = [(word.text, word.start_s, word.end_s) for segment in segments for word in segment.words or ()]
    transcriber.session.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--model", action="append", required=True, help="FOLDER[:RUNTIME]; may be given several times")
    parser.add_argument("--window", action="append", help="full or auto; may be given twice (default: auto)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="the words of all, as JSON; theirs are taken from it where it has these clips"
    )
    options = parser.parse_args()
    clips = read_audio(options.audio)
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.is_file() else {}
    same = set(kept.get("theirs", ())) == set(clips)
    theirs = kept["theirs"] if same else their_words(options.checkpoint, clips)
    words, table = {"theirs": theirs}, Table(box=None, pad_edge=False)
    headings = ("model", "window", "words", "in both", "median, ms", "95 %, ms", f"within {TOLD_S * 1000:g} ms")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in options.model:
        for window in options.window or ["auto"]:
            found = our_words(model, clips, options.threads, window)
            words[f"{model} {window}"] = found
            differences = Differences()
            for name in clips:
                differences.add(found[name], theirs[name])
            apart = differences.both
            table.add_row(
                model, window, str(differences.ours), str(len(differences.starts)),
                f"{1000 * np.median(apart):.0f}", f"{1000 * np.quantile(apart, 0.95):.0f}",
                f"{np.mean(apart <= TOLD_S):.1%}",
            )  # fmt: skip
    if options.out:
        write_json(options.out, words)
    console = Console(highlight=False, width=120)
    console.print(f"{len(clips)} clips; openai's package wrote {sum(map(len, theirs.values()))} words")
    console.print(table)


if __name__ == "__main__":
    main()
