"""What is refused by settings and folders alone, before torch is imported, which takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from leanear.data.clips import check_labels
from leanear.data.dataset import Data, column_for
from leanear.data.metadata import metadata_file
from leanear.data.splits import read_splits
from leanear.families.asked import Asked, check_language
from leanear.families.checkpoint import checkpoint_folder, data_folder
from leanear.families.registry import is_artifact, labels_of, task_of
from leanear.outputs import check_replaceable
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object
from leanear.runtimes.tasks import SPEECH_TASK


def check_early(
    model: str,
    asked: Asked,
    data: Data | None = None,
    *,
    out: Path | None = None,
    marker: str = "",
    reads: Sequence[str] = (),
    calibration_clips: int = 1,
    seed: int = 0,
) -> None:
    """See that the model is there, has the language that is asked for, and that DATA can be what it is to be.

    model: MODEL, or an artifact folder. out, marker: as of `check_replaceable`. reads: the splits of DATA, or of a
    demo's own, whose clips are going to be read, "calibration" and "evaluation": their labels have to be the model's,
    and one transcript that is evaluated on has to have a word in it; the files are not opened.

    Raises:
        BadInput: it is not so.
    """
    if out is not None:
        check_replaceable(out, marker)
    own = is_artifact(Path(model))
    folder = Path(model) if own else checkpoint_folder(model)
    manifest = read_object(folder / "manifest.json") if own else {}
    task = str(manifest.get("task")) if own else task_of(folder)
    if task == SPEECH_TASK:
        check_language(folder, asked.language)
    else:
        asked.refuse_for(folder)
    if data is None and not reads:
        return
    labels = tuple(manifest.get("labels", ())) if own else labels_of(folder)
    splits = read_splits(data_folder(model, data), calibration_clips, seed, column_for(task), lambda _: None, labels)
    for name in reads if labels else ():
        check_labels(getattr(splits, name), labels)
    said = "".join(example.text or "" for example in splits.evaluation)
    if task == SPEECH_TASK and "evaluation" in reads and not any(map(str.isalnum, said)):
        table = metadata_file(splits.evaluation[0].path.parent) or data_folder(model, data)
        raise BadInput(f"{table}: no transcript to evaluate on has a word in it")
