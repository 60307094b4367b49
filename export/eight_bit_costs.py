"""What each tensor of a Whisper's encoder costs in 8 bits alone, in nats per token of golden clips.

Asked when 8 bits cost too much together: a refusal names what hurts, and the worst few may stay in float32.
"""

import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.whisper.graph import export_whisper, observe_encoder
from leanear.export.whisper.speech_parity import DIVERGENCE_BOUND
from leanear.runtimes.artifact import Artifact, Golden, read_golden
from leanear.runtimes.backends.onnx_sessions import OnnxSpeechSession
from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.manifest import Decoding, EncoderWindows
from leanear.runtimes.sessions import SessionOptions, SpeechSession
from leanear.runtimes.speech.encoder_windows import artifact_windows
from leanear.runtimes.speech.guided_steps import clip_divergences, until_end

BETWEEN_TOKENS = re.compile(r"(.*)\.(query|key|value)(\.group\d+)?")
DECODER = "the decoder's weights"
MOST_CLIPS = 4  # golden ones, the first
MOST_LEFT = 1 / 3  # of the tensors that may stay in float32
REST_SHARE = 0.5  # of the bound that what stays in 8 bits may cost by the sum of its costs
NAMED = 3
THREADS = 2
Costs = Mapping[tuple[str, ...], float]


def tensor_costs(
    artifact: Artifact, model: Any, feature_extractor: Any, waveforms: Sequence[np.ndarray]
) -> dict[tuple[str, ...], float]:
    """Nats per token of golden clips that tensors cost in 8 bits while all else is in float32, the dearest first.

    artifact: in 8 bits, made of that model with those quantiser's waveforms. Queries, keys and values of a block are
    one entry, as is DECODER. Integers are those of the graph's form, run by ONNX Runtime.
    """
    golden, form = read_golden(artifact), artifact.manifest.graphs["encoder"].form
    observed = observe_encoder(model, feature_extractor, form, waveforms)
    any_window = len(artifact_windows(artifact).lengths) > 1
    entries: list[tuple[str, ...]] = _together(observed)
    if artifact.manifest.graphs["decoder"].precision == "int8":
        entries.append((DECODER,))
    costs = {}
    with tempfile.TemporaryDirectory(prefix="leanear-costs-") as name:
        graphs = {role: Path(name, f"{role}.onnx") for role in ("encoder", "decoder")}
        for entry in entries:
            alone = {each: observed[each] for each in entry if each != DECODER}
            exported = export_whisper(
                model, feature_extractor, graphs["encoder"], graphs["decoder"], form, "int8", alone, any_window,
                decoder_weights=DECODER in entry,
            )  # fmt: skip
            manifest = replace(artifact.speech, embedding=exported.embedding)
            written = replace(artifact, folder=Path(name), graphs=graphs, manifest=manifest)
            costs[entry] = _divergence(written, golden)
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def tensors_to_leave(costs: Costs) -> tuple[str, ...]:
    """The fewest of the dearest tensors without which the others' costs together are well within the proof's bound.

    None of them where that would be too many, or the decoder alone is too dear.
    """
    of_encoder = sorted((item for item in costs.items() if item[0] != (DECODER,)), key=lambda item: -item[1])
    for number in range(len(of_encoder)):
        rest = costs.get((DECODER,), 0.0) + sum(cost for _, cost in of_encoder[number:])
        if rest <= REST_SHARE * DIVERGENCE_BOUND:
            left = tuple(name for tensors, _ in of_encoder[:number] for name in tensors)
            return left if len(left) <= MOST_LEFT * sum(len(tensors) for tensors, _ in of_encoder) else ()
    return ()


def dearest(costs: Costs) -> str:
    """The tensors that cost most, in words."""
    worst = sorted(costs.items(), key=lambda item: -item[1])[:NAMED]
    return "alone in 8 bits cost most: " + "; ".join(f"{', '.join(names)} {cost:.2g} nats" for names, cost in worst)


def _together(observed: Collection[str]) -> list[tuple[str, ...]]:
    """The names one by one, but those of a block's queries, keys and values as one."""
    entries: dict[str, list[str]] = {}
    for name in observed:
        found = BETWEEN_TOKENS.fullmatch(name)
        entries.setdefault(f"{found[1]} between tokens" if found else name, []).append(name)
    return [tuple(names) for names in entries.values()]


def _divergence(artifact: Artifact, golden: Golden) -> float:
    """Nats per token of the first golden clips; infinite where the graph gives no numbers."""
    session = OnnxSpeechSession(artifact, SessionOptions(threads=THREADS))
    decoding, windows, found = artifact.speech.decoding, artifact_windows(artifact), []
    try:
        for clip in range(min(MOST_CLIPS, len(golden.waveforms))):
            logits = _steps(session, windows, golden, clip, decoding)
            found.append(clip_divergences(golden, clip, logits, decoding))
    except MeasurementFailed:
        return float("inf")
    finally:
        session.close()
    return float(np.concatenate(found).mean())


def _steps(
    session: SpeechSession, windows: EncoderWindows, golden: Golden, clip: int, decoding: Decoding
) -> np.ndarray:
    """Logits after the prompt's first token, after the prompt, and after each golden token up to the end."""
    speech = golden.speech
    assert speech is not None
    said = np.array(until_end(speech.tokens[clip].tolist(), decoding.end), dtype=np.int64)
    session.encode(golden.waveforms[clip], windows.holding(len(golden.waveforms[clip])))
    session.start()
    fed = (speech.prompt[:1], speech.prompt[1:], *said[:-1, None])
    return np.stack([session.step(tokens[None])[0].copy() for tokens in fed])
