"""Tensors of a Whisper's two graphs that hold more than float16 does, while golden clips are heard and written down."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.onnx.float16_ranges import too_large_for_half
from leanear.export.onnx.observed import reference_session
from leanear.export.whisper.graph import ExportedWhisper, export_whisper
from leanear.runtimes.artifact import Golden

ROOM = 1  # for earlier tokens, of which there are none
MASKED = np.float32(-1e4)


def too_large_in_whisper(
    model: Any, feature_extractor: Any, form: str, waveforms: Sequence[np.ndarray], golden: Golden
) -> dict[str, float]:
    """The largest magnitudes of tensors of either graph that float16 does not hold.

    waveforms: real clips for the encoder; golden: clips with what the checkpoint says of them, for the decoder, which
    is fed all tokens of a clip at once.
    """
    with tempfile.TemporaryDirectory(prefix="leanear-ranges-") as folder:
        exported = export_whisper(
            model, feature_extractor, Path(folder, "encoder.onnx"), Path(folder, "decoder.onnx"), form
        )
        found = too_large_for_half(exported.encoder.path, ({"waveform": clip[None]} for clip in waveforms))
        return {**found, **too_large_for_half(exported.decoder.path, written_feeds(model, exported, golden))}


def written_feeds(model: Any, exported: ExportedWhisper, golden: Golden) -> Iterator[Mapping[str, np.ndarray]]:
    """The decoder's inputs for each golden clip: what its encoder gives, and every token but the last."""
    encoder = reference_session(exported.encoder.path)
    crossed = [output.name for output in encoder.get_outputs()]
    speech, embedding = golden.speech, model.model.decoder.embed_tokens.weight.detach().numpy()
    assert speech is not None
    for clip, said in zip(golden.waveforms, speech.tokens, strict=True):
        fed = np.concatenate([speech.prompt, said[:-1]])
        yield {
            "embedded": embedding[fed][None],
            "positions": np.arange(len(fed)),
            "bias": _bias(len(fed)),
            **_empty_room(exported),
            **dict(zip(crossed, encoder.run(crossed, {"waveform": clip[None]}), strict=True)),
        }


def _bias(tokens: int) -> np.ndarray:
    """(N, ROOM + N): each token looks at itself and at those before it, and at none of the room."""
    later = np.triu(np.full((tokens, tokens), MASKED), 1)
    return np.concatenate([np.full((tokens, ROOM), MASKED), later], axis=1)


def _empty_room(exported: ExportedWhisper) -> dict[str, np.ndarray]:
    """Keys and values of no earlier token."""
    import onnx

    graph = onnx.load(str(exported.decoder.path), load_external_data=False).graph
    sizes = {"rows": 1, "room": ROOM}
    return {
        value.name: np.zeros([d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim], np.float32)
        for value in graph.input
        if value.name.startswith("self_")
    }
