"""A page of every kind that a reader may meet, made from results that are changed to what is to be shown."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leanear.benchmarks.compare.compare import compare
from leanear.benchmarks.compare.compare_page import comparison_page
from leanear.benchmarks.report.devices_report import DeviceEntry, compose_devices_report
from leanear.benchmarks.report.report import write_page, write_report
from leanear.benchmarks.results import Results, write_results
from leanear.evaluate.measured_loss import MeasuredLoss
from leanear.prune.document import CurvePoint, Loss
from leanear.prune.exploring import Exploration, Point
from leanear.prune.exploring import _page as explore_page
from leanear.prune.notes import loss_section
from leanear.studies.comparison_page import comparison_report
from tests.toolchain.pruning_documents import NOTHING_LOST, pruning_document, round_of
from tests.toolchain.studies.test_comparison_page import content as comparison_content
from tests.toolchain.studies.test_comparison_page import document as methods_document

CLIPS = 2000
LABELS = ["dog", "rain", "a baby that cries at night", "chainsaw"]
AST_PLAN = {
    "schema": "leanear-plan-1",
    "dense_head_width": 64,
    "sparsity": 0.5,
    "recipe": {"scheme": "channels", "calibration_clips": 256},
    "sites": [
        {
            "name": f"encoder.layer.{layer}.attention",
            "dense_heads": 12,
            "heads": [
                {"head": head, "query_key": list(range(3 + 5 * head)), "value_output": list(range(64 - 5 * layer))}
                for head in range(12)
                if (layer + head) % 7
            ],
        }
        for layer in range(12)
    ],
}
LOSS = Loss(
    rounds=(round_of(0.02, 0.03, {f"layers.{n}.attention": (10.0**-n, 2 * 10.0**-n) for n in range(2, 6)}),),
    curve=tuple(CurvePoint(share / 10, 10 ** (share / 2 - 5.5)) for share in range(1, 10)),
    finished=NOTHING_LOST,
)


def changed(
    document: dict[str, Any], *, clips: int = CLIPS, lost: int = 0, dense_ms: float = 12.0, slim_ms: float = 8.0
) -> dict[str, Any]:
    """Results of a classifier on so many clips, `lost` of which slim alone gets wrong, on a machine that was quiet."""
    found = copy.deepcopy(document)
    truth = [number % 4 for number in range(clips)]
    dense = [label if number % 20 else (label + 1) % 4 for number, label in enumerate(truth)]
    slim, wanted = list(dense), lost
    for number, label in enumerate(truth):
        if wanted and dense[number] == label:
            slim[number], wanted = (label + 1 + number % 3) % 4, wanted - 1
    accuracy = found["accuracy"]
    accuracy.update(label_ids=truth, labels=LABELS, names=[f"clip-{number:04}.wav" for number in range(clips)])
    accuracy["kl_dense_slim_nats"] = [0.001] * clips
    for role, answers in (("dense", dense), ("slim", slim)):
        accuracy["roles"][role].update(predicted_ids=answers, cross_entropy_nats=[0.2] * clips)
    found["clips"].update(clips=clips)
    template, order = found["latency"]["repeats"][0], ["dense", "slim", "slim", "dense"] * 2
    generator = np.random.default_rng(0)
    found["latency"]["order"] = order
    found["latency"]["repeats"] = [
        {
            **template,
            "role": role,
            "repeat": place // 2,
            "samples_ms": [
                float(ms) for ms in {"dense": dense_ms, "slim": slim_ms}[role] + generator.gamma(2, 0.1, 170)
            ],
        }
        for place, role in enumerate(order)
    ]
    found["device_before"]["cpu_busy_share"] = 0.01
    for role, size in (("dense", 340_000_000), ("slim", 250_000_000)):
        found["memory"]["roles"][role]["peak_rss_bytes"] += size
        for graph in found["artifacts"][role]["graphs"].values():
            graph["bytes"] = size
    return found


def disturbed(document: dict[str, Any]) -> dict[str, Any]:
    """The same on a machine that others used, and that was slow now and then."""
    found = changed(document)
    found["device_before"]["cpu_busy_share"] = 0.6
    for repeat in found["latency"]["repeats"]:
        repeat["samples_ms"][::3] = [3 * ms for ms in repeat["samples_ms"][::3]]
    return found


def alone(document: dict[str, Any]) -> dict[str, Any]:
    """The same of one artifact by itself."""
    found = changed(document)
    found["latency"]["order"] = ["slim"] * 4
    found["latency"]["repeats"] = [each for each in found["latency"]["repeats"] if each["role"] == "slim"]
    for number, each in enumerate(found["latency"]["repeats"]):
        each["repeat"] = number
    for part in (found["artifacts"], found["options"]["precisions"], found["latency"]["session"]):
        part.pop("dense")
    for part in (found["memory"], found["accuracy"]):
        part["roles"].pop("dense")
    found["accuracy"]["kl_dense_slim_nats"] = None
    return found


def _exploration() -> Exploration:
    """The content of an explore.json of a model in a folder with a long name."""
    measured = MeasuredLoss(50, 0.02, 4, 5, 50, None, None, None)
    facts = {
        "model": "/home/somebody/models/a-long-name-of-a-run/checkpoint-4000",
        "metric": "accuracy",
        "prune": "attention",
        "matters_nats": 0.01,
        "knee": 0.7,
        "begins_at": 0.62,
        "held_out_clips": 50,
        "parameters_dense": 86_000_000,
        "macs_dense": 4.2e10,
        "latency_ms_dense": 310.0,
        "command": "leanear prune /home/somebody/models/a-long-name-of-a-run/checkpoint-4000 --sparsity 0.62",
    }
    points = (
        Point(
            sparsity=share / 10,
            loss=10 ** (share / 2 - 5.5),
            parameters=86_000_000 - 2_800_000 * share,
            macs=4.2e10 - 1e9 * share,
            latency_ms=310.0 - 10 * share,
            measured=measured if share in (3, 5, 7) else None,
        )
        for share in range(1, 10)
    )
    return Exploration(points=tuple(points), **facts)


def pages(results: Results, speech: dict[str, Any], speech_plan: dict[str, Any]) -> dict[str, Callable[[Path], Path]]:
    """By its name, what writes a page into a folder and says where it is."""
    document = results.document

    def report(content: dict[str, Any], **given: Any) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            write_results(folder / "results.json", content)
            options = {"plan": AST_PLAN, "loss": loss_section(pruning_document(LOSS)), **given}
            return write_report(folder / "results.json", folder, **options).html

        return write

    def devices(entries: list[DeviceEntry], by_hand: tuple[str, ...] = ()) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            said = {"model": str(folder / "a" / "model"), "target": "raspberrypi"}
            report = compose_devices_report("model for raspberrypi", "raspberrypi", entries, said, by_hand)
            return write_page(report, folder, "report")[1]

        return write

    def compared(folder: Path) -> Path:
        for name, content in (("a", changed(document)), ("b", changed(document, lost=60, slim_ms=9.0))):
            write_results(folder / f"{name}.json", content)
        return write_page(comparison_page(compare(folder / "a.json", folder / "b.json"), False), folder, "compare")[1]

    findings = [{"name": "tensorrt", "ok": False, "text": "not installed; pip install tensorrt", "remedy": ""}]
    doctor = {"device": {"board": "NVIDIA Jetson Orin Nano", "libraries": {"numpy": "1.26.4"}}, "findings": findings}
    there = [Results(results.path, changed(document, slim_ms=slim_ms)) for slim_ms in (6.0, 70.0)]
    return {
        "win": report(changed(document), max_drop=1.0),
        "loss": report(changed(document, lost=8), max_drop=1.0),
        "undecided": report(changed(document, clips=10), max_drop=1.0),
        "gate-missed": report(changed(document, lost=100), max_drop=1.0),
        "disturbed": report(disturbed(document)),
        "alone": report(alone(document)),
        "speech": report(speech, plan=speech_plan),
        "without-host": devices(
            [], ("copy the folder there", "python3 leanear.pyz doctor", "python3 leanear.pyz bench")
        ),
        "three-devices": devices(
            [
                DeviceEntry("pi@kitchen.local", "ok", measured=there[0], report="devices/kitchen/report.html"),
                DeviceEntry("pi@attic.local", "ok", measured=there[1], notes=("its clock is 1 h behind",)),
                DeviceEntry("jetson", "runtime absent", "tensorrt: not installed", ("E: x" * 40,), doctor=doctor),
            ]
        ),
        "compare": compared,
        "methods": lambda folder: write_page(
            comparison_report(comparison_content(methods_document())), folder, "comparison"
        )[1],
        "explore": lambda folder: write_page(explore_page(_exploration()), folder, "explore")[1],
    }
