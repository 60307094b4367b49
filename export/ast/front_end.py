"""The log-mel front end of AST as plain ONNX operators: a mono waveform in, normalised features out.

Removal of the mean, pre-emphasis, window and Fourier transform are one linear map of a frame's 400 samples, so they are
one matrix product with the frames. The reference is the numpy path of transformers' ASTFeatureExtractor, whose frame is
400 samples and whose hop is 160 whatever its sampling rate.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanear.export.onnx.frames import add_frames, add_window
from leanear.export.onnx.graph import Graph

FRAME_SAMPLES = 400
HOP_SAMPLES = 160
DFT_POINTS = 512
PREEMPHASIS = 0.97
MEL_FLOOR = 1.192092955078125e-07
LOWEST_MEL_HZ = 20.0


@dataclass(frozen=True)
class FrontEnd:
    """The settings of an ASTFeatureExtractor that its features depend on.

    frames: how many frames the features have, whatever the clip's length; mean, std: log-mel statistics of the training
    data, of which features = (log mel - mean) / (2 std); normalised: whether that is done at all.
    """

    sample_rate_hz: int
    mel_bins: int
    frames: int
    normalised: bool
    mean: float
    std: float

    @property
    def window_samples(self) -> int:
        """How many samples fill all frames; later samples are not looked at."""
        return FRAME_SAMPLES + HOP_SAMPLES * (self.frames - 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the Fourier transform and of the mel filters, as the graph computes them."""
        bins = len(_audible_bins(self.mel_filters()))
        return self.frames * bins * (2 * FRAME_SAMPLES + self.mel_bins)

    def mel_filters(self) -> np.ndarray:
        """The triangular filters over the DFT's non-negative frequencies: float64 (257, mel_bins)."""
        from transformers.audio_utils import mel_filter_bank

        with warnings.catch_warnings(action="ignore"):  # of AST's usual 128 filters, the lowest ones are empty
            return mel_filter_bank(
                num_frequency_bins=DFT_POINTS // 2 + 1,
                num_mel_filters=self.mel_bins,
                min_frequency=LOWEST_MEL_HZ,
                max_frequency=self.sample_rate_hz // 2,
                sampling_rate=self.sample_rate_hz,
                norm=None,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )


def read_front_end(feature_extractor: Any) -> FrontEnd:
    """The settings of a loaded ASTFeatureExtractor."""
    return FrontEnd(
        sample_rate_hz=int(feature_extractor.sampling_rate),
        mel_bins=int(feature_extractor.num_mel_bins),
        frames=int(feature_extractor.max_length),
        normalised=bool(feature_extractor.do_normalize),
        mean=float(feature_extractor.mean),
        std=float(feature_extractor.std),
    )


def add_front_end(graph: Graph, waveform: str, front_end: FrontEnd) -> str:
    """Add the front end behind `waveform` (1, samples), float32 of any length; returns features (1, frames, mel bins).

    A clip longer than the model's window is cut. A frame that does not lie wholly inside the clip is padding: zero
    before normalisation, as in the extractor. So a clip of fewer than 400 samples has no frame and gives padding alone;
    that is what the extractor gives for 240 to 399 samples (it fails on fewer).
    """
    samples = graph.node("Shape", [waveform], "front_end.samples", start=1, end=2)
    rows = front_end.frames - 1 + -(-FRAME_SAMPLES // HOP_SAMPLES)
    clip = add_window(graph, waveform, rows * HOP_SAMPLES)
    hops = graph.reshape(clip, (rows, HOP_SAMPLES), "front_end.hops")
    frames = add_frames(graph, hops, front_end.frames, FRAME_SAMPLES, HOP_SAMPLES)
    filters = front_end.mel_filters()
    bins = _audible_bins(filters)
    transform = graph.constant("front_end.transform", _frame_transform(bins).astype(np.float32))
    spectrum = graph.node("MatMul", [frames, transform], "front_end.spectrum")
    squares = graph.node("Mul", [spectrum, spectrum], "front_end.squares")
    parts = graph.reshape(squares, (front_end.frames, 2, len(bins)), "front_end.parts")
    real_imaginary = graph.constant("front_end.real_imaginary", np.array([1], dtype=np.int64))
    power = graph.node("ReduceSum", [parts, real_imaginary], "front_end.power", keepdims=0)
    mel_weight = graph.constant("front_end.mel_filters", filters[bins].astype(np.float32))
    mel = graph.node("MatMul", [power, mel_weight], "front_end.mel")
    floor = graph.constant("front_end.floor", np.array(MEL_FLOOR, dtype=np.float32))
    audible = graph.node("Max", [mel, floor], "front_end.audible")
    log_mel = graph.node("Log", [audible], "front_end.log_mel")

    frame_ends = FRAME_SAMPLES + HOP_SAMPLES * np.arange(front_end.frames, dtype=np.int64)[:, None]
    whole = graph.node(
        "LessOrEqual", [graph.constant("front_end.frame_ends", frame_ends), samples], "front_end.whole_frames"
    )
    padding = graph.constant("front_end.padding", np.array(0.0, dtype=np.float32))
    features = graph.node("Where", [whole, log_mel, padding], "front_end.whole_log_mel")
    if front_end.normalised:
        mean = graph.constant("front_end.mean", np.array(front_end.mean, dtype=np.float32))
        spread = graph.constant("front_end.spread", np.array(2 * front_end.std, dtype=np.float32))
        centred = graph.node("Sub", [features, mean], "front_end.centred")
        features = graph.node("Div", [centred, spread], "front_end.normalised")
    return graph.reshape(features, (1, front_end.frames, front_end.mel_bins), "front_end.features")


def _audible_bins(filters: np.ndarray) -> np.ndarray:
    """The DFT bins that some mel filter looks at; the others need not be computed."""
    return np.flatnonzero(filters.any(axis=1))


def _frame_transform(bins: np.ndarray) -> np.ndarray:
    """Real parts, then imaginary parts, of the DFT at `bins` as a linear map of a frame: float64 (400, 2 bins)."""
    centre = np.eye(FRAME_SAMPLES) - 1.0 / FRAME_SAMPLES
    # The first sample has no predecessor and is its own: y[0] = x[0] - 0.97 x[0].
    emphasise = np.eye(FRAME_SAMPLES) - PREEMPHASIS * np.eye(FRAME_SAMPLES, k=-1)
    emphasise[0, 0] = 1.0 - PREEMPHASIS
    window = np.hanning(FRAME_SAMPLES)
    angles = 2.0 * np.pi / DFT_POINTS * np.outer(bins, np.arange(FRAME_SAMPLES))
    fourier = np.concatenate([np.cos(angles), -np.sin(angles)])
    return ((fourier * window) @ emphasise @ centre).T
