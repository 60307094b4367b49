"""What the rounds of `real_whisper` say, as markdown: every engine, ours over the best peer, where the time goes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterator

from leanear.benchmarks.compare.compare_rows import ratio_of_sums
from leanear.data.word_errors import WordErrors, choose_normaliser, count_word_errors
from leanear.families.registry import read_spellings
from leanear.runtimes.clips import Clips

OURS, SLIM = "leanear, ", ", slim"
RUNTIMES = {"ONNX Runtime": "leanear, ONNX Runtime", "OpenVINO": "leanear, OpenVINO"}
GENAI = "OpenVINO GenAI"
HOWS = ("full", "auto", f"auto{SLIM}")
RATE_HZ = 16_000


class Ears:
    """Everything heard, by engine: seconds of each clip, medians over the rounds; texts of the first round."""

    def __init__(self, rows: list[dict[str, Any]], engines: list[str], clips: Clips, joined: str) -> None:
        self.clips, self.joined = clips, joined
        self.audio_s = {name: len(each) / RATE_HZ for name, each in zip(clips.names, clips.waveforms)}
        self.loads: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.heard: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if "clip" in row:
                self.heard[row["engine"]][row["clip"]].append(row)
            else:
                self.loads[row["engine"]].append(row)
        self.engines = [name for name in engines if set(self.heard[name]) >= set(clips.names)]

    def median(self, engine: str, clip: str, key: str = "seconds") -> float:
        return statistics.median(row[key] for row in self.heard[engine][clip])

    def rtf(self, engine: str, key: str = "seconds") -> float:
        """Time over audio, all clips."""
        return sum(self.median(engine, clip, key) for clip in self.clips.names) / sum(self.audio_s.values())

    def joined_rtf(self, engine: str) -> float | None:
        if not self.heard[engine][self.joined]:
            return None
        return self.median(engine, self.joined) / sum(self.audio_s.values())

    def ratio(self, ours: str, other: str, key: str = "seconds") -> str:
        """The time of one over that of the other, with a bootstrap's interval over clips."""
        pairs = [(self.median(other, clip, key), self.median(ours, clip, key)) for clip in self.clips.names]
        found = ratio_of_sums(*zip(*pairs))
        return f"{found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"

    def text(self, engine: str, clip: str) -> str:
        return str(self.heard[engine][clip][0]["text"])

    def total(self, engine: str, key: str) -> int:
        return sum(self.heard[engine][clip][0][key] for clip in self.clips.names)


def tables(ears: Ears, checkpoint: Path, threads: int) -> Iterator[str]:
    """The lines of all tables."""
    normaliser = choose_normaliser("en", read_spellings(checkpoint))
    rounds = [len(found) for engine in ears.engines for found in ears.heard[engine].values()]
    yield f"{len(ears.clips)} clips of {sum(ears.audio_s.values()):.0f} s, {threads} threads, greedy; each clip was"
    yield f"heard {min(rounds, default=0)} to {max(rounds, default=0)} times; {normaliser.name}\n"
    peers = [name for name in ears.engines if not name.startswith(OURS)]
    best = min(peers, key=ears.rtf, default=None)
    counted = {engine: _count(ears, engine, normaliser) for engine in ears.engines}
    yield from _main_table(ears, counted, best)
    yield from _joined_table(ears, normaliser)
    if best is not None:
        yield f"\nThe best peer is {best}."
    yield from _pairs(ears)
    yield from _shares(ears)


def _count(ears: Ears, engine: str, normaliser: Any) -> WordErrors:
    assert ears.clips.texts is not None
    return count_word_errors(ears.clips.texts, [ears.text(engine, clip) for clip in ears.clips.names], normaliser)


def _main_table(ears: Ears, counted: dict[str, WordErrors], best: str | None) -> Iterator[str]:
    """RTF and CPU are time of clock and of all threads over audio; second: of the clock, over that of the best peer."""
    yield "| engine | RTF | of the best peer | CPU | joined | WER, % | S / D / I | again | peak MB | load, s | MB |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for engine in ears.engines:
        joined, errors = ears.joined_rtf(engine), counted[engine]
        kinds = [sum(kind) for kind in (errors.substitutions, errors.deletions, errors.insertions)]
        tries = "" if not engine.startswith(OURS) else f"{ears.total(engine, 'second_tries')}"
        clips = [row for clip in ears.clips.names for row in ears.heard[engine][clip]]
        loads = ears.loads[engine]
        cells = [
            engine,
            f"{ears.rtf(engine):.4f}",
            ears.ratio(engine, best) if best and engine != best else "1",
            f"{ears.rtf(engine, 'cpu_s'):.4f}",
            "" if joined is None else f"{joined:.4f}",
            f"{100 * sum(kinds) / sum(errors.reference_words):.2f}",
            " / ".join(map(str, kinds)),
            tries,
            f"{statistics.median(row['peak_bytes'] for row in clips) / 1e6:.0f}",
            f"{statistics.median(row['load_s'] for row in loads):.2f}" if loads else "",
            f"{loads[-1]['model_bytes'] / 1e6:.0f}" if loads else "",
        ]
        yield f"| {' | '.join(cells)} |"
    versions = {found[-1]["library"]: found[-1]["version"] for found in ears.loads.values() if found}
    yield "\nVersions: " + "; ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _joined_table(ears: Ears, normaliser: Any) -> Iterator[str]:
    """All clips as one recording: time, over that of the fastest peer there, and words; where the time goes."""
    assert ears.clips.texts is not None
    engines = [name for name in ears.engines if ears.joined_rtf(name) is not None]
    times = {name: ears.median(name, ears.joined) for name in engines}
    best = min((times[name] for name in engines if not name.startswith(OURS)), default=None)
    if engines:
        yield "\n| all clips joined | RTF | of the best peer | encoder | steps | between | WER, % | S / D / I | again |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in engines:
        errors = count_word_errors([" ".join(ears.clips.texts)], [ears.text(name, ears.joined)], normaliser)
        kinds = [sum(kind) for kind in (errors.substitutions, errors.deletions, errors.insertions)]
        row = ears.heard[name][ears.joined][0]
        parts = [ears.median(name, ears.joined, key) for key in ("encode_s", "step_s") if key in row]
        parts += [times[name] - sum(parts)] if parts else []
        cells = [
            name,
            f"{times[name] / sum(ears.audio_s.values()):.5f}",
            "" if best is None else f"{times[name] / best:.3f}",
            *([f"{part:.2f} s" for part in parts] or [""] * 3),
            f"{100 * sum(kinds) / sum(errors.reference_words):.2f}",
            " / ".join(map(str, kinds)),
            f"{row.get('second_tries', '')}",
        ]
        yield f"| {' | '.join(cells)} |"


def _pairs(ears: Ears) -> Iterator[str]:
    """Ours over a peer or over ours, where both were heard."""
    pairs = [(f"{ours} fp32, full", f"{GENAI} fp32") for ours in RUNTIMES.values()]
    for ours in RUNTIMES.values():
        pairs += [(f"{ours} int8, {window}", f"{ours} fp32, {window}") for window in ("full", "auto")]
        pairs += [(f"{ours} {precision}, auto", f"{ours} {precision}, full") for precision in ("fp32", "int8")]
        pairs += [(f"{ours} {precision}, auto{SLIM}", f"{ours} {precision}, auto") for precision in ("fp32", "int8")]
    pairs += [(f"{ours} int8, {how}", f"{GENAI} int8") for ours in RUNTIMES.values() for how in HOWS]
    found = [(one, other) for one, other in pairs if one in ears.engines and other in ears.engines]
    if found:
        yield "\n| time of | over | ratio | of CPU time |\n|---|---|---:|---:|"
    for one, other in found:
        yield f"| {one} | {other} | {ears.ratio(one, other)} | {ears.ratio(one, other, 'cpu_s')} |"


def _shares(ears: Ears) -> Iterator[str]:
    """Where the time goes: the encoder with its front end, the decoder's steps, everything between."""
    measured = [name for name in ears.engines if "step_s" in ears.heard[name][ears.clips.names[0]][0]]
    if measured:
        yield "\n| RTF × 10⁴ of | encoder | steps | between | all |\n|---|---:|---:|---:|---:|"
    for name in measured:
        encode, step, whole = (1e4 * ears.rtf(name, key) for key in ("encode_s", "step_s", "seconds"))
        yield f"| {name} | {encode:.1f} | {step:.1f} | {whole - encode - step:.1f} | {whole:.1f} |"
