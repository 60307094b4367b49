"""Whisper's log-mel front end as plain ONNX operators: a mono waveform in, features (frames, mel bins) out.

Window and Fourier transform are one linear map of a frame's samples, so they are one matrix product with the frames.
The reference is transformers' WhisperFeatureExtractor: frames centred on their hop, the clip mirrored at its ends, the
last frame dropped, mel filters and scale of slaney, and a floor 8 decades under the window's loudest value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanear.export.onnx.frames import add_frames, add_window
from leanear.export.onnx.graph import Graph
from leanear.runtimes.errors import BadInput

MEL_FLOOR = 1e-10
DECADES = 8.0  # how far under the loudest value features go


@dataclass(frozen=True)
class LogMel:
    """The settings of a WhisperFeatureExtractor that its features depend on.

    window_samples: to which a clip is filled up with zeros or cut; filters: float64 (frequencies, mel bins).
    """

    sample_rate_hz: int
    window_samples: int
    frame_samples: int
    hop_samples: int
    filters: np.ndarray

    @property
    def frames(self) -> int:
        return self.window_samples // self.hop_samples

    @property
    def mel_bins(self) -> int:
        return int(self.filters.shape[1])

    @property
    def audible(self) -> np.ndarray:
        """The frequencies that some mel filter looks at; the others need not be computed."""
        return np.flatnonzero(self.filters.any(axis=1))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the Fourier transform and of the mel filters, as the graph computes them."""
        return self.frames * 2 * len(self.audible) * (self.frame_samples + self.mel_bins)


def read_log_mel(feature_extractor: Any) -> LogMel:
    """The settings of a loaded WhisperFeatureExtractor.

    Raises:
        BadInput: it adds noise, or its window is shorter than a frame.
    """
    if feature_extractor.dither != 0.0:
        raise BadInput("preprocessor_config.json: dither adds noise to the features, which a graph cannot repeat")
    if feature_extractor.padding_value != 0.0:
        raise BadInput(f"preprocessor_config.json: padding_value is {feature_extractor.padding_value}, not 0")
    log_mel = LogMel(
        sample_rate_hz=int(feature_extractor.sampling_rate),
        window_samples=int(feature_extractor.n_samples),
        frame_samples=int(feature_extractor.n_fft),
        hop_samples=int(feature_extractor.hop_length),
        filters=np.asarray(feature_extractor.mel_filters, dtype=np.float64),
    )
    if log_mel.window_samples < log_mel.frame_samples:
        raise BadInput("preprocessor_config.json: the window is shorter than one frame of the Fourier transform")
    return log_mel


def add_log_mel(graph: Graph, waveform: str, log_mel: LogMel, any_window: bool = False) -> str:
    """Add the front end behind `waveform` (1, samples), float32 of any length; returns features (frames, mel bins).

    any_window: the waveform, of whole hops, is the window, whatever its length; otherwise it is filled up or cut to the
    model's. Filled up with zeros to any window that leaves a frame of silence behind the audio, a clip's features are
    the first rows of those in the model's window: the loudest value, which the floor hangs from, is the same.
    """
    frames, window, frame = log_mel.frames, log_mel.window_samples, log_mel.frame_samples
    bins, hop = log_mel.audible, log_mel.hop_samples
    clip = waveform if any_window else add_window(graph, waveform, window)

    # Frame t begins at hop * t of the clip that is mirrored at its ends: whole hops, and the beginning of another one.
    before = frame // 2
    after = max(0, (frames - 1) * hop + frame - before - window)
    edges = graph.constant("front_end.edges", np.array([0, before, 0, after], dtype=np.int64))
    mirrored = graph.node("Pad", [clip, edges], "front_end.mirrored", mode="reflect")
    hops = -(-frame // hop)
    blocks = frames + hops - 1
    missing = blocks * hop - (before + window + after)
    if missing > 0:
        more = graph.constant("front_end.missing", np.array([0, 0, 0, missing], dtype=np.int64))
        mirrored = graph.node("Pad", [mirrored, more], "front_end.whole")
    elif missing < 0:
        mirrored = graph.slice(mirrored, 0, missing if any_window else blocks * hop, 1, "front_end.whole")
    rows = graph.reshape(mirrored, (-1 if any_window else blocks, hop), "front_end.blocks")
    framed = add_frames(graph, rows, frames, frame, hop, any_window)

    transform = graph.constant("front_end.transform", _frame_transform(frame, bins).astype(np.float32))
    spectrum = graph.node("MatMul", [framed, transform], "front_end.spectrum")
    squares = graph.node("Mul", [spectrum, spectrum], "front_end.squares")
    # Real and imaginary parts are added by the mel filters, which stand under each other twice.
    filters = np.concatenate([log_mel.filters[bins]] * 2)
    mel = graph.node(
        "MatMul", [squares, graph.constant("front_end.filters", filters.astype(np.float32))], "front_end.mel"
    )
    floor = graph.constant("front_end.floor", np.array(MEL_FLOOR, dtype=np.float32))
    log = graph.node("Log", [graph.node("Max", [mel, floor], "front_end.audible")], "front_end.log")
    # In natural logarithms: (max(log10 x, loudest - 8) + 4) / 4 = max(log x, loudest - 8 log 10) / (4 log 10) + 1.
    axes = graph.constant("front_end.axes", np.array([0, 1], dtype=np.int64))
    loudest = graph.node("ReduceMax", [log, axes], "front_end.loudest", keepdims=1)
    depth = graph.constant("front_end.depth", np.array(DECADES * np.log(10.0), dtype=np.float32))
    lowest = graph.node("Sub", [loudest, depth], "front_end.lowest")
    limited = graph.node("Max", [log, lowest], "front_end.limited")
    unit = graph.constant("front_end.unit", np.array(1.0 / (4.0 * np.log(10.0)), dtype=np.float32))
    scaled = graph.node("Mul", [limited, unit], "front_end.scaled")
    one = graph.constant("front_end.one", np.array(1.0, dtype=np.float32))
    return graph.node("Add", [scaled, one], "front_end.features")


def _frame_transform(frame_samples: int, bins: np.ndarray) -> np.ndarray:
    """Real parts, then imaginary parts, of the windowed Fourier transform at `bins`: float64 (samples, 2 bins)."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frame_samples) / frame_samples)  # hann, periodic
    angles = 2.0 * np.pi / frame_samples * np.outer(np.arange(frame_samples), bins)
    return np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * window[:, None]
