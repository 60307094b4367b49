"""The tokens of what a Whisper is told and should say: prompt, language, task, transcript."""

import torch
from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from leanear.data.examples import SpeechInputs
from leanear.families.asked import Asked
from leanear.families.whisper.forward import logits
from leanear.families.whisper.model import WhisperCheckpoint
from leanear.families.whisper.settings import END, NO_TIMESTAMPS, START, TASK_TOKENS
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.decode_options import DETECT


def prompt_language(checkpoint: WhisperCheckpoint, language: str | None = None) -> str | None:
    """The language code for the prompt of a model: what is asked for, or else the one that its settings name.

    None for an English-only model, whose prompt has no language, and for a multilingual one of no fixed language, whose
    language must be detected.

    Raises:
        BadInput: the model does not know the language.
    """
    settings = checkpoint.model.generation_config
    asked = language if language is not None else getattr(settings, "language", None)
    code = None
    if isinstance(asked, str):
        code = asked.lower().removeprefix("<|").removesuffix("|>")
        code = TO_LANGUAGE_CODE.get(code, code)
    if not checkpoint.is_multilingual:
        if language is not None and code != "en":
            raise BadInput(f"{checkpoint.folder}: the model knows English alone, not {language!r}")
        return None
    known = [name.removeprefix("<|").removesuffix("|>") for name in settings.lang_to_id]
    if code is not None and code not in known:
        raise BadInput(f"{checkpoint.folder}: the model knows no language {asked!r}; it knows {', '.join(known)}")
    return known[0] if code is None and len(known) == 1 else code


def set_defaults(checkpoint: WhisperCheckpoint, asked: Asked) -> None:
    """Make the task and the language that are asked for the model's own, in memory.

    Raises:
        BadInput: the model does not have them.
    """
    settings, task, language = checkpoint.model.generation_config, asked.task, asked.language
    if task is not None and task not in (settings.task_to_id if checkpoint.is_multilingual else ("transcribe",)):
        raise BadInput(f"{checkpoint.folder}: the model cannot {task}")
    code = None if language in (None, DETECT) else prompt_language(checkpoint, language)
    if checkpoint.is_multilingual and task is not None:
        settings.task = task
    if checkpoint.is_multilingual and language is not None:
        settings.language = code


def detected_language(checkpoint: WhisperCheckpoint, waveform_features: torch.Tensor) -> str | None:
    """The code of the language that the model hears in these windows (B, mels, frames) taken together."""
    if not checkpoint.is_multilingual:
        return None
    ids = checkpoint.model.generation_config.lang_to_id
    start = torch.full((len(waveform_features), 1), checkpoint.model.config.decoder_start_token_id)
    with torch.no_grad():
        after_start = logits(checkpoint.model, SpeechInputs(waveform_features, start))[:, 0]
    heard = after_start[:, list(ids.values())].log_softmax(dim=1).sum(dim=0).argmax().item()
    return list(ids)[int(heard)].removeprefix("<|").removesuffix("|>")


def prompt_tokens(tokenizer: WhisperTokenizer, language: str | None, task: str = "transcribe") -> list[int]:
    """The ids of `<|startoftranscript|>`, language and task, if there is a language, and `<|notimestamps|>`.

    Raises:
        BadInput: the tokenizer has no such language or no tasks.
    """
    asked = [f"<|{language}|>", TASK_TOKENS[task]] if language is not None else []
    names = [START, *asked, NO_TIMESTAMPS]
    known = tokenizer.get_vocab()
    for name in names:
        if name not in known:
            raise BadInput(f"the tokenizer has no {name!r}")
    return [known[name] for name in names]


def text_tokens(tokenizer: WhisperTokenizer, text: str, clip: str = "a clip") -> list[int]:
    """The ids of a clip's transcript, which begins with a space, as all that Whisper was trained on.

    Raises:
        BadInput: the transcript spells a special token.
    """
    # Without `verbose` it warns of long texts; what is too long for a decoder is refused where that is known.
    ids = tokenizer(f" {text.strip()}", add_special_tokens=False, verbose=False)["input_ids"]
    end = tokenizer.get_vocab()[END]
    behind = (token for token in ids if token >= end)  # special ones, timestamps, and words added by a fine-tuning
    special = next((token for token in behind if tokenizer.convert_ids_to_tokens(token).startswith("<|")), None)
    if special is not None:
        raise BadInput(f"{clip}: its transcript holds {tokenizer.convert_ids_to_tokens(special)!r}, a special token")
    return ids
