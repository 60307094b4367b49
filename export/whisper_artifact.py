"""A Whisper's artifact: encoder, decoder, vocabulary, what decoding has to know, and golden clips.

While these are heard and written down, it is seen which tensors of its two graphs hold more than float16 does.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.export.macs import count_whisper_macs
from leanear.export.onnx.graph import model_sizes
from leanear.export.onnx.half_precision import has_half_precision, too_large_for_half
from leanear.export.onnx.observed import reference_session
from leanear.export.options import ExportOptions
from leanear.export.whisper.golden_speech import collect_golden_speech
from leanear.export.whisper.graph import (
    FRAMES_PER_POSITION,
    ExportedWhisper,
    cache_sizes,
    export_whisper,
    observe_encoder,
)
from leanear.export.whisper.log_mel import LogMel, read_log_mel
from leanear.export.whisper.voice import write_voice_graph
from leanear.runtimes.artifact import Golden, write_golden
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import sha256_file, write_json
from leanear.runtimes.manifest import (
    MANIFEST_FILE,
    MANIFEST_SCHEMA,
    Decoding,
    GoldenFile,
    SpeechManifest,
    SpeechOutput,
    named_file,
    waveform_input,
)
from leanear.runtimes.records import write
from leanear.runtimes.speech.encoder_windows import choose_windows, window_tokens
from leanear.runtimes.tasks import SPEECH_TASK

ROOM = 1  # for earlier tokens, of which there are none
MASKED = np.float32(-1e4)
ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"
VOCABULARY_FILE, GOLDEN_FILE = "vocabulary.json", "golden.npz"
VOCABULARY_SCHEMA = "leanear-vocabulary-1"


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


@dataclass(frozen=True)
class Speech:
    """What a device has to know to decode.

    vocabulary: the text of every token, in GPT-2's byte alphabet; special_from: the first special token; decoding: the
    manifest's section of that name; words: the special tokens that are words all the same.
    """

    vocabulary: Sequence[str]
    special_from: int
    decoding: Decoding
    words: Sequence[int] = ()


def write_whisper_artifact(
    model: Any,
    feature_extractor: Any,
    golden_waveforms: Sequence[np.ndarray],
    folder: Path,
    options: ExportOptions,
    speech: Speech,
) -> None:
    """Write all files of the artifact into `folder`; the arguments are those of `export.artifact.export_artifact`.

    Raises:
        BadInput: no golden clip, an empty one, or a vocabulary of another size.
    """
    size, form, precision = model.config.vocab_size, options.form, options.precision
    if len(speech.vocabulary) != size:
        raise BadInput(f"tokenizer: {len(speech.vocabulary)} tokens, but the model's vocabulary has {size}")
    log_mel = read_log_mel(feature_extractor)
    step = FRAMES_PER_POSITION * log_mel.hop_samples
    windows = choose_windows(options.window, log_mel.window_samples, log_mel.sample_rate_hz, step)
    heads = () if options.alignment is None else options.alignment.heads
    golden = collect_golden_speech(model, feature_extractor, golden_waveforms, speech.decoding, windows, heads)
    observed = None
    if precision == "int8":
        observed = observe_encoder(model, feature_extractor, form, options.quantiser_waveforms)
        observed = {name: seen for name, seen in observed.items() if name not in options.left_in_float32}
    too_large: dict[str, float] = {}
    if has_half_precision(precision, form):
        clips = options.quantiser_waveforms or golden.waveforms
        too_large = too_large_in_whisper(model, feature_extractor, form, clips, golden)
    files, any_window = (folder / ENCODER_FILE, folder / DECODER_FILE), len(windows.lengths) > 1
    exported = export_whisper(model, feature_extractor, *files, form, precision, observed, any_window, heads, too_large)
    write_golden(folder / GOLDEN_FILE, golden)
    _write_vocabulary(folder / VOCABULARY_FILE, speech)
    manifest = SpeechManifest(
        schema=MANIFEST_SCHEMA,
        family="whisper",
        task=SPEECH_TASK,
        model={**_model_facts(model, log_mel, window_tokens(speech.decoding)), **options.source},
        graphs=exported.facts(),
        input=waveform_input(log_mel.sample_rate_hz, log_mel.window_samples, windows),
        output=SpeechOutput("logits", "float32", ("rows", size), exported.stages),
        vocabulary=named_file(folder / VOCABULARY_FILE),
        voice=write_voice_graph(folder, log_mel.sample_rate_hz),
        decoding=speech.decoding,
        embedding=exported.embedding,
        cache=cache_sizes(model, form, 2 if exported.decoder.precision == "fp16" else 4, observed),
        golden=golden_facts(folder / GOLDEN_FILE, golden),
        parity=None,
        left_in_float32=tuple(sorted({*options.left_in_float32, *too_large})),
        made_from=options.made_from,
        alignment=options.alignment,
    )
    write(folder / MANIFEST_FILE, manifest)


def golden_facts(path: Path, golden: Golden) -> GoldenFile:
    """What a manifest says of the golden clips in `path`."""
    return GoldenFile(path.name, sha256_file(path), len(golden.waveforms))


def _write_vocabulary(path: Path, speech: Speech) -> None:
    document = {
        "schema": VOCABULARY_SCHEMA,
        "tokens": list(speech.vocabulary),
        "special_from": speech.special_from,
        "words": list(speech.words),
    }
    write_json(path, document)


def _model_facts(model: Any, log_mel: LogMel, tokens: int) -> dict[str, Any]:
    macs = count_whisper_macs(model, log_mel, tokens)
    blocks = [layer.self_attn for layer in model.model.encoder.layers]
    for layer in model.model.decoder.layers:
        blocks += [layer.self_attn, layer.encoder_attn]
    return {**model_sizes(model, blocks), "macs": macs.total, "macs_by_kind": macs.by_kind, "macs_tokens": tokens}
