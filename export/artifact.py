"""The folder that travels to a device: graphs, golden clips with the checkpoint's own logits, and their manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.ast.front_end import read_front_end
from leanear.export.ast.graph import export_ast, observe_ast, too_large_in_ast
from leanear.export.macs import count_macs
from leanear.export.onnx.graph import ExportedGraph, graph_facts, model_sizes
from leanear.export.onnx.half_precision import has_half_precision
from leanear.export.options import ExportOptions
from leanear.export.whisper_artifact import Speech, golden_facts, write_whisper_artifact
from leanear.runtimes.artifact import Golden, write_golden
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import replaced_folder
from leanear.runtimes.manifest import MANIFEST_FILE, MANIFEST_SCHEMA, ClassifierManifest, Output, waveform_input
from leanear.runtimes.records import write
from leanear.runtimes.tasks import classifier_task

GRAPH_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
SHORTEST_GOLDEN_SAMPLES = 240  # AST's extractor fails on shorter clips, so there is nothing to compare with


@dataclass(frozen=True)
class ClassifierFacts:
    """What a manifest says of a classifier beside its graph.

    family: as plans name it; model: its sizes and MACs, what they came from; window_samples: what it hears, at most.
    """

    family: str
    task: str
    labels: Sequence[str]
    sample_rate_hz: int
    window_samples: int
    model: dict[str, Any]
    made_from: dict[str, Any]
    left_in_float32: Sequence[str] = ()


def export_artifact(
    model: Any,
    feature_extractor: Any,
    golden_waveforms: Sequence[np.ndarray],
    out: Path,
    options: ExportOptions,
    speech: Speech | None = None,
) -> Path:
    """The artifact folder `out`, written whole or not at all; the same arguments give the same bytes.

    golden_waveforms: float32 (samples,) each, at the extractor's rate, of which the folder keeps the logits that the
    model gives in torch; speech: of a Whisper, which is exported as encoder and decoder. The manifest's "parity" is
    null until `leanear.export.parity.prove_parity` has proved it.

    Raises:
        BadInput: no golden clip, or one that the extractor cannot read.
    """
    out, form, precision = Path(out), options.form, options.precision
    if precision == "int8" and not len(options.quantiser_waveforms):
        raise BadInput("precision 'int8': at least one clip is needed to take the ranges of integers from")
    if speech is not None:
        with replaced_folder(out) as part:
            write_whisper_artifact(model, feature_extractor, golden_waveforms, part, options, speech)
        return out
    rate = feature_extractor.sampling_rate
    golden = collect_golden(
        model, lambda clip: feature_extractor(clip, sampling_rate=rate)["input_values"], golden_waveforms
    )
    observed = None
    if precision == "int8":
        observed = observe_ast(model, feature_extractor, form, options.quantiser_waveforms)
    too_large: dict[str, float] = {}
    if has_half_precision(precision, form):
        clips = options.quantiser_waveforms or golden.waveforms
        too_large = too_large_in_ast(model, feature_extractor, form, clips)
    return write_classifier_artifact(
        out,
        golden,
        _ast_facts(model, feature_extractor, options, sorted(too_large)),
        lambda path: export_ast(
            model, feature_extractor, path, form, precision=precision, observed=observed, too_large=too_large
        ),
    )


def _ast_facts(
    model: Any, feature_extractor: Any, options: ExportOptions, left_in_float32: Sequence[str]
) -> ClassifierFacts:
    front_end, config = read_front_end(feature_extractor), model.config
    macs = count_macs(model, front_end, form=options.form)
    return ClassifierFacts(
        family="ast",
        task=classifier_task(config.problem_type, config.num_labels),
        labels=[config.id2label[number] for number in range(config.num_labels)],
        sample_rate_hz=front_end.sample_rate_hz,
        window_samples=front_end.window_samples,
        model={
            **model_sizes(model, [layer.attention for layer in model.audio_spectrogram_transformer.layers]),
            "macs": macs.total,
            "macs_by_kind": macs.by_kind,
            **options.source,
        },
        made_from=options.made_from,
        left_in_float32=left_in_float32,
    )


def write_classifier_artifact(
    out: Path, golden: Golden, facts: ClassifierFacts, write_graph: Callable[[Path], ExportedGraph]
) -> Path:
    """The artifact folder `out` of a classifier of any family, written whole or not at all, its parity null.

    write_graph: writes the ONNX file, which takes "waveform", float32 (1, samples) of any length, and gives "logits",
    float32 (1, labels).
    """
    with replaced_folder(out) as part:
        exported = write_graph(part / GRAPH_FILE)
        write_golden(part / GOLDEN_FILE, golden)
        write(part / MANIFEST_FILE, _manifest(facts, exported, part, golden))
    return out


def collect_golden(model: Any, features: Callable[[np.ndarray], Any], waveforms: Sequence[np.ndarray]) -> Golden:
    """The clips and the model's own logits for them: its features, (1, ...), then the model in torch, in eval mode."""
    import torch

    if not waveforms:
        raise BadInput("golden clips: at least one is needed")
    training = model.training
    clips = tuple(np.ascontiguousarray(waveform, dtype=np.float32) for waveform in waveforms)
    logits = []
    model.eval()
    with torch.inference_mode():
        for number, clip in enumerate(clips):
            if clip.ndim != 1 or len(clip) < SHORTEST_GOLDEN_SAMPLES:
                raise BadInput(
                    f"golden clip {number}: shape {clip.shape}; at least {SHORTEST_GOLDEN_SAMPLES} samples, mono"
                )
            inputs = torch.as_tensor(np.asarray(features(clip)), dtype=torch.float32)
            logits.append(model(inputs).logits[0].numpy())
    model.train(training)
    return Golden(waveforms=clips, logits=np.stack(logits))


def _manifest(facts: ClassifierFacts, exported: ExportedGraph, folder: Path, golden: Golden) -> ClassifierManifest:
    return ClassifierManifest(
        schema=MANIFEST_SCHEMA,
        family=facts.family,
        task=facts.task,
        model=facts.model,
        graphs={"classifier": graph_facts(exported)},
        input=waveform_input(facts.sample_rate_hz, facts.window_samples),
        output=Output("logits", "float32", (1, len(facts.labels))),
        labels=tuple(facts.labels),
        golden=golden_facts(folder / GOLDEN_FILE, golden),
        parity=None,
        made_from=facts.made_from,
        left_in_float32=tuple(facts.left_in_float32),
    )
