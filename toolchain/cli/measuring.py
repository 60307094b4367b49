"""`leanear export`, `bench`, `report`, `import` and `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leanear.benchmarks.formatting import NO_RATE_INTERVAL
from leanear.benchmarks.report.headline import headline_text
from leanear.benchmarks.results import brought_files, read_results
from leanear.cli.early import check_early
from leanear.cli.options import (
    asked_option,
    budget_option,
    data_option,
    finite,
    not_empty,
    runtime_option,
    seed_option,
    sustained_option,
    threads_option,
    window_option,
)
from leanear.cli.printing import as_typed, print_report
from leanear.cli.sections import command
from leanear.cli.voice import narrated
from leanear.deploy.benching import DEVICES_FILE, bench_artifacts, own_results
from leanear.deploy.export_choices import check_export
from leanear.outputs import check_file
from leanear.progress import Narrator
from leanear.runtimes.choose import GRAPH_PRECISIONS, PRECISIONS, graph_forms, graph_precision
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import plural
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.targets.target import read_target, with_precision

if TYPE_CHECKING:
    from leanear.data.dataset import Data


@command()
@click.argument("model", callback=not_empty)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the artifact.")
@click.option("--target", help="Export in the form and precision of this target (see `leanear targets`).")
@click.option(
    "--form",
    type=click.Choice(graph_forms()),
    help="Plain ONNX operators for any runtime, or the form that a runtime is fastest with.  [default: portable]",
)
@click.option(
    "--precision",
    type=click.Choice(GRAPH_PRECISIONS),
    help="int8: products in 8 bits, in ranges taken from --data, proved on golden clips of it; fp16: for --form "
    "tensorrt, products in half precision.  [default: the target's, or fp32]",
)
@window_option(f"{DEFAULT_WINDOW}; full for --form tensorrt")
@click.option("--word-timestamps", is_flag=True, help="Of a Whisper: its decoder gives what word times are taken from.")
@data_option
@asked_option
@seed_option
@narrated
@click.pass_obj
def export(narrator: Narrator, model: str, out: Path, data: Data | None, **options: Any) -> None:
    """Export MODEL (dense or slim) to ONNX, waveform in, and prove that it computes the same.

    A classifier is one graph, from waveform to logits; a Whisper is two, encoder (front end included) and decoder, with
    its vocabulary and all that decoding has to know.

    The proof runs clips of DATA (or, without it, made-up sounds) through the checkpoint and the graph.

    \b
    Examples:
      leanear export slim/ --form onnxruntime --out artifact/
      leanear export slim/ --target raspberrypi --out artifact/
    """
    options |= _form_and_precision(options.pop("target"), options["form"], options["precision"])
    check_early(model, options["asked"], data, window=options["window"], out=out, marker="manifest.json")
    check_export(model, data, **{name: options[name] for name in ("form", "precision", "window", "word_timestamps")})
    from leanear.deploy.exporting import export_checkpoint

    parity = export_checkpoint(model, out=out, data=data, narrator=narrator, **options)
    click.echo(f"{out}: {parity.graph_bytes / 1e6:.2f} MB; {parity.sentence}")


def _form_and_precision(target: str | None, form: str | None, precision: str | None) -> dict[str, str]:
    """Those of the target's graphs, where one is named, or as they were asked for."""
    if target is None:
        return {"form": form or "portable", "precision": precision or "fp32"}
    if form is not None:
        raise BadInput("--form and --target: give one of them, for a target has a form")
    device = with_precision(read_target(target), precision)
    return {"form": device.graph_form, "precision": graph_precision(device.precision)}


@command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A second artifact (the dense one), measured in turn with the first.",
)
@runtime_option
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="bf16 runs graphs of fp32, where the runtime has it; int8 is for graphs of 8-bit products; --against is"
    " measured in it too if its graphs are of it.  [default: what the graphs are of]",
)
@window_option("ARTIFACT's own; --against is always heard in its own")
@threads_option
@budget_option
@sustained_option
@data_option
@asked_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results.json"), show_default=True, help="Results file."
)
@seed_option
@narrated
@click.pass_obj
def bench(narrator: Narrator, artifact: Path, data: Data | None, out: Path, **options: Any) -> None:
    """Measure ARTIFACT here: latency in fresh processes, memory in its own pass, accuracy or word errors of DATA.

    Of speech: the stages of a window of a fixed number of tokens, memory from window to window, and transcripts.

    \b
    Example:
      leanear bench deployments/demo-ast/cpu/slim --against deployments/demo-ast/cpu/dense --out results.json
    """
    check_file(out)
    check_early(str(artifact), options["asked"], data)
    results = bench_artifacts(artifact, data=data, out=out, command=as_typed(), narrator=narrator, **options)
    click.echo(headline_text(results))
    click.echo(f"results: {out}")


@command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for report.md and report.html.  [default: beside RESULTS]"
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0.0),
    callback=finite,
    default=None,
    help="Gate: points of accuracy, or mAP, that the pruned model may lose, or of word error rate that it may add.",
)
@narrated
def report(results: Path, out: Path | None, max_drop: float | None) -> None:
    """Write the report of a deployment folder or a results file again.

    Word errors of transcripts that a device measured are counted here, and kept in the results file.

    \b
    Example:
      leanear report deployments/demo-ast/cpu
    """
    if not results.is_dir():
        read_results(results)
    elif not (results / DEVICES_FILE).is_file():
        own_results(results)
    from leanear.deploy.measuring import write_deployment_report

    print_report(write_deployment_report(results, out=out, max_drop=max_drop))


@command(name="import")
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...", type=click.Path(path_type=Path))
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The deployment folder.  [default: the one in deployments/ whose model was measured]",
)
@click.option(
    "--name", metavar="NAME", callback=not_empty, help="What to call the device.  [default: as its results name it]"
)
@click.option("--max-drop", type=click.FloatRange(min=0.0), callback=finite, help="The report's gate, in points.")
@narrated
def import_command(results: tuple[Path, ...], into: Path | None, name: str | None, max_drop: float | None) -> None:
    """Take in RESULTS that `leanear.pyz bench` left on a device, files or folders, and write the report of all devices.

    \b
    Examples:
      leanear import results/
      leanear import usb-stick/results/ --into deployments/demo-ast/raspberrypi --name kitchen
    """
    for path in results:
        brought_files(path)
    from leanear.deploy.delivering import import_results, require_all

    home = import_results(results, into=into, name=name, max_drop=max_drop)
    for each in home.outcomes:
        click.echo(f"{each.host}: {'measured' if each.status == 'ok' else each.status}, into {home.folder}")
    print_report(home.report)
    require_all(home.outcomes)


@command(name="eval")
@click.argument("model_or_artifact", callback=not_empty)
@data_option
@asked_option
@click.option("--split", type=click.Choice(("evaluation", "calibration")), default="evaluation", show_default=True)
@runtime_option
@click.option("--precision", type=click.Choice(PRECISIONS), help="For an artifact.  [default: what its graphs are of]")
@threads_option
@click.option(
    "--calibration-clips",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="With --split calibration: so many clips, at most.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Whisper: so many clips are decoded together, a row each; the words are those of one by one.",
)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@narrated
@click.pass_obj
def evaluate(narrator: Narrator, model_or_artifact: str, data: Data | None, as_json: bool, **options: Any) -> None:
    """Accuracy, mAP, or word error rate of a checkpoint (in torch) or an artifact (on its runtime) on clips of DATA.

    mAP, with the mean area under the ROC curve and d', is what a model gets whose clips may have several labels.

    Speech is decoded greedily, without rising temperatures, and compared after Whisper's own text normaliser.

    \b
    Examples:
      leanear eval demo-ast --json
      leanear eval demo-whisper
      leanear eval deployments/demo-ast/cpu/slim --data clips/ --json
    """
    reads = () if data is None else (options["split"],)  # what has a demo's labels may have its clips, too
    check_early(model_or_artifact, options["asked"], data, reads=reads, drawn=options)
    from leanear.evaluate.evaluation import evaluate as evaluate_model

    result = evaluate_model(model_or_artifact, data=data, narrator=narrator, **options)
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    if "word_error_rate" in result:
        interval = result["word_error_rate_interval_95"]
        low, high = interval or (0.0, 0.0)
        spread = f"95 % interval {100 * low:.2f} to {100 * high:.2f}" if interval else NO_RATE_INTERVAL
        kinds = (
            f"{result['substitutions']:,} replaced, {result['deletions']:,} left out, {result['insertions']:,} put in"
        )
        tries = f"; {result['second_tries']} of {plural(result['windows'], 'window')} heard again"
        click.echo(
            f"word error rate {100 * result['word_error_rate']:.2f} % of {result['reference_words']:,} words in "
            f"{plural(result['clips'], 'clip')} ({spread}): {kinds}{tries * bool(result['second_tries'])}"
            f"{_silent(result)}"
        )
        click.echo(f"metric: {result['metric']}")
        return
    if "mean_ap" in result:
        click.echo(_ranking_text(result))
        return
    low, high = result["accuracy_interval_95"]
    click.echo(
        f"{100 * result['accuracy']:.2f} % of {plural(result['clips'], 'clip')} right (95 % interval {100 * low:.2f} to"
        f" {100 * high:.2f}), cross-entropy {result['cross_entropy']:.4f}{_silent(result)}"
    )


def _silent(result: dict[str, Any]) -> str:
    """What is said of clips in which every sample is 0, which count like any other."""
    silent = result["silent_clips"]
    return f"; {silent} of them {'is' if silent == 1 else 'are'} silent" if silent else ""


def _ranking_text(result: dict[str, Any]) -> str:
    """What `eval` prints of a model whose clips may have several labels."""
    figures = []
    for key, name, scale, unit in (
        ("mean_ap", "mAP", 100, " %"),
        ("mean_auc", "mean area under ROC", 100, " %"),
        ("d_prime", "d'", 1, ""),
    ):
        ends = result[f"{key}_interval_95"]
        if result[key] is None:
            figures.append(f"{name} not finite")
            continue
        low, high = ("not finite" if end is None else f"{scale * end:.2f}" for end in ends)
        spread = NO_RATE_INTERVAL if ends == [None, None] else f"95 % interval {low} to {high}"
        figures.append(f"{name} {scale * result[key]:.2f}{unit} ({spread})")
    skipped = result["labels_skipped"]
    left_out = f" ({skipped} more that no clip has are left out)" if skipped else ""
    return (
        f"{', '.join(figures)}; means over {plural(result['labels'], 'label')}{left_out} on"
        f" {plural(result['clips'], 'clip')}, cross-entropy {result['cross_entropy']:.4f} nats{_silent(result)}"
    )
