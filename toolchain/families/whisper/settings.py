"""What a Whisper is asked for, from settings of every age, in one order.

First generation_config.json's own keys, then `forced_decoder_ids` (of generation_config.json, else of config.json; only
where neither a task nor a language is set, as in transformers' `generate`), then config.json, then the tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_object

END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
PREVIOUS = "<|startofprev|>"  # text from before follows
TRANSCRIBE, TRANSLATE = "<|transcribe|>", "<|translate|>"
TASK_TOKENS = {"transcribe": TRANSCRIBE, "translate": TRANSLATE}
ENGLISH_ONLY_END, MULTILINGUAL_END = 50256, 50257  # the first token behind the text, of openai's two vocabularies
NO_TOKEN = -1  # in openai's lists of suppressed tokens; transformers suppresses nothing for it
KINDS: dict[str, tuple[type, str]] = {  # of what generation_config.json says of these
    "language": (str, "a name"),
    "task": (str, "a name"),
    "is_multilingual": (bool, "true or false"),
    "lang_to_id": (dict, "a table"),
    "task_to_id": (dict, "a table"),
    "alignment_heads": (list, "a list"),
    "suppress_tokens": (list, "a list"),
    "begin_suppress_tokens": (list, "a list"),
    "forced_decoder_ids": (list, "a list"),
    "no_timestamps_token_id": (int, "a token"),
    "max_initial_timestamp_index": (int, "a number"),
}


@dataclass(frozen=True)
class Forced:
    """What `forced_decoder_ids` asks for; None where it does not say."""

    language: str | None = None
    task: str | None = None


def languages(tokenizer: WhisperTokenizer) -> dict[str, int]:
    """The token id of every language of the tokenizer, by its code ("en"), in Whisper's order."""
    known = tokenizer.get_vocab()
    return {code: known[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in known}


def complete_settings(folder: Path, settings: GenerationConfig, tokenizer: WhisperTokenizer) -> None:
    """Fill in, in place, what `settings` of generation_config.json leave to older places; the result needs no others.

    Raises:
        BadInput: something cannot be derived, or makes no sense.
    """
    path, config = folder / "generation_config.json", read_object(folder / "config.json")
    known, own = tokenizer.get_vocab(), read_object(path)
    _check_kinds(path, own)
    forced = Forced()
    if getattr(settings, "task", None) is None and getattr(settings, "language", None) is None:
        forced = _forced(path, settings, config, tokenizer)
    settings.forced_decoder_ids = None  # said by language and task from here on
    if getattr(settings, "no_timestamps_token_id", None) is None:
        settings.no_timestamps_token_id = known[NO_TIMESTAMPS]
    if getattr(settings, "decoder_start_token_id", None) is None:
        settings.decoder_start_token_id = known[START]
    if getattr(settings, "is_multilingual", None) is None:
        settings.is_multilingual = _is_multilingual(path, settings, forced, known)
    if settings.is_multilingual:
        _complete_tables(path, settings, tokenizer)
        if forced.language is not None:
            settings.language = forced.language
    task = getattr(settings, "task", None) or forced.task
    if settings.is_multilingual:
        settings.task = task or "transcribe"
    elif task not in (None, "transcribe"):
        raise BadInput(f"{path}: task is {task!r}, but the model knows English alone; take it out")
    else:
        settings.task = None  # its prompt has none
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        listed = own[key] if key in own else config.get(key)
        setattr(settings, key, _without_no_token(path, key, listed))


def _check_kinds(path: Path, own: dict[str, Any]) -> None:
    """Raises BadInput where a setting is not of its kind; transformers does not look."""
    for key, (kind, said) in KINDS.items():
        value = own.get(key)
        if value is not None and (type(value) is not kind or (isinstance(value, int) and value < 0)):
            raise BadInput(f"{path}: {key} is {value!r}; {said} is wanted")


def _forced(path: Path, settings: GenerationConfig, config: dict[str, Any], tokenizer: WhisperTokenizer) -> Forced:
    """What the tokens that are forced behind the start stand for."""
    listed = getattr(settings, "forced_decoder_ids", None)
    if listed is None:
        path, listed = path.with_name("config.json"), config.get("forced_decoder_ids")
    by_id = {token: code for code, token in languages(tokenizer).items()}
    tasks = {tokenizer.get_vocab().get(name): task for task, name in TASK_TOKENS.items()}
    found = {}
    for place, entry in enumerate(listed or (), 1):
        if not isinstance(entry, list | tuple) or len(entry) != 2 or entry[0] != place:
            raise BadInput(f"{path}: forced_decoder_ids has {entry!r}, where [{place}, a token] is wanted")
        token = entry[1]
        if token in by_id:
            found["language"] = by_id[token]
        elif token in tasks and token is not None:
            found["task"] = tasks[token]
        elif token not in (None, tokenizer.get_vocab()[NO_TIMESTAMPS]):
            raise BadInput(
                f"{path}: forced_decoder_ids forces token {token!r}, which is neither a language nor a task; take it"
                " out, and set language and task in generation_config.json"
            )
    return Forced(**found)


def _is_multilingual(path: Path, settings: GenerationConfig, forced: Forced, known: dict[str, int]) -> bool:
    named = (getattr(settings, "lang_to_id", None), getattr(settings, "language", None), forced.language, forced.task)
    if any(named):
        return True
    text_tokens = known[END]
    if text_tokens in (ENGLISH_ONLY_END, MULTILINGUAL_END):
        return text_tokens == MULTILINGUAL_END
    raise BadInput(
        f"{path}: nothing says whether the model is multilingual; set is_multilingual to true or false in it"
    )


def _complete_tables(path: Path, settings: GenerationConfig, tokenizer: WhisperTokenizer) -> None:
    known = tokenizer.get_vocab()
    tables = {
        "lang_to_id": {f"<|{code}|>": token for code, token in languages(tokenizer).items()},
        "task_to_id": {task: known[name] for task, name in TASK_TOKENS.items() if name in known},
    }
    for key, derived in tables.items():
        if getattr(settings, key, None) is None:
            setattr(settings, key, derived)
        named = getattr(settings, key)
        if not isinstance(named, dict) or not named:
            raise BadInput(
                f"{path}: it has no {key}, and the tokenizer no such tokens; a multilingual model needs them"
            )


def _without_no_token(path: Path, key: str, listed: Any) -> list[int] | None:
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(token, int) for token in listed):
        raise BadInput(f"{path}: {key} is not a list of tokens")
    return [token for token in listed if token != NO_TOKEN]
