"""The folder that travels to a device: graphs, golden clips with the checkpoint's own logits, and their manifest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.ast.front_end import FrontEnd, read_front_end
from leanear.export.ast.graph import export_ast, observe_ast, too_large_in_ast
from leanear.export.macs import count_macs
from leanear.export.onnx.graph import ExportedGraph, graph_facts
from leanear.export.onnx.half_precision import has_half_precision
from leanear.export.whisper_artifact import Speech, write_whisper_artifact
from leanear.runtimes.artifact import MANIFEST_SCHEMA, Golden, write_golden
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_folder, sha256_file, write_json
from leanear.runtimes.speech.encoder_windows import FULL
from leanear.runtimes.tasks import classifier_task

GRAPH_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
SHORTEST_GOLDEN_SAMPLES = 240  # the extractor fails on shorter clips, so there is nothing to compare with


def export_artifact(
    model: Any,
    feature_extractor: Any,
    golden_waveforms: Sequence[np.ndarray],
    out: Path,
    *,
    form: str,
    source: dict[str, Any],
    made_from: dict[str, Any],
    speech: Speech | None = None,
    precision: str = "fp32",
    quantiser_waveforms: Sequence[np.ndarray] = (),
    window: str = FULL,
    left_in_float32: Collection[str] = (),
) -> Path:
    """The artifact folder `out`, written whole or not at all; the same arguments give the same bytes.

    golden_waveforms: float32 (samples,) each, at the extractor's rate, of which the folder keeps the logits that the
    model gives in torch. source: what the manifest should say of the model besides its sizes. made_from: sha256 of the
    inputs by name. speech: of a Whisper, which is exported as encoder and decoder; precision: of the
    products, "fp32", "fp16" or "int8"; quantiser_waveforms: real clips that the ranges of integers are taken from, like
    the golden ones; window: of a Whisper, which windows its encoder takes (`leanear.runtimes.speech.encoder_windows`);
    left_in_float32: tensors of its encoder that stay so. The manifest's "parity" is null until
    `leanear.export.parity.prove_parity` has proved it.

    Raises:
        BadInput: no golden clip, a golden clip that the extractor cannot read, or a model that cannot be exported.
    """
    out = Path(out)
    if precision == "int8" and not len(quantiser_waveforms):
        raise BadInput("precision 'int8': at least one clip is needed to take the ranges of integers from")
    if speech is not None:
        with replaced_folder(out) as part:
            write_whisper_artifact(
                model, feature_extractor, golden_waveforms, part, form, precision, quantiser_waveforms, speech, source,
                made_from, window, left_in_float32,
            )  # fmt: skip
        return out
    golden = collect_golden(model, feature_extractor, golden_waveforms)
    observed = observe_ast(model, feature_extractor, form, quantiser_waveforms) if precision == "int8" else None
    too_large: dict[str, float] = {}
    if has_half_precision(precision, form):
        clips = quantiser_waveforms or golden.waveforms
        too_large = too_large_in_ast(model, feature_extractor, form, clips)
    with replaced_folder(out) as part:
        exported = export_ast(
            model,
            feature_extractor,
            part / GRAPH_FILE,
            form,
            precision=precision,
            observed=observed,
            too_large=too_large,
        )
        write_golden(part / GOLDEN_FILE, golden)
        manifest = _manifest(model, read_front_end(feature_extractor), exported, part, len(golden.waveforms))
        manifest["model"].update(source)
        manifest["made_from"] = made_from
        manifest["left_in_float32"] = sorted(too_large)
        write_json(part / "manifest.json", manifest)
    return out


def collect_golden(model: Any, feature_extractor: Any, waveforms: Sequence[np.ndarray]) -> Golden:
    """The clips and the model's own logits for them: transformers' extractor, then the model in torch, in eval mode."""
    import torch

    if not waveforms:
        raise BadInput("golden clips: at least one is needed")
    rate, training = feature_extractor.sampling_rate, model.training
    clips = tuple(np.ascontiguousarray(waveform, dtype=np.float32) for waveform in waveforms)
    logits = []
    model.eval()
    with torch.inference_mode():
        for number, clip in enumerate(clips):
            if clip.ndim != 1 or len(clip) < SHORTEST_GOLDEN_SAMPLES:
                raise BadInput(
                    f"golden clip {number}: shape {clip.shape}; at least {SHORTEST_GOLDEN_SAMPLES} samples, mono"
                )
            features = feature_extractor(clip, sampling_rate=rate, return_tensors="pt")["input_values"]
            logits.append(model(features.to(torch.float32)).logits[0].numpy())
    model.train(training)
    return Golden(waveforms=clips, logits=np.stack(logits))


def _manifest(model: Any, front_end: FrontEnd, exported: ExportedGraph, folder: Path, clips: int) -> dict[str, Any]:
    config, macs = model.config, count_macs(model, front_end, form=exported.form)
    parameters = list(model.parameters())
    attention = [p for layer in model.audio_spectrogram_transformer.layers for p in layer.attention.parameters()]
    return {
        "schema": MANIFEST_SCHEMA,
        "family": "ast",
        "task": classifier_task(config.problem_type, config.num_labels),
        "model": {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "attention_parameters": sum(parameter.numel() for parameter in attention),
            "checkpoint_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            "macs": macs.total,
            "macs_by_kind": macs.by_kind(),
        },
        "graphs": {"classifier": graph_facts(exported, folder / GRAPH_FILE)},
        "input": {
            "name": "waveform",
            "dtype": "float32",
            "shape": [1, "samples"],
            "sample_rate_hz": front_end.sample_rate_hz,
            "window_samples": front_end.window_samples,
        },
        "output": {"name": "logits", "dtype": "float32", "shape": [1, config.num_labels]},
        "labels": [config.id2label[number] for number in range(config.num_labels)],
        "golden": {"file": GOLDEN_FILE, "sha256": sha256_file(folder / GOLDEN_FILE), "clips": clips},
        "parity": None,
        "made_from": {},
    }
