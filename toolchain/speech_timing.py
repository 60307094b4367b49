"""Times whole Whispers of chosen widths on this device, stage by stage, and makes the latency table of them."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.inference import STAGES
from leanear.benchmarks.measure.processes import absolute, part_of, run_fresh
from leanear.benchmarks.measure.rounds import quiet_samples
from leanear.export.whisper.graph import export_whisper, observe_encoder
from leanear.families import whisper
from leanear.families.whisper import WhisperCheckpoint
from leanear.plan import HeadPlan, SitePlan
from leanear.progress import Report, quiet
from leanear.prune.latency_table import BUSY_SHARE, Widths, ragged_widths, table_key, table_path
from leanear.runtimes.choose import require_runtime
from leanear.runtimes.errors import BadInput, MeasurementFailed
from leanear.runtimes.files import read_json, write_json
from leanear.runtimes.process.kept_work import remember_kept
from leanear.runtimes.sessions import SessionOptions, graph_precision
from leanear.speech_latency import (
    ENCODER_STAGE,
    KINDS,
    PARTS,
    SPEECH_TABLE_SCHEMA,
    STEPS_STAGE,
    SpeechGeometry,
    SpeechProbe,
    SpeechTable,
    fit_speech_parts,
    speech_table_to_json,
)
from leanear.speech_work import SizedWork, SpeechWork, sized_work
from leanear.table_values import checked_number, checked_numbers, checked_site, checked_whole
from leanear.targets.target import Target

WORKER = "leanear.benchmarks.speech_rounds"
# A step takes as long as reading all weights does, which in one process is up to a tenth off for the whole of its life
PROCESSES, ROUNDS, SHARE_S = 4, 3, 15.0
AT_A_TIME = 4  # models in a process, beside the dense one, by which what slows the machine down meanwhile is told
TABLE_KEYS = ("key", "rest_ms", "parts", "probes", "others_share")
BUILDING = 0.15  # of the progress bar

Stages = dict[str, float]


@dataclass(frozen=True)
class Timed:
    """Milliseconds of every model's stages, medians of its quiet rounds, and what others used of all cores."""

    stages_ms: tuple[Stages, ...]
    others_share: float

    @property
    def inference_ms(self) -> tuple[float, ...]:
        """Of every model's whole inference."""
        return tuple(sum(stages.values()) for stages in self.stages_ms)


def work_of(checkpoint: WhisperCheckpoint, work: SpeechWork) -> SizedWork:
    """The work, of this checkpoint; raises BadInput where it does not fit the model."""
    return sized_work(work, whisper.decoding_settings(checkpoint), checkpoint.feature_extractor)


def speech_geometry(checkpoint: WhisperCheckpoint, work: SizedWork) -> SpeechGeometry:
    """The dimensions of a loaded dense checkpoint and of its work."""
    config = checkpoint.model.config
    return SpeechGeometry(
        positions=int(config.max_source_positions),
        model_width=int(config.d_model),
        heads=int(config.decoder_attention_heads),
        head_width=int(config.d_model) // int(config.decoder_attention_heads),
        encoder_layers=int(config.encoder_layers),
        decoder_layers=int(config.decoder_layers),
        encoder_feed_forward_width=int(config.encoder_ffn_dim),
        decoder_feed_forward_width=int(config.decoder_ffn_dim),
        mel_bins=int(config.num_mel_bins),
        vocabulary=int(config.vocab_size),
        decoder_positions=int(config.max_target_positions),
        clip_samples=work.clip_samples,
        window_samples=work.window_samples,
        any_window=work.any_window,
        prompt_tokens=len(work.prompt),
        tokens=work.tokens,
    )


def probe_models(geometry: SpeechGeometry) -> list[dict[str, list[tuple[int, int]]]]:
    """Widths by kind of the models that are timed, the dense one first: all blocks of a kind are alike.

    Equal widths, fewer heads, several groups and ragged ones, the kinds' apart from one another.
    """
    heads, full = geometry.heads, geometry.head_width

    def equal(count: int, query_key: float, value_output: float) -> list[tuple[int, int]]:
        return [(max(1, round(full * query_key / 8)), max(1, round(full * value_output / 8)))] * max(1, count)

    half = heads // 2
    encoder = [
        equal(heads, 4, 8), equal(heads, 8, 4), equal(heads, 4, 4), equal(heads, 2, 2), equal(half, 8, 8),
        equal(heads, 6, 4.5), equal(half, 8, 8) + equal(heads - half, 2, 2), equal(1, 8, 8),
        equal(half, 4, 8) + equal(heads - half, 4, 2), *(ragged_widths(geometry, seed) for seed in range(5)),
    ]  # fmt: skip
    cached = [
        equal(half, 8, 8), equal(heads, 2, 2.5), equal(heads, 8, 4), equal(1, 8, 8), equal(heads, 4, 8),
        equal(half, 4, 4.5), equal(heads, 6, 6),
    ]  # fmt: skip
    dense = {kind: equal(heads, 8, 8) for kind in KINDS}
    return [dense] + [
        {"encoder": widths, "decoder": cached[number % 7], "cross": cached[(3 * number + 2 + number // 7) % 7]}
        for number, widths in enumerate(encoder)
    ]


def model_of_widths(checkpoint: WhisperCheckpoint, widths: Mapping[str, Widths]) -> Any:
    """A slim model with heads of these widths in every block of each kind: to be timed, not used."""
    plans = tuple(
        SitePlan(
            name=site.name,
            kind=site.kind,
            dense_heads=len(site.query_key_widths),
            heads=tuple(
                HeadPlan(head, tuple(range(k)), tuple(range(v))) for head, (k, v) in enumerate(widths[site.kind])
            ),
        )
        for site in whisper.attention_sites(checkpoint.model)
    )
    return whisper.slim_model(checkpoint.model, plans)


def export_to_time(
    checkpoint: WhisperCheckpoint, model: Any, target: Target, work: SizedWork, folder: Path
) -> dict[str, Any]:
    """Write the graphs of a model of the checkpoint's in `folder`; what the timing process has to know of them.

    Integers get ranges from noise: how long they are multiplied does not depend on them.
    """
    folder.mkdir()
    extractor, precision, observed = checkpoint.feature_extractor, graph_precision(target.precision), None
    if precision == "int8":
        noise = 0.1 * np.random.default_rng(0).standard_normal(work.clip_samples)
        observed = observe_encoder(model, extractor, target.graph_form, [noise.astype(np.float32)])
    files = folder / "encoder.onnx", folder / "decoder.onnx"
    exported = export_whisper(model, extractor, *files, target.graph_form, precision, observed, work.any_window)
    manifest = {
        "family": "whisper",
        "graphs": {
            "encoder": {"form": target.graph_form, "precision": exported.encoder.precision},
            "decoder": {"form": target.graph_form, "precision": exported.decoder.precision},
        },
        "input": {"window_samples": work.full_samples, "sample_rate_hz": int(extractor.sampling_rate)},
        "output": {"shape": ["rows", int(model.config.vocab_size)]},
        "decoding": whisper.decoding_settings(checkpoint),
        "embedding": exported.embedding,
    }
    return {"folder": absolute(folder), "manifest": manifest}


def time_speech_in_turn(
    models: Sequence[dict[str, Any]],
    target: Target,
    work: SizedWork,
    report: Report = quiet,
    share_s: float = SHARE_S,
    processes: int = PROCESSES,
) -> Timed:
    """Every model's stages, from so many processes' rounds, in which all of them take turns.

    Raises:
        MeasurementFailed: a process ended without an answer.
    """
    decoding = models[0]["manifest"]["decoding"]
    request = {
        "models": list(models),
        "runtime": target.runtime,
        "threads": target.threads,
        "precision": target.precision,
        "samples": work.clip_samples,
        "window": work.window_samples,
        "prompt": list(work.prompt),
        "tokens": work.tokens,
        "text_tokens": min(decoding["start"], decoding["end"]),
        "rounds": ROUNDS,
        "share_s": share_s / processes,
    }
    stages: list[list[Stages]] = [[] for _ in models]
    shares: list[list[float]] = [[] for _ in models]
    for number in range(processes):
        told = part_of(report, number / processes, (number + 1) / processes, "timing: ")
        outcome = run_fresh(WORKER, request, told)
        if outcome.answer is None:
            raise MeasurementFailed(f"timing speech models on {target.runtime}: {outcome.reason}")
        for place, of_model in enumerate(outcome.answer["stages_ms"]):
            stages[place] += of_model
            shares[place] += outcome.answer["others_share"][place]
    medians = tuple(_medians(of_model, others) for of_model, others in zip(stages, shares, strict=True))
    return Timed(medians, statistics.median(share for others in shares for share in others))


def _medians(rounds: Sequence[Stages], others: list[float]) -> Stages:
    """Quiet rounds' medians of the encoder and of all steps together, the first token's among them."""
    encoder, *steps = STAGES
    return {
        ENCODER_STAGE: statistics.median(quiet_samples([each[encoder] for each in rounds], others)),
        STEPS_STAGE: statistics.median(quiet_samples([sum(each[step] for step in steps) for each in rounds], others)),
    }


def measure_speech_table(
    checkpoint: WhisperCheckpoint, target: Target, work: SizedWork, key: dict[str, Any], report: Report = quiet
) -> SpeechTable:
    """The table, timed here and now."""
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    geometry = speech_geometry(checkpoint, work)
    widths = probe_models(geometry)
    with tempfile.TemporaryDirectory(prefix="leanear-speech-") as name:
        dense = export_to_time(checkpoint, checkpoint.model, target, work, Path(name) / "dense")
        others = []
        for number, each in enumerate(widths[1:]):
            report(f"building model {number + 1} of {len(widths) - 1}", BUILDING * number / len(widths))
            model = model_of_widths(checkpoint, each)
            others.append(export_to_time(checkpoint, model, target, work, Path(name) / str(number)))
        stages, share = _time_beside(dense, others, target, work, report)
    rest, parts, fitted = fit_speech_parts(list(zip(widths, stages, strict=True)), geometry, target.graph_form)
    probes = tuple(
        SpeechProbe({kind: tuple(of[kind]) for kind in KINDS}, measured, said)
        for of, measured, said in zip(widths, stages, fitted, strict=True)
    )
    return SpeechTable(geometry, target.graph_form, rest, parts, probes, share, key)


def _time_beside(
    dense: dict[str, Any], others: Sequence[dict[str, Any]], target: Target, work: SizedWork, report: Report
) -> tuple[list[Stages], float]:
    """The dense model's stages and all others': a few at a time beside the dense one, whose own differences from one
    process to another are taken out of theirs, every time in other company.
    """
    generator = np.random.default_rng(0)
    company = [
        [int(number) for number in order[first : first + AT_A_TIME]]
        for order in (generator.permutation(len(others)) for _ in range(PROCESSES))
        for first in range(0, len(others), AT_A_TIME)
    ]
    found: list[tuple[list[int], Timed]] = []
    for place, numbers in enumerate(company):
        report(f"timing, process {place + 1} of {len(company)}", BUILDING + (1 - BUILDING) * place / len(company))
        models = [dense, *(others[number] for number in numbers)]
        found.append((numbers, time_speech_in_turn(models, target, work, share_s=SHARE_S, processes=1)))
    typical = {
        stage: statistics.median(timed.stages_ms[0][stage] for _, timed in found) for stage in found[0][1].stages_ms[0]
    }
    ratios: list[dict[str, list[float]]] = [{stage: [] for stage in typical} for _ in others]
    for numbers, timed in found:
        for number, stages in zip(numbers, timed.stages_ms[1:], strict=True):
            for stage, milliseconds in stages.items():
                ratios[number][stage].append(milliseconds / timed.stages_ms[0][stage])
    slim = [{stage: typical[stage] * statistics.median(of[stage]) for stage in typical} for of in ratios]
    return [typical, *slim], statistics.median(timed.others_share for _, timed in found)


def speech_table(
    checkpoint: WhisperCheckpoint,
    target: Target,
    work: SizedWork,
    *,
    cache: Path | None = None,
    keep_busy: bool = False,
    report: Report = quiet,
) -> SpeechTable:
    """The table of this device for models of the checkpoint's dimensions and this work: kept, or timed here (minutes).

    The arguments are those of `leanear.prune.latency_table.latency_table`.

    Raises:
        RuntimeUnavailable: the target's runtime does not work here.
        MeasurementFailed: a timing process ended without an answer.
    """
    kept = kept_speech_table(checkpoint, target, work, cache)
    if kept is not None:
        return kept
    key = table_key(speech_geometry(checkpoint, work), target)
    table = measure_speech_table(checkpoint, target, work, key, report)
    if table.others_share > BUSY_SHARE:
        report(f"other programs used {table.others_share:.0%} of the CPU meanwhile", 1.0)
    if keep_busy or table.others_share <= BUSY_SHARE:
        path = table_path(key, cache)
        write_json(path, speech_table_to_json(table))
        remember_kept(path)
    return table


def kept_speech_table(
    checkpoint: WhisperCheckpoint, target: Target, work: SizedWork, cache: Path | None = None
) -> SpeechTable | None:
    """The table that `speech_table` would take from the cache, or None where it would have to time."""
    key = table_key(speech_geometry(checkpoint, work), target)
    try:
        return read_speech_table(table_path(key, cache), key)
    except BadInput:
        return None


def read_speech_table(path: Path, key: dict[str, Any]) -> SpeechTable:
    """The table in `path`, which must have been timed for `key`.

    Raises:
        BadInput: the file is missing, malformed, or for something else.
    """
    value = read_json(path, SPEECH_TABLE_SCHEMA, TABLE_KEYS)
    if value["key"] != json.loads(json.dumps(key)):
        raise BadInput(f"{path}: key 'key' is another device, runtime, model or work than asked for")
    try:
        geometry = dict(value["key"]["geometry"])
        any_window = bool(geometry.pop("any_window"))
        numbers = {name: checked_whole(number) for name, number in geometry.items()}
        return SpeechTable(
            geometry=SpeechGeometry(**numbers, any_window=any_window),
            graph_form=str(value["key"]["graph_form"]),
            rest_ms=checked_number(value["rest_ms"]),
            parts={kind: {name: checked_number(value["parts"][kind][name]) for name in PARTS} for kind in KINDS},
            probes=tuple(_read_probe(probe) for probe in value["probes"]),
            others_share=checked_number(value["others_share"]),
            key=value["key"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: malformed table ({error})") from None


def _read_probe(probe: dict[str, Any]) -> SpeechProbe:
    widths = {kind: checked_site(probe["widths"][kind]) for kind in KINDS}
    return SpeechProbe(widths, checked_numbers(probe["measured_ms"]), checked_numbers(probe["fitted_ms"]))
