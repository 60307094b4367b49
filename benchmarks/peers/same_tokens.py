"""Counts on how many clips an exported Whisper says, token for token, what transformers' own `generate` says in torch.

    python -m leanear.benchmarks.peers.same_tokens CHECKPOINT ARTIFACT CLIPS.npz [--runtime openvino]

Of a deployment folder: `checkpoint` (or the dense model), `slim` (or `dense`) and `clips/evaluation.npz`. Greedy, one
window a clip, with and without timestamps. This runs on the workstation alone; the exit status is 1 if a clip differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanear.families import whisper
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.clips import read_clips
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.speech_model import read_speech_model

BATCH_CLIPS = 40
ROOM = 6  # positions for the prompt


def generated(checkpoint: Any, waveforms: tuple[np.ndarray, ...], language: str, timestamps: bool) -> list[list[int]]:
    """The tokens that `generate` gives for every clip, after the prompt and before the end."""
    config = checkpoint.model.config
    features = whisper.features(checkpoint.feature_extractor, list(waveforms))
    rows: list[list[int]] = []
    for part in features.split(BATCH_CLIPS):
        rows += checkpoint.model.generate(
            part,
            language=language,
            task="transcribe",
            return_timestamps=timestamps,
            force_unique_generate_call=True,
            max_new_tokens=config.max_target_positions - ROOM,
        ).tolist()
    said = [row[3 if timestamps else 4 :] for row in rows]
    end = config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in said]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--language", default="en")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint, artifact = whisper.load_checkpoint(options.checkpoint), read_artifact(options.artifact)
    waveforms, model = read_clips(options.clips).waveforms, read_speech_model(artifact)
    session = choose_runtime(options.runtime).load(artifact, SessionOptions(threads=options.threads))
    most, all_same = checkpoint.model.config.max_target_positions - ROOM, True
    for timestamps in (False, True):
        expected = generated(checkpoint, waveforms, options.language, timestamps)
        asked = DecodeOptions(language=options.language, timestamps=timestamps, stop_repeats=False, max_tokens=most)
        same = tokens = 0
        for waveform, row in zip(waveforms, expected, strict=True):
            session.encode(waveform)
            found = list(decode_window(session, model.tokens, asked).tokens)
            same, tokens = same + (found == row), tokens + len(found)
        kind = "with timestamps" if timestamps else "without timestamps"
        print(f"{options.runtime}, {kind}: {same} of {len(expected)} clips the same, {tokens} tokens", flush=True)
        all_same = all_same and same == len(expected)
    session.close()
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
