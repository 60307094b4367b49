"""Benchmarks of artifacts that are there already, and which of a folder's results are theirs; torch is not needed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from leanear.benchmarks.formatting import threads_text
from leanear.benchmarks.measure.measure import benchmark
from leanear.benchmarks.report.precision_section import read_precision
from leanear.benchmarks.results import Results, read_results, results_files, why_foreign
from leanear.data.clips import read_examples_for
from leanear.data.dataset import Data, as_folder, column_for
from leanear.data.splits import read_splits
from leanear.evaluate.speech_evaluation import count_results_word_errors
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.registry import read_spellings
from leanear.progress import Narrator, counted
from leanear.runtimes.artifact import Artifact, read_artifact
from leanear.runtimes.choose import graph_precision
from leanear.runtimes.clips import clips_in_16_bits, write_clips
from leanear.runtimes.errors import BadInput
from leanear.runtimes.sessions import SessionOptions, own_precision

CALIBRATION_CLIPS = 256  # what `deploy` keeps out of the evaluation where DATA has no split folders
DEVICES_FILE, PRECISION_FILE = "devices.json", "precision.json"


def bench_artifacts(  # noqa: PLR0913, what every stage is given
    artifact: Path,
    *,
    against: Path | None,
    runtime: str,
    precision: str | None,
    threads: int,
    budget_s: float,
    sustained_s: float = 0.0,
    window: str | None = None,
    data: Data | None,
    out: Path,
    seed: int,
    command: Sequence[str],
    narrator: Narrator,
    asked: Asked = NOTHING_ASKED,
) -> Results:
    """Results of `artifact`, in turn with `against` where it is given, written to `out`; accuracy only with DATA.

    precision: of `artifact`, and of `against` where its graphs are of it; None, or where they are not: what the graphs
    of each are of. Of speech, transcripts with their word errors stand for the accuracy. asked: of a Whisper, where
    its clips are to be transcribed otherwise than by itself; window: of `artifact`, "full", "auto" or seconds, None:
    its own, as `against` has.

    Raises:
        LeanearError: an artifact, the data or the runtime is not usable, or a measurement failed.
    """
    slim = read_artifact(artifact)
    chosen = precision or own_precision(slim, runtime)
    dense = None if against is None else _precision_beside(read_artifact(against), runtime, precision)
    said = chosen if dense in (None, chosen) else f"{dense} against {chosen}"
    with tempfile.TemporaryDirectory(prefix="leanear-clips-") as name:
        clips_path = None
        if data is not None:
            folder = as_folder(data)
            splits = read_splits(folder, CALIBRATION_CLIPS, seed, column_for(slim.task), labels=slim.labels)
            clips_path = Path(name) / "evaluation.npz"
            with narrator.step(f"reading {len(splits.evaluation)} evaluation clips") as report:
                told = counted(report)
                clips = read_examples_for(slim.task, splits.evaluation, slim.labels, slim.sample_rate_hz, told)
                write_clips(clips_path, clips_in_16_bits(clips)[0])
        with narrator.step(f"measuring on {runtime}, {said}, {threads_text(threads)}") as report:
            benchmark(
                against,
                artifact,
                clips_path,
                runtime,
                SessionOptions(threads=threads, precision=chosen),
                out,
                dense_precision=dense,
                budget_s=budget_s,
                sustained_s=sustained_s,
                window=window,
                command=command,
                progress=report,
                asked=asked.as_json(),
            )
    return count_results_word_errors(out, read_spellings(artifact))


def _precision_beside(artifact: Artifact, runtime: str, asked: str | None) -> str:
    """The precision that was asked for of another artifact, where this one's graphs are of it; else this one's own."""
    same = asked is not None and artifact.precisions == {graph_precision(asked)}
    return asked if asked is not None and same else own_precision(artifact, runtime)


def own_results(folder: Path) -> Path:
    """Of the results of the folder's artifacts those in what ships, of these those of this machine, the newest.

    Raises:
        BadInput: there are none.
    """
    found = {path: why_foreign(path, folder) for path in results_files(folder)}
    own = [path for path, why in found.items() if not why]
    if not own:
        why = next(iter(found.values()), f"{folder}: no results/*.json in it")
        raise BadInput(f"{why}; `leanear deploy` or `leanear bench` measures the models that are there")
    ships = read_precision(folder / PRECISION_FILE).ships if (folder / PRECISION_FILE).is_file() else "fp32"
    shipped = [path for path in own if read_results(path).precisions["slim"] == ships]
    return max(shipped or own, key=lambda path: (path.parent == folder / "results", path.stat().st_mtime_ns))
