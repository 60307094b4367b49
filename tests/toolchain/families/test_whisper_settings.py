"""What a Whisper is asked for, from settings of every age: prompt and words are those of transformers' generate."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import AddedToken
from transformers import WhisperForConditionalGeneration

from leanear.cli.commands import run
from leanear.deploy.exporting import write_unproved_artifact
from leanear.evaluate.torch_speech import TorchSpeechSession, speech_model
from leanear.export.options import ExportOptions
from leanear.families import whisper
from leanear.families.checkpoint import load_checkpoint
from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.decoding import decode_window
from leanear.runtimes.speech.tokens.vocabulary import read_vocabulary
from tests.toolchain.speech_folder import sound, write_speech_folder
from tests.whisper_models import make_tokenizer, make_whisper, write_whisper

pytestmark = pytest.mark.usefixtures("measured_here")

KNOWN = make_tokenizer().get_vocab()
DE, EN = KNOWN["<|de|>"], KNOWN["<|en|>"]
TRANSCRIBE, TRANSLATE = KNOWN["<|transcribe|>"], KNOWN["<|translate|>"]
NONE_OF_THE_NEWER = {"is_multilingual": None, "lang_to_id": None, "task_to_id": None}
FORCED = [[1, DE], [2, TRANSLATE], [3, KNOWN["<|notimestamps|>"]]]


def edit(path, **changes):
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def read_by_both(folder):
    """The checkpoint as we read it, and the model as transformers does."""
    return load_checkpoint(folder), WhisperForConditionalGeneration.from_pretrained(folder).eval()


def said_by_transformers(checkpoint, model, waveform, **asked):
    features = whisper.features(checkpoint.feature_extractor, [waveform])
    end = checkpoint.tokenizer.get_vocab()["<|endoftext|>"]
    with torch.no_grad():
        ids = model.generate(features, **asked)[0].tolist()
    return ids[: ids.index(end)] if end in ids else ids


def said_by_us(checkpoint, waveform, **asked):
    session = TorchSpeechSession(checkpoint)
    session.encode(waveform)
    options = DecodeOptions(timestamps=False, stop_repeats=False, **asked)
    return list(decode_window(session, speech_model(checkpoint).tokens, options).tokens)


@pytest.mark.parametrize(
    ("generation", "config", "language", "task"),
    [
        ({"forced_decoder_ids": FORCED}, {}, "de", "translate"),
        ({"forced_decoder_ids": FORCED, **NONE_OF_THE_NEWER}, {}, "de", "translate"),
        ({}, {"forced_decoder_ids": FORCED}, "de", "translate"),
        ({"forced_decoder_ids": [[1, EN], [2, TRANSCRIBE]]}, {"forced_decoder_ids": FORCED}, "en", "transcribe"),
        ({"language": "en", "forced_decoder_ids": FORCED}, {}, "en", "transcribe"),
        ({"task": "translate", "language": "german"}, {}, "de", "translate"),
        ({"task": "translate"}, {}, None, "translate"),
        ({"forced_decoder_ids": [[1, None], [2, TRANSLATE]]}, {}, None, "translate"),
    ],
)
def test_language_and_task_are_those_of_generate(tmp_path, generation, config, language, task):
    folder = write_whisper(tmp_path / "model")
    edit(folder / "generation_config.json", **generation)
    edit(folder / "config.json", **config)
    checkpoint, theirs = read_by_both(folder)
    decoding = whisper.decoding_settings(checkpoint)
    assert (decoding.default_language, decoding.default_task) == (language, task)
    assert decoding.multilingual
    assert decoding.languages["de"] == DE
    for number in range(3):
        assert said_by_us(checkpoint, sound(number)) == said_by_transformers(checkpoint, theirs, sound(number))


def test_what_the_tokenizer_knows_and_what_openai_suppresses(tmp_path):
    folder = write_whisper(tmp_path / "model", english_only=True)
    edit(folder / "generation_config.json", no_timestamps_token_id=None, suppress_tokens=[-1])
    decoding = whisper.decoding_settings(load_checkpoint(folder))
    assert (decoding.no_timestamps, decoding.suppress) == (KNOWN["<|notimestamps|>"], ())
    edit(folder / "generation_config.json", no_timestamps_token_id=KNOWN["<|notimestamps|>"])
    checkpoint, theirs = read_by_both(folder)
    assert said_by_us(checkpoint, sound(1)) == said_by_transformers(checkpoint, theirs, sound(1))


def test_what_is_asked_for_overrules_the_model(tmp_path):
    folder = write_whisper(tmp_path / "model")
    edit(folder / "generation_config.json", task="translate", language="de")
    asked = {"task": "transcribe", "language": "en"}
    checkpoint, theirs = read_by_both(folder)
    assert said_by_us(checkpoint, sound(2), **asked) == said_by_transformers(checkpoint, theirs, sound(2), **asked)


def test_eval_and_export_take_task_and_language(tmp_path, capsys):
    folder = write_whisper(tmp_path / "model", alignment_heads=())
    edit(folder / "generation_config.json", language="en")
    checkpoint = load_checkpoint(folder)
    said = [said_by_us(checkpoint, sound(number), task="translate", language="de") for number in range(4)]
    texts = [checkpoint.tokenizer.decode(tokens).replace('"', "").replace("\n", " ") for tokens in said]
    data = write_speech_folder(tmp_path / "data", [text if text.strip() else "on" for text in texts])
    flags = ["--task", "translate", "--language", "de"]
    measured = []
    for more in ([], flags):
        command = ["eval", str(folder), "--data", str(data), "--calibration-clips", "2", "--threads", "1", "--json"]
        assert run([*command, *more]) == 0
        measured.append(json.loads(capsys.readouterr().out)["word_error_rate"])
    assert measured[1] < measured[0]
    artifact = tmp_path / "artifact"
    assert run(["export", str(folder), "--data", str(data), "--out", str(artifact), *flags]) == 0
    decoding = read_artifact(artifact).speech.decoding
    assert (decoding.default_task, decoding.default_language) == ("translate", "de")
    golden = read_golden(read_artifact(artifact)).speech
    assert golden is not None
    assert golden.prompt.tolist()[1:3] == [DE, TRANSLATE]


@pytest.mark.parametrize("command", ["eval", "export"])
def test_a_classifier_has_no_task(tiny_folder, tmp_path, capsys, command):
    out = ["--out", str(tmp_path / "out")] if command == "export" else []
    assert run([command, str(tiny_folder), "--task", "translate", *out]) == 2
    assert "--task and --language are for Whisper" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--language", "fr"), "the model knows English alone"), (("--task", "translate"), "the model cannot translate")],
)
def test_what_a_model_has_not_is_refused(tmp_path, capsys, flags, said):
    folder = write_whisper(tmp_path / "model", english_only=True)
    assert run(["export", str(folder), "--out", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def with_words(tmp_path):
    """A Whisper whose tokenizer was given words, which lie behind the timestamps, and which likes to say them."""
    model, tokenizer = make_whisper(), make_tokenizer()
    tokenizer.add_tokens([AddedToken(" größe", normalized=False), AddedToken(" school", normalized=False)])
    last = max(KNOWN.values())
    torch.manual_seed(1)
    model.resize_token_embeddings(last + 3, mean_resizing=False)
    model.model.decoder.embed_tokens.weight.data[last + 1 :] = 0.3 * torch.randn(2, model.config.d_model)
    folder = write_whisper(tmp_path / "words", model)
    tokenizer.save_pretrained(folder)
    return folder, last + 1


def test_words_behind_the_timestamps_are_words(with_words, tmp_path):
    folder, first = with_words
    checkpoint, model = read_by_both(folder)
    decoding = whisper.decoding_settings(checkpoint)
    assert (decoding.timestamp_begin + 101, decoding.timestamp_end) == (first, first)
    assert whisper.added_words(checkpoint) == [first, first + 1]
    asked = {"language": "en", "task": "transcribe"}
    heard = [said_by_us(checkpoint, sound(number), **asked) for number in range(6)]
    for number, tokens in enumerate(heard):
        # It takes such words for timestamps, and ends where two of them are said one after the other.
        theirs = said_by_transformers(checkpoint, model, sound(number), **asked)
        assert theirs == tokens[: len(theirs)]
        assert first <= max(theirs)
    write_unproved_artifact(checkpoint, [sound(0)], tmp_path / "artifact", ExportOptions("portable", {}, {}))
    vocabulary = read_vocabulary(tmp_path / "artifact" / "vocabulary.json")
    for tokens in [*heard, [first, first + 1]]:
        spoken = checkpoint.tokenizer.decode(tokens, skip_special_tokens=True)
        assert vocabulary.text(tokens) == speech_model(checkpoint).vocabulary.text(tokens) == spoken
    assert whisper.text_tokens(checkpoint.tokenizer, "the school")[-1] == first + 1


def test_with_timestamps_a_word_behind_them_is_no_time(with_words):
    folder, first = with_words
    checkpoint = load_checkpoint(folder)
    session, tokens = TorchSpeechSession(checkpoint), speech_model(checkpoint).tokens
    assert tokens.times == range(first - 101, first)
    for number in range(6):
        session.encode(sound(number))
        said = decode_window(session, tokens, DecodeOptions(language="en", stop_repeats=False)).tokens
        assert said[0] in tokens.times
        times = [token for token in said if token in tokens.times]
        assert times == sorted(times)
