"""What a Whisper is asked for in place of what is its own, a task and a language, and what its settings rule out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object
from leanear.runtimes.records import check
from leanear.runtimes.tasks import AskedTask

LONGEST_CODE = 3  # letters; what is longer is a name, which the tokenizer knows
ANY = "auto"


@dataclass(frozen=True)
class Asked:
    """Task and language that are asked for; None leaves the model's own.

    task: "transcribe" or "translate"; language: a code such as "en", or "auto": whichever is heard.

    Raises:
        BadInput: another task, or a language that is no text.
    """

    task: AskedTask | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        check(self, "a Whisper")

    def as_json(self) -> dict[str, str]:
        """What is asked for, by name, and nothing else: part of the identity of all that is made or measured so."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def flags(self) -> list[str]:
        """As a command line has it."""
        return [word for name, value in self.as_json().items() for word in (f"--{name}", value)]

    def refuse_for(self, classifier: object) -> None:
        """Nothing, where nothing is asked for.

        Raises:
            BadInput: something is, of a model that is no Whisper.
        """
        if self.as_json():
            raise BadInput(f"--task and --language are for Whisper; {classifier} is a classifier")


NOTHING_ASKED = Asked()


def check_language(folder: Path, language: str | None) -> None:
    """Refuse a language code that the settings of a checkpoint or an artifact rule out; the rest is seen when it loads.

    Raises:
        BadInput: the model does not have it.
    """
    code = "" if language is None else language.lower()
    if not code or code == ANY or len(code) > LONGEST_CODE:
        return
    manifest = folder / "manifest.json"
    multilingual, known = _of_artifact(manifest) if manifest.is_file() else _of_checkpoint(folder)
    if multilingual is False and code != "en":
        raise BadInput(f"{folder}: the model knows English alone, not {language!r}")
    if multilingual is not False and known and code not in known:
        raise BadInput(f"{folder}: the model has no language {language!r}; it has {', '.join(known)}")


def _of_artifact(path: Path) -> tuple[bool | None, list[str]]:
    """Whether it is multilingual, None where that is not said, and its codes."""
    decoding = read_object(path).get("decoding")
    if not isinstance(decoding, dict):
        return None, []
    return decoding.get("multilingual"), sorted(decoding.get("languages") or ())


def _of_checkpoint(folder: Path) -> tuple[bool | None, list[str]]:
    path = folder / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    tokens = settings.get("lang_to_id")
    if not isinstance(tokens, dict):
        tokens = _added_tokens(folder / "tokenizer.json")
    codes = [str(token).removeprefix("<|").removesuffix("|>") for token in tokens]
    return settings.get("is_multilingual"), sorted(code for code in codes if 1 < len(code) <= LONGEST_CODE)


def _added_tokens(path: Path) -> list[str]:
    added: Any = read_object(path).get("added_tokens") if path.is_file() else None
    return [str(each.get("content")) for each in added or () if isinstance(each, dict)]
