"""Times whole Whispers of chosen widths on this device, stage by stage, and makes the latency table of them."""

import functools
import itertools
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.analysis import disturbed
from leanear.benchmarks.inference import STAGES
from leanear.benchmarks.measure.processes import absolute, part_of, run_fresh
from leanear.benchmarks.measure.rounds import FEWEST_QUIET, QUIET_SHARE
from leanear.benchmarks.summary import summarise_latency
from leanear.export.whisper.graph import cache_sizes, export_whisper, observe_encoder
from leanear.families import whisper
from leanear.families.slimming import first_channels_state
from leanear.families.whisper import WhisperCheckpoint
from leanear.plan import first_channels
from leanear.progress import Report, quiet
from leanear.runtimes.choose import graph_precision, require_runtime
from leanear.runtimes.errors import MeasurementFailed
from leanear.runtimes.manifest import MANIFEST_SCHEMA, NO_FILE, NO_GOLDEN, SpeechManifest, SpeechOutput, waveform_input
from leanear.runtimes.records import as_json, read
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.tasks import SPEECH_TASK
from leanear.targets.target import Target
from leanear.timing.block_timing import InTurn, equal_widths, ragged_widths
from leanear.timing.latency_table import Widths
from leanear.timing.speech_latency import (
    ENCODER_STAGE,
    KINDS,
    STEPS_STAGE,
    SpeechGeometry,
    SpeechProbe,
    SpeechTable,
    fit_speech_parts,
)
from leanear.timing.speech_work import SizedWork, SpeechWork, sized_work
from leanear.timing.table_file import FeedForwardTable, TableSource, fit_feed_forward, table_key
from leanear.timing.table_file import probe_widths as channels_to_probe

WORKER = "leanear.benchmarks.measure.speech_rounds"
PROCESSES, ROUNDS, SHARE_S = 4, 5, 15.0  # of each process
MOST_AT_A_TIME, MOST_BYTES = 7, 4e9  # models in a process beside the dense one, and of memory that all of them take
UNDISTURBED = 0.25  # quantile
BUILDING = 0.15  # of the progress bar
STAGES_TIMED = (ENCODER_STAGE, STEPS_STAGE)

Stages = dict[str, float]


@dataclass(frozen=True)
class Rounds:
    """Milliseconds of every model's stages, round by round, and what others used of all cores in each of its turns.

    A step takes as long as reading all weights does. Where other machines share the memory, how fast that is changes
    by a third within seconds, which nothing here shows. So a model is compared with the first one of the same round,
    and of the first one's rounds the least disturbed count.
    """

    stages: tuple[tuple[Stages, ...], ...]
    others: tuple[tuple[float, ...], ...]

    @property
    def others_share(self) -> float:
        """What others used, the median of all turns."""
        return statistics.median(share for shares in self.others for share in shares)

    @property
    def of_first(self) -> list[Stages]:
        """The first model's rounds, without those that others disturbed where enough remain."""
        return [self.stages[0][number] for number in self._quiet(0)]

    def ratios(self, model: int) -> list[Stages]:
        """A model's stages over the first one's of the same round, without rounds that others disturbed."""
        pairs = [(self.stages[model][number], self.stages[0][number]) for number in self._quiet(model)]
        return [{stage: slim[stage] / first[stage] for stage in slim} for slim, first in pairs]

    def _quiet(self, model: int) -> list[int]:
        worst = [max(pair) for pair in zip(self.others[0], self.others[model], strict=True)]
        quiet = [number for number, share in enumerate(worst) if share <= QUIET_SHARE]
        return quiet if len(quiet) >= FEWEST_QUIET else list(range(len(worst)))


def undisturbed(rounds: Sequence[Stages]) -> Stages:
    """What each stage takes where nothing slows it down: the lower quartile of its rounds."""
    return {stage: float(np.quantile([each[stage] for each in rounds], UNDISTURBED)) for stage in rounds[0]}


def beside(first: Stages, ratios: Sequence[Stages]) -> Stages:
    """What a model's stages take where the first one's take this long: the median ratio of the two."""
    return {stage: first[stage] * statistics.median(each[stage] for each in ratios) for stage in first}


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
    heads, half, equal = geometry.heads, geometry.heads // 2, functools.partial(equal_widths, geometry)
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
    sites = whisper.attention_sites(checkpoint.model)
    return whisper.slim_model(checkpoint.model, tuple(first_channels(site, widths[site.kind]) for site in sites))


def model_of_channels(checkpoint: WhisperCheckpoint, widths: Mapping[str, int]) -> Any:
    """A slim model with so many hidden channels in every feed-forward block of each kind: to be timed, not used."""
    sites = whisper.feed_forward_sites(checkpoint.model)
    states = {site.name: first_channels_state(site, widths[site.kind]) for site in sites}
    return whisper.slim_model(checkpoint.model, whisper.dense_plan(checkpoint.model).sites, None, states)


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
    manifest = SpeechManifest(
        schema=MANIFEST_SCHEMA,
        family="whisper",
        task=SPEECH_TASK,
        model={},
        graphs=exported.facts(),
        input=waveform_input(int(extractor.sampling_rate), work.full_samples),
        output=SpeechOutput("logits", "float32", ("rows", int(model.config.vocab_size)), exported.stages),
        vocabulary=NO_FILE,
        voice=None,
        decoding=whisper.decoding_settings(checkpoint),
        embedding=exported.embedding,
        cache=cache_sizes(model, target.graph_form, observed=observed),
        golden=NO_GOLDEN,
        parity=None,
        left_in_float32=(),
        made_from={},
    )
    return {"folder": absolute(folder), "manifest": as_json(manifest)}


def time_speech_in_turn(
    models: Sequence[dict[str, Any]],
    target: Target,
    work: SizedWork,
    report: Report = quiet,
    share_s: float = PROCESSES * SHARE_S,
    processes: int = PROCESSES,
) -> Rounds:
    """Every model's stages, from so many processes' rounds, in which all of them take turns.

    Raises:
        MeasurementFailed: a process ended without an answer.
    """
    request = {
        "models": list(models),
        "runtime": target.runtime,
        "threads": target.threads,
        "precision": target.precision,
        "samples": work.clip_samples,
        "window": work.window_samples,
        "prompt": list(work.prompt),
        "tokens": work.tokens,
        "text_tokens": read(SpeechManifest, models[0]["manifest"]).decoding.text_tokens,
        "rounds": ROUNDS,
        "share_s": share_s / processes,
    }
    stages: list[list[Stages]] = [[] for _ in models]
    others: list[list[float]] = [[] for _ in models]
    for number in range(processes):
        told = part_of(report, number / processes, (number + 1) / processes, "timing: ")
        outcome = run_fresh(WORKER, request, told)
        if outcome.answer is None:
            raise MeasurementFailed(f"timing speech models on {target.runtime}: {outcome.reason}")
        for place, of_model in enumerate(outcome.answer["stages_ms"]):
            stages[place] += [_encoder_and_steps(each) for each in of_model]
            others[place] += outcome.answer["others_share"][place]
    return Rounds(tuple(map(tuple, stages)), tuple(map(tuple, others)))


def time_dense_and_slim(
    models: Sequence[dict[str, Any]], target: Target, work: SizedWork, report: Report, share_s: float
) -> InTurn:
    """Milliseconds of one inference of two models, the dense one first, which take turns."""
    rounds = time_speech_in_turn(models, target, work, report, share_s)
    dense, ratios = undisturbed(rounds.of_first), rounds.ratios(1)
    spread = summarise_latency([sum(beside(dense, [each]).values()) for each in ratios]).cv
    doubt = disturbed(spread, rounds.others_share, "meanwhile")
    return InTurn(sum(dense.values()), sum(beside(dense, ratios).values()), doubt)


def _encoder_and_steps(stages: Stages) -> Stages:
    """The encoder's milliseconds, and those of all steps together, the first token's among them."""
    encoder, *steps = STAGES
    return {ENCODER_STAGE: stages[encoder], STEPS_STAGE: sum(stages[step] for step in steps)}


def speech_table(checkpoint: WhisperCheckpoint, target: Target, work: SizedWork) -> TableSource[SpeechTable]:
    """The table of this device for models of the checkpoint's dimensions and this work."""
    key = table_key(speech_geometry(checkpoint, work), target)
    return TableSource(SpeechTable, key, functools.partial(measure_speech_table, checkpoint, target, work, key))


def speech_feed_forward_table(
    checkpoint: WhisperCheckpoint, target: Target, work: SizedWork
) -> TableSource[FeedForwardTable]:
    """The same of feed-forward blocks: only where these are pruned, as it takes a minute more."""
    key = table_key(speech_geometry(checkpoint, work), target, "feed-forward")
    measure = functools.partial(measure_speech_feed_forward, checkpoint, target, work, key)
    return TableSource(FeedForwardTable, key, measure)


def measure_speech_table(
    checkpoint: WhisperCheckpoint, target: Target, work: SizedWork, key: dict[str, Any], report: Report = quiet
) -> SpeechTable:
    """The table, timed here and now."""
    geometry = speech_geometry(checkpoint, work)
    widths = probe_models(geometry)
    models = (model_of_widths(checkpoint, each) for each in widths[1:])
    stages, share = _time_models(checkpoint, models, len(widths) - 1, target, work, report)
    rest, parts, fitted = fit_speech_parts(list(zip(widths, stages, strict=True)), geometry, target.graph_form)
    probes = tuple(
        SpeechProbe({kind: tuple(of[kind]) for kind in KINDS}, measured, said)
        for of, measured, said in zip(widths, stages, fitted, strict=True)
    )
    return SpeechTable(geometry, target.graph_form, rest, parts, probes, share, key)


def measure_speech_feed_forward(
    checkpoint: WhisperCheckpoint, target: Target, work: SizedWork, key: dict[str, Any], report: Report = quiet
) -> FeedForwardTable:
    """The table of feed-forward blocks, timed here and now: the encoder's in its stage, the decoder's in its steps."""
    geometry = speech_geometry(checkpoint, work)
    layers = {"encoder": geometry.encoder_layers, "decoder": geometry.decoder_layers}
    full = (geometry.encoder_feed_forward_width, geometry.decoder_feed_forward_width)
    widths = [*itertools.zip_longest(*map(channels_to_probe, full), fillvalue=0), (0, 0)]
    models = (model_of_channels(checkpoint, dict(zip(layers, each, strict=True))) for each in widths[1:])
    stages, share = _time_models(checkpoint, models, len(widths) - 1, target, work, report)
    parts, probes = {}, []
    for (kind, blocks), stage, of_kind in zip(layers.items(), STAGES_TIMED, zip(*widths, strict=True), strict=True):
        timed = [(width, found[stage]) for width, found in zip(of_kind, stages, strict=True)]
        parts[kind], said = fit_feed_forward(kind, timed, blocks, has_rest=True)
        probes += said
    kinds = tuple(kind for kind, count in layers.items() for _ in range(count))
    return FeedForwardTable(sum(stages[0].values()), kinds, parts, tuple(probes), share, key)


def _time_models(
    checkpoint: WhisperCheckpoint, models: Iterable[Any], count: int, target: Target, work: SizedWork, report: Report
) -> tuple[list[Stages], float]:
    """The stages of the dense model and of so many slim ones, and what others used of all cores meanwhile."""
    require_runtime(target.runtime, SessionOptions(target.threads, target.precision))
    with tempfile.TemporaryDirectory(prefix="leanear-speech-") as name:
        dense = export_to_time(checkpoint, checkpoint.model, target, work, Path(name) / "dense")
        others = []
        for number, model in enumerate(models):
            report(f"building model {number + 1} of {count}", BUILDING * number / count)
            others.append(export_to_time(checkpoint, model, target, work, Path(name) / str(number)))
        return _time_beside(dense, others, target, work, report)


def _time_beside(
    dense: dict[str, Any], others: Sequence[dict[str, Any]], target: Target, work: SizedWork, report: Report
) -> tuple[list[Stages], float]:
    """The dense model's stages and all others': a few at a time beside the dense one, every time in other company."""
    generator = np.random.default_rng(0)
    each = 2 * sum(path.stat().st_size for path in Path(dense["folder"]).iterdir())
    at_a_time = max(1, min(MOST_AT_A_TIME, int(MOST_BYTES / each) - 1))
    company = [
        [int(number) for number in order[first : first + at_a_time]]
        for order in (generator.permutation(len(others)) for _ in range(PROCESSES))
        for first in range(0, len(others), at_a_time)
    ]
    of_dense: list[Stages] = []
    ratios: list[list[Stages]] = [[] for _ in others]
    shares = []
    for place, numbers in enumerate(company):
        report(f"timing, process {place + 1} of {len(company)}", BUILDING + (1 - BUILDING) * place / len(company))
        models = [dense, *(others[number] for number in numbers)]
        rounds = time_speech_in_turn(models, target, work, share_s=SHARE_S, processes=1)
        of_dense += rounds.of_first
        shares.append(rounds.others_share)
        for model, number in enumerate(numbers, start=1):
            ratios[number] += rounds.ratios(model)
    typical = undisturbed(of_dense)
    return [typical, *(beside(typical, of_model) for of_model in ratios)], statistics.median(shares)
