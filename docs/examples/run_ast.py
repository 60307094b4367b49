"""Run an exported classifier without leanear, by numpy and onnxruntime alone.

python run_ast.py ARTIFACT CLIP.wav
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime


def read_wav(path, rate_hz):
    """One channel of a 16-bit WAV file at the model's own rate, float32 (samples,) in [-1, 1)."""
    wanted = f"{path}: 16-bit samples at {rate_hz} Hz are wanted"
    try:
        with wave.open(path) as clip:
            if (clip.getframerate(), clip.getsampwidth()) != (rate_hz, 2):
                sys.exit(wanted)
            samples = np.frombuffer(clip.readframes(clip.getnframes()), "<i2").reshape(-1, clip.getnchannels())
    except wave.Error as error:
        sys.exit(f"{wanted} ({error})")
    return samples.mean(axis=1).astype(np.float32) / 32768


def probabilities(logits, task):
    """A softmax, or a sigmoid for each label where a clip may have several."""
    if task == "audio-tagging":
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def main(artifact, clip):
    manifest = json.loads((Path(artifact) / "manifest.json").read_text())
    graph = Path(artifact) / manifest["graphs"]["classifier"]["file"]
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    # The graph has the front end in it: it takes the waveform as it is, of any length up to the window and beyond.
    waveform = read_wav(clip, manifest["input"]["sample_rate_hz"])
    (logits,) = session.run(None, {manifest["input"]["name"]: waveform[np.newaxis]})
    shares = probabilities(logits[0].astype(np.float64), manifest["task"])
    for label in np.argsort(-shares)[:5]:
        print(f"{100 * shares[label]:6.2f} %  {manifest['labels'][label]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
