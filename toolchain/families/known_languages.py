"""The languages of a Whisper by its settings alone: what it does not have is refused before anything is loaded."""

from pathlib import Path
from typing import Any

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object

LONGEST_CODE = 3  # letters; what is longer is a name, which the tokenizer knows
ANY = "auto"


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
