"""What is refused by settings and folders alone, before torch is imported, which takes seconds."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from leanear.runtimes.speech.encoder_windows import check_window_choice
from leanear.runtimes.tasks import SPEECH_TASK

BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")  # what Whisper's normaliser takes for no words
FIRST_CLIP = {"calibration_clips": 1, "seed": 0}


def check_early(
    model: str,
    asked: Asked,
    data: Data | None = None,
    *,
    window: str | None = None,
    out: Path | None = None,
    marker: str = "",
    reads: Sequence[str] = (),
    drawn: Mapping[str, Any] = FIRST_CLIP,
) -> None:
    """See that the model is there, has the language and the window asked for, and that DATA can be what it is to be.

    model: MODEL, or an artifact folder. out, marker: as of `check_replaceable`. reads: the splits of DATA, or of a
    demo's own, whose clips are going to be read, "calibration" and "evaluation": their labels have to be the model's,
    and one transcript of each has to have a word in it; the files are not opened. drawn: flags that say
    which clips they are.

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
        if window is not None and not own:
            positions = read_object(folder / "config.json").get("max_source_positions")
            check_window_choice(window, positions / 50 if isinstance(positions, int) else math.inf)  # 50 a second
    else:
        asked.refuse_for(folder)
    if data is None and not reads:
        return
    labels = tuple(manifest.get("labels", ())) if own else labels_of(folder)
    clips, seed = drawn["calibration_clips"], drawn["seed"]
    splits = read_splits(data_folder(model, data), clips, seed, column_for(task), lambda _: None, labels)
    for name in reads if labels else ():
        check_labels(getattr(splits, name), labels)
    for name in reads if task == SPEECH_TASK else ():
        examples = getattr(splits, name)
        if not any(map(str.isalnum, "".join(BRACKETED.sub("", example.text or "") for example in examples))):
            table = metadata_file(examples[0].path.parent) or data_folder(model, data)
            raise BadInput(f"{table}: no transcript of the {name} clips has a word in it, outside of brackets")
