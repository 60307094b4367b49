"""What is refused by settings and folders alone, before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from leanear.data.dataset import Data, Reader, as_folder, column_for
from leanear.data.splits import require_audio
from leanear.families.asked import Asked
from leanear.families.checkpoint import checkpoint_folder
from leanear.families.known_languages import check_language
from leanear.families.tasks import is_artifact, task_of
from leanear.runtimes.files import read_object
from leanear.runtimes.process.notes import note
from leanear.runtimes.tasks import SPEECH_TASK


def check_early(model: str, asked: Asked, data: Data | None = None) -> None:
    """See that the model is there, has the language that is asked for, and that there is audio in DATA.

    model: MODEL, or an artifact folder.

    Raises:
        BadInput: it is not so.
    """
    folder = Path(model) if is_artifact(Path(model)) else checkpoint_folder(model)
    task = read_object(folder / "manifest.json").get("task") if is_artifact(folder) else task_of(folder)
    if task == SPEECH_TASK:
        check_language(folder, asked.language)
    else:
        asked.refuse_for(folder)
    if data is not None:
        require_audio(Reader(as_folder(data), column_for(str(task)), note))
