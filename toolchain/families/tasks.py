"""What a model is for, told by its settings alone: nothing is loaded."""

from pathlib import Path

from leanear.families.registry import registered
from leanear.runtimes.artifact import read_artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object
from leanear.runtimes.tasks import SPEECH_TASK, classifier_task

SPELLINGS_FILE = "normalizer.json"


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an artifact, not a checkpoint."""
    return (folder / "manifest.json").is_file()


def task_of(folder: Path) -> str:
    """The task of the artifact or the checkpoint in `folder`; that of a model that leanear does not know is a guess.

    A classifier's is that of its `problem_type` and number of labels, as in `leanear.runtimes.tasks`.

    Raises:
        BadInput: the artifact is damaged, or config.json is not readable.
    """
    if is_artifact(folder):
        return read_artifact(folder).task
    config = read_object(folder / "config.json")
    family = registered(config.get("model_type"))
    if family is not None and family.writes_speech:
        return SPEECH_TASK
    names = config.get("id2label")
    return classifier_task(config.get("problem_type"), len(names) if isinstance(names, dict) else 2)


def labels_of(folder: Path) -> tuple[str, ...]:
    """The labels of the artifact or the checkpoint in `folder`; none of a speech model, or where it names none.

    Raises:
        BadInput: as `task_of`.
    """
    if is_artifact(folder):
        return read_artifact(folder).labels
    names = read_object(folder / "config.json").get("id2label")
    if task_of(folder) == SPEECH_TASK or not isinstance(names, dict):
        return ()
    return tuple(str(name) for name in names.values())


def require_speech(task: str, model: str, **given: object) -> None:
    """See that options of Whisper, by their names, are given to none but a model that writes down speech.

    Raises:
        BadInput: the model classifies.
    """
    for name, value in given.items() if task != SPEECH_TASK else ():
        if value:
            said = name.replace("_", "-") if value is True else f"{name.replace('_', '-')} {value}"
            raise BadInput(f"--{said}: it is for Whisper; {model} is a classifier")


def read_spellings(folder: Path) -> dict[str, str] | None:
    """The British spellings that Whisper's normaliser is to see as American ones, or None where there are none.

    folder: a checkpoint, a deployment, or an artifact of a deployment, whose checkpoint is then beside it.

    Raises:
        BadInput: the file is there, but holds no spellings.
    """
    for path in (folder / SPELLINGS_FILE, folder / "checkpoint" / SPELLINGS_FILE):
        if path.is_file():
            return _spellings(path)
    beside = folder.parent / "checkpoint" / SPELLINGS_FILE
    return _spellings(beside) if is_artifact(folder) and beside.is_file() else None


def _spellings(path: Path) -> dict[str, str]:
    spellings = read_object(path)
    if not all(isinstance(word, str) for word in spellings.values()):
        raise BadInput(f"{path}: not a map of spellings")
    return spellings
