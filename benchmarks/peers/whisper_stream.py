"""Speech through a pipe: how soon the first words come after the first window, and how much memory a long talk takes.

    python -m leanear.benchmarks.peers.whisper_stream ARTIFACT --data FOLDER [--window 10] [--minutes 30]

FOLDER holds audio files, which are joined, again and again, into one talk. First `leanear transcribe -` is given a
window of it, and a little more, no faster than it would be spoken; then MINUTES of it as fast as they are taken. RSS is
what the kernel says of the process while it runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from leanear.data.audio import read_waveform
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.speech.long_audio import piece_samples
from leanear.runtimes.speech.speech_model import read_speech_model

RATE_HZ = 16_000
PIECE_S = 0.1
MORE_S = 4.0  # spoken behind the first window
LEAD_S = 8.0  # of model loading before anybody speaks
SAMPLE_S = 0.5


def main() -> int:
    options = parse()
    files = sorted(path for path in options.data.rglob("*.flac"))
    talk = np.concatenate([read_waveform(path, RATE_HZ) for path in files])
    pcm = (np.clip(talk, -1, 1) * 32767).astype("<i2").tobytes()
    first_words(pcm, options)
    if options.minutes:
        long_talk(pcm, options)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--window", default="auto")
    parser.add_argument("--vad", default="off")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long talk; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def started(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leanear.entry", "transcribe", "-", "--raw", "--quiet"]
    command += ["--model", str(options.artifact), "--window", options.window, "--threads", str(options.threads)]
    command += ["--vad", options.vad]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def first_words(pcm: bytes, options: argparse.Namespace) -> None:
    """Say when the first line came, counted from the moment at which the first window had been spoken."""
    artifact = read_artifact(options.artifact)
    window_s = piece_samples(read_speech_model(artifact, options.window)) / RATE_HZ
    with started(options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        came: list[float] = []
        reading = threading.Thread(target=lambda: (process.stdout.readline(), came.append(time.monotonic())))
        reading.start()
        time.sleep(LEAD_S)
        begin, piece = time.monotonic(), round(PIECE_S * RATE_HZ) * 2
        for number in range(round((window_s + MORE_S) / PIECE_S)):
            spoken = begin + (number + 1) * PIECE_S
            time.sleep(max(0.0, spoken - time.monotonic()))
            process.stdin.write(pcm[number * piece : (number + 1) * piece])
            process.stdin.flush()
        reading.join()
        process.stdin.close()
        process.stdout.read()
    late_s = came[0] - begin - window_s
    print(f"window {options.window}: pieces of {window_s:g} s, first words {late_s:+.2f} s from the first one's end")


def long_talk(pcm: bytes, options: argparse.Namespace) -> None:
    """Say what memory the process held while it heard so many minutes."""
    wanted = round(60 * options.minutes * RATE_HZ) * 2
    start, written, seen = time.monotonic(), 0, []
    with started(options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: list[bytes] = []
        reading = threading.Thread(target=lambda: lines.extend(process.stdout))  # type: ignore[arg-type]
        reading.start()
        while written < wanted:
            block = pcm[written % len(pcm) :][: min(RATE_HZ, wanted - written)]
            process.stdin.write(block)
            written += len(block)
            if not seen or time.monotonic() - seen[-1][0] > SAMPLE_S:
                seen.append((time.monotonic(), written / 2 / RATE_HZ / 60, resident_mb(process.pid)))
        process.stdin.close()
        reading.join()
    for begin in range(0, round(options.minutes), 5):
        held = [mb for _, minute, mb in seen if begin <= minute < begin + 5]
        if held:
            print(f"minutes {begin} to {begin + 5}: {min(held):.0f} to {max(held):.0f} MB", flush=True)
    print(f"{options.minutes:g} minutes in {time.monotonic() - start:.0f} s, {len(lines)} lines, "
          f"status {process.returncode}")  # fmt: skip


def resident_mb(process: int) -> float:
    with open(f"/proc/{process}/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
