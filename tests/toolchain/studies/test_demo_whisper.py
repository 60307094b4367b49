"""The embedded Whisper: what is shipped, and the code that makes it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from leanear.demo import demo_clips_folder, demo_model_folder
from leanear.studies.demo.acoustics import NOISES
from leanear.studies.demo.alignment import choose_alignment_heads
from leanear.studies.demo.make_whisper import main
from leanear.studies.demo.sentences import draw_sentences, split_of
from leanear.studies.demo.spectrograms import whisper_log_mel
from leanear.studies.demo.tokens import make_tokenizer, new_extractor, special_tokens, train_bpe, write_processor
from leanear.studies.demo.transcribing import ErrorCounts, error_counts
from leanear.studies.demo.utterances import Speech, Utterance, in_room, plan_utterances
from leanear.studies.demo.whisper_model import initialise, new_config, new_generation_config, new_model
from leanear.studies.demo.whisper_packaging import COLUMNS, read_clips, with_uniform_attention
from leanear.studies.demo.whisper_training import (
    DevClips,
    Lesson,
    Schedule,
    decode,
    encode,
    rate_scale_at,
    timelines_at,
    train,
)
from leanear.studies.demo.windows import (
    IGNORED,
    POSITION_SAMPLES,
    WINDOW_SAMPLES,
    Conditions,
    Shares,
    Timeline,
    full_timeline,
    make_script,
    mix_windows,
    snug_timeline,
    token_batch,
    tokens_of,
)
from leanear.studies.demo.words import VOICES

SPLITS = {"calibration": (100, ".ogg"), "evaluation": (240, ".flac")}
LARGEST_BYTES = 25_000_000


def rows_of(split: str) -> list[dict[str, str]]:
    with (demo_clips_folder("demo-whisper") / split / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tones(utterances: int = 24, seed: int = 0) -> Speech:
    """Stand-ins for spoken sentences, so that no speech synthesiser is needed: one pitch for each phoneme."""
    rng = np.random.default_rng(seed)
    waves, phonemes, rows, dry = [], [], [], []
    for number, text in enumerate(draw_sentences("train", utterances, seed)):
        heard = rng.integers(0, 4, 6)
        time_s = np.arange(2_400 + 100 * number) / 16_000
        wave = np.concatenate([np.sin(2 * np.pi * (300 + 400 * pitch) * time_s) for pitch in heard])
        waves.append(np.concatenate([np.round(20_000 * wave), np.zeros(4_800)]).astype(np.int16))
        phonemes.append([f"p{pitch}" for pitch in heard])
        rows.append(Utterance(text, "f1", "en-gb", 160, 50, 1.0, 0))
        dry.append(len(wave))
    offsets = np.concatenate([[0], np.cumsum([len(wave) for wave in waves])])
    return Speech(rows, phonemes, np.concatenate(waves), offsets, np.array(dry), np.zeros(1))


def tiny_model(tokenizer, seed: int) -> WhisperForConditionalGeneration:
    """An untrained demo Whisper of one layer and one head on either side, whose transcripts are short."""
    config = new_config(tokenizer)
    for side in ("encoder", "decoder"):
        for setting, value in (("layers", 1), ("attention_heads", 1), ("ffn_dim", 32)):
            setattr(config, f"{side}_{setting}", value)
    config.d_model = 64
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    initialise(model)
    model.generation_config = new_generation_config(tokenizer, config)
    model.generation_config.max_length = 8
    return model


def hiss() -> torch.Tensor:
    return torch.randn(len(NOISES), 3 * WINDOW_SAMPLES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(*train_bpe(draw_sentences("train", 2_000, 0), merges=200))


# What is shipped


def test_everything_shipped_is_at_most_25_mb():
    files = [path for path in demo_model_folder("demo-whisper").parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_clips_are_an_audiofolder_of_unseen_sentences_and_voices(split):
    least, suffix = SPLITS[split]
    rows = rows_of(split)
    assert len(rows) >= least
    assert tuple(rows[0]) == COLUMNS
    assert len({row["text"] for row in rows}) == len(rows)
    assert {split_of(row["text"]) for row in rows} == {split}
    assert {row["voice"] for row in rows} == set(VOICES[split])
    files = {path.name for path in (demo_clips_folder("demo-whisper") / split).glob(f"*{suffix}")}
    assert files == {row["file_name"] for row in rows}


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_clips_are_mono_16_khz_and_fit_the_window(split):
    for row in rows_of(split):
        info = soundfile.info(demo_clips_folder("demo-whisper") / split / row["file_name"])
        assert (info.channels, info.samplerate) == (1, 16_000)
        assert 0 <= float(row["start_s"]) < float(row["end_s"]) <= info.duration <= 6.0


def test_the_conditions_in_the_metadata_vary():
    rows = rows_of("evaluation")
    assert {row["noise"] for row in rows} == set(NOISES)
    snr_db = np.array([float(row["snr_db"]) for row in rows])
    assert snr_db.max() - snr_db.min() > 8
    assert {float(row["rt60_s"]) > 0 for row in rows} == {True, False}


def test_the_shipped_folder_opens_with_stock_transformers():
    processor = WhisperProcessor.from_pretrained(demo_model_folder("demo-whisper"))
    model = WhisperForConditionalGeneration.from_pretrained(demo_model_folder("demo-whisper"))
    config, generation, number = model.config, model.generation_config, processor.tokenizer.convert_tokens_to_ids
    assert config.d_model // config.encoder_attention_heads == 64
    assert config.max_source_positions == 50 * processor.feature_extractor.chunk_length
    assert config.vocab_size == len(processor.tokenizer)
    assert generation.no_timestamps_token_id == number("<|notimestamps|>") == number("<|nospeech|>") + 1
    assert number("<|0.00|>") == generation.no_timestamps_token_id + 1
    assert number("<|6.00|>") == config.vocab_size - 1
    assert generation.lang_to_id["<|en|>"] == number("<|startoftranscript|>") + 1
    assert generation.task_to_id == {task: number(f"<|{task}|>") for task in ("transcribe", "translate")}
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    assert all(0 <= layer < layers and 0 <= head < heads for layer, head in generation.alignment_heads)


def test_the_shipped_model_transcribes_as_well_as_its_card_says():
    processor = WhisperProcessor.from_pretrained(demo_model_folder("demo-whisper"))
    model = WhisperForConditionalGeneration.from_pretrained(demo_model_folder("demo-whisper")).eval()
    waves, texts = read_clips(demo_clips_folder("demo-whisper") / "evaluation")
    few = slice(None, None, 9)
    features = processor(waves[few], sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.generate(features, language="en", task="transcribe")
    said = processor.batch_decode(ids, skip_special_tokens=True)
    rate = error_counts(texts[few], said).rate
    card = (demo_model_folder("demo-whisper") / "README.md").read_text(encoding="utf-8")
    stated = float(card.split("Word error rate ")[1].split(" %")[0]) / 100
    assert 0.03 <= stated <= 0.12
    assert abs(rate - stated) < 0.08
    # Damage to attention is visible.
    uniform = with_uniform_attention(model, "encoder_attn")
    ids = uniform.generate(features[:4], language="en", task="transcribe")
    assert error_counts(texts[few][:4], processor.batch_decode(ids, skip_special_tokens=True)).rate > 0.5


def test_the_shipped_model_says_when_a_sentence_is_spoken_and_that_silence_is_none():
    processor = WhisperProcessor.from_pretrained(demo_model_folder("demo-whisper"))
    model = WhisperForConditionalGeneration.from_pretrained(demo_model_folder("demo-whisper")).eval()
    rows = sorted(rows_of("evaluation"), key=lambda row: -float(row["snr_db"]))[:8]
    folder = demo_clips_folder("demo-whisper") / "evaluation"
    waves = [soundfile.read(folder / row["file_name"], dtype="float32")[0] for row in rows]
    waves.append(np.zeros(16_000, np.float32))
    features = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    zero = processor.tokenizer.convert_tokens_to_ids("<|0.00|>")
    ids = model.generate(features, language="en", task="transcribe", return_timestamps=True)
    off_s = []
    for row, tokens in zip(rows, ids):
        times_s = [(token - zero) * 0.02 for token in tokens.tolist() if token >= zero]
        off_s += [abs(times_s[0] - float(row["start_s"])), abs(times_s[-1] - float(row["end_s"]))]
    assert np.median(off_s) < 0.15
    assert processor.decode(ids[-1], skip_special_tokens=True) == ""
    start = torch.full((len(waves), 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        probability = model(input_features=features, decoder_input_ids=start).logits[:, 0].softmax(-1)
    no_speech = probability[:, processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")]
    assert no_speech[-1] > 0.5 > no_speech[:-1].max()


# Sentences and speech


def test_splits_share_no_sentence_and_the_same_sentence_is_always_in_the_same_one():
    drawn = {split: set(draw_sentences(split, 300, 0)) for split in VOICES}
    for split, sentences in drawn.items():
        assert {split_of(sentence) for sentence in sentences} == {split}
    assert split_of("Turn off the lamp.") == split_of("turn off the lamp")
    assert draw_sentences("dev", 20, 3) == draw_sentences("dev", 20, 3) != draw_sentences("dev", 20, 4)


def test_sentences_begin_with_a_capital_end_with_punctuation_and_have_no_open_slot():
    for sentence in draw_sentences("train", 2_000, 0):
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert not set(sentence) & set("{}")
        assert len(sentence.split()) <= 11


def test_every_word_of_the_other_splits_is_said_in_training():
    def words(split: str, count: int) -> set[str]:
        return {word.strip(".,?").lower() for one in draw_sentences(split, count, 0) for word in one.split()}

    assert words("evaluation", 500) | words("calibration", 240) <= words("train", 20_000)


def test_voices_take_turns_and_only_training_changes_the_speed():
    plan = plan_utterances("calibration", 130, rooms=10, seed=0)
    assert set(Counter(one.voice for one in plan).values()) == {10}
    assert {one.speed for one in plan} == {1.0}
    assert len({one.speed for one in plan_utterances("train", 50, rooms=10, seed=0)}) > 20
    assert {one.room == 0 for one in plan} == {True, False}


def test_a_room_is_a_convolution():
    dry, response = np.sin(np.arange(2_000) / 5.0), np.zeros(6_000)
    response[[0, 700]] = 1, -0.5
    expected = np.convolve(dry, response)[: 2_000 + 4_800]
    np.testing.assert_allclose(in_room(dry, response), 0.7 * 32767 * expected / np.abs(expected).max(), atol=0.51)


# Features, tokens, windows


def test_log_mel_agrees_with_transformers_at_every_level_and_window():
    rng = np.random.default_rng(0)
    waves = [scale * rng.standard_normal(WINDOW_SAMPLES).astype(np.float32) for scale in (0.3, 1e-3, 1e-6)]
    waves.append(np.zeros(WINDOW_SAMPLES, np.float32))
    waves[1][30_000:] = 0
    extractor = new_extractor()
    theirs = extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(whisper_log_mel(torch.from_numpy(np.stack(waves)), extractor), theirs, atol=1e-5, rtol=0)
    short = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    theirs = short([wave[:32_000] for wave in waves], sampling_rate=16_000, return_tensors="pt").input_features
    ours = whisper_log_mel(torch.from_numpy(np.stack(waves))[:, :32_000], extractor)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", [" Turn off the light.", " Ünïcödé, 日本 and 🎧 too?", "", " \t\n\x00 0.5<|6.00 "])
def test_any_text_survives_the_tokens(tokenizer, text, tmp_path: Path):
    write_processor(tmp_path, tokenizer)
    opened = WhisperProcessor.from_pretrained(tmp_path).tokenizer
    ids = opened(text, add_special_tokens=False)["input_ids"]
    assert all(number < opened.convert_tokens_to_ids("<|endoftext|>") for number in ids)
    assert opened.decode(ids) == text


def test_special_tokens_and_timestamps_are_numbered_in_whispers_order(tokenizer):
    numbers = tokenizer.convert_tokens_to_ids(list(special_tokens()))
    assert numbers == list(range(456, 456 + len(numbers)))
    assert tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|0.02|>", "<|6.00|>"]) == [
        numbers[-1] + 1,
        numbers[-1] + 2,
        numbers[-1] + 301,
    ]
    assert tokenizer.get_vocab()["!"] == 0
    assert tokenizer.all_special_ids[-1] + 1 == tokenizer.convert_tokens_to_ids("<|0.00|>")
    tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    prompt = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens) == prompt


def test_what_the_decoder_is_to_say_of_whole_cut_and_empty_windows(tokenizer):
    speech = tones()
    script = make_script(speech, tokenizer, ("p0", "p1", "p2", "p3"))
    start, first, second = 3_200, 1, 4
    end, again = start + int(speech.dry_samples[first]), 60_000
    two = Timeline((first, second), (start, again), WINDOW_SAMPLES, WINDOW_SAMPLES)
    texts = [f" {speech.utterances[number].text}" for number in (first, second)]

    def said(timeline: Timeline, timestamps: bool) -> list[str]:
        _, wanted = tokens_of(script, speech, timeline, timestamps)
        return ["*" if token == IGNORED else tokenizer.decode([token]) for token in wanted]

    last = again + int(speech.dry_samples[second])
    stamps = [f"<|{round(at / POSITION_SAMPLES) * 0.02:.2f}|>" for at in (start, end, again, last)]
    given, _ = tokens_of(script, speech, two, timestamps=True)
    told = tokenizer.decode(given, decode_with_timestamps=True)
    assert told == (
        f"<|startoftranscript|><|en|><|transcribe|>{stamps[0]}{texts[0]}{stamps[1]}{stamps[2]}{texts[1]}{stamps[3]}"
    )
    given, wanted = tokens_of(script, speech, two, timestamps=False)
    assert tokenizer.decode(given, skip_special_tokens=True) == "".join(texts)
    assert (wanted[2], wanted[-1]) == (IGNORED, script.end)
    cut = Timeline((first, second), (start, again), 70_000, 70_000, cut=True)
    given, wanted = tokens_of(script, speech, cut, timestamps=True)
    told = tokenizer.decode(given, decode_with_timestamps=True)
    assert told.endswith(f"{texts[0]}{stamps[1]}{stamps[2]}")
    assert wanted[-1] == script.end
    nothing = Timeline((), (), WINDOW_SAMPLES, WINDOW_SAMPLES)
    assert said(nothing, timestamps=False) == ["<|nospeech|>", "*", "*", "<|endoftext|>"]
    _, wanted = tokens_of(script, speech, nothing, timestamps=True)
    assert wanted == [script.no_speech, IGNORED, script.timestamp_zero, script.end]


def test_timelines_keep_whole_utterances_inside_and_cut_ones_across_the_end():
    speech, rng, cuts = tones(), np.random.default_rng(0), 0
    drawn = [snug_timeline(speech, rng, 0.3) for _ in range(200)]
    drawn += [full_timeline(speech, rng, Shares()) for _ in range(400)]
    for timeline in drawn:
        ends = [start + speech.dry_samples[k] for k, start in zip(timeline.utterances, timeline.starts)]
        whole = ends[:-1] if timeline.cut else ends
        assert all(end <= timeline.samples for end in whole)
        assert timeline.samples % POSITION_SAMPLES == 0
        assert all(start >= 0 for start in timeline.starts)
        if timeline.cut:
            assert timeline.starts[-1] < timeline.samples == WINDOW_SAMPLES < ends[-1]
            cuts += 1
    assert cuts > 10
    assert {len(timeline.utterances) for timeline in drawn} == {0, 1, 2}


def test_the_noise_of_a_window_has_the_stated_level_and_ends_where_the_clip_does():
    speech, noises = tones(), hiss()
    timeline = Timeline((3,), (1_600,), WINDOW_SAMPLES, 50_000)
    conditions = Conditions(snr_db=(10.0, 10.0), peak=(0.2, 0.2))
    mixed = mix_windows(speech, noises, [timeline] * 6, conditions, np.random.default_rng(0)).waves.numpy()
    sound = speech.samples[speech.offsets[3] : speech.offsets[4]].astype(np.float64)
    for wave in mixed.astype(np.float64):
        assert np.abs(wave).max() == pytest.approx(0.2, rel=1e-5)
        assert not wave[50_000:].any()
        spoken = wave[1_600 : 1_600 + len(sound)]
        gain = np.dot(spoken, sound) / np.dot(sound, sound)
        noise = np.concatenate([wave[:1_600], spoken - gain * sound, wave[1_600 + len(sound) : 50_000]])
        ratio_db = 10 * np.log10(gain**2 * np.mean(sound**2) / np.mean(noise**2))
        assert ratio_db == pytest.approx(10.0, abs=0.4)


def test_short_windows_of_a_block_are_heard_once_each_and_full_ones_at_the_end():
    speech, schedule = tones(), Schedule(steps=64, batch=3, encoder_steps=0, easy_steps=0, full_window_steps=10)
    widths = [[one.samples for one in timelines_at(step, speech, schedule)] for step in range(64)]
    for step in (15, 31, 54, 63):
        assert widths[step] == [WINDOW_SAMPLES] * 3
    for step in (0, 14, 16):
        assert max(widths[step]) < WINDOW_SAMPLES
    assert timelines_at(5, speech, schedule) == timelines_at(5, speech, schedule)


# Training


def test_an_encoder_of_any_length_and_the_decoder_compute_what_the_stock_model_computes(tokenizer):
    model = new_model(tokenizer, seed=1).eval()
    features = torch.randn(2, 80, 600, generator=torch.Generator().manual_seed(0))
    given = torch.tensor([[456, 457, 3, 4], [456, 457, 5, 6]])
    with torch.no_grad():
        stock = model(input_features=features, decoder_input_ids=given).logits
        torch.testing.assert_close(decode(model, given, encode(model, features)), stock)
        assert encode(model, features[:, :, :100]).shape == (2, 50, 192)


def test_rates_rise_stay_and_come_down():
    schedule = Schedule(steps=100, warmup_steps=10, cooldown_steps=20)
    rates = [rate_scale_at(step, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:81] == [1.0] * 71
    assert np.diff(rates[80:]) == pytest.approx(-0.05)
    assert rates[-1] == pytest.approx(0.05)


def test_an_interrupted_training_continues_as_if_it_had_not_stopped(tokenizer, tmp_path: Path):
    torch.set_num_threads(1)
    lesson = Lesson(tones(), hiss(), tokenizer, new_extractor())
    dev = DevClips(torch.zeros(1, 80, 600), ["Nothing."])
    schedule = Schedule(
        steps=3, batch=4, warmup_steps=1, cooldown_steps=1, encoder_steps=1, full_window_steps=1, save_every=2
    )

    def stop_at_two(step: int, note: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    def unheard(step: int, note: str) -> None:
        pass

    whole = train(tiny_model(tokenizer, 0), lesson, dev, schedule, tmp_path / "whole.safetensors", unheard)
    broken = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(tokenizer, 0), lesson, dev, schedule, broken, stop_at_two)
    resumed = train(tiny_model(tokenizer, 5), lesson, dev, schedule, broken, unheard, threads=1)
    untrained = dict(tiny_model(tokenizer, 0).named_parameters())
    for name, value in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], value), name
    assert not torch.equal(whole.proj_out.weight, untrained["model.decoder.embed_tokens.weight"])
    log = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["step"] == 3
    assert np.isfinite(log[-1]["loss"])


def test_empty_windows_teach_the_decoder_only_what_is_to_be_said(tokenizer):
    speech = tones()
    script = make_script(speech, tokenizer, ("p0",))
    nothing = Timeline((), (), WINDOW_SAMPLES, WINDOW_SAMPLES)
    given, wanted = token_batch(script, speech, [nothing] * 8, np.random.default_rng(0))
    assert given.shape == wanted.shape
    assert set(wanted[:, 0].tolist()) == {script.no_speech}
    assert set(wanted[:, 1].tolist()) == {IGNORED}


def test_alignment_heads_are_those_whose_attention_moves_with_the_text(tokenizer):
    model = new_model(tokenizer, seed=0).eval()
    features = torch.randn(2, 80, 600, generator=torch.Generator().manual_seed(0))
    heads = choose_alignment_heads(model, tokenizer, features, ["Turn off the light.", "It is noon."])
    assert 1 <= len(heads) <= 6


# Errors, and the command


def test_error_counts_agree_with_jiwer_on_the_whole_and_clip_by_clip():
    references = ["Turn off the light.", "It's ten o'clock.", "The theatre is open."]
    said = ["turn of the light", "It is 10 o'clock", "theater is wide open now"]
    counts = error_counts(references, said)
    normalise = EnglishTextNormalizer({"theatre": "theater"})
    clean = [[normalise(text) for text in texts] for texts in (references, said)]
    assert counts.rate == pytest.approx(jiwer.wer(*clean))
    assert counts.errors.tolist() == [1, 0, 3]
    low, high = counts.interval()
    assert low <= counts.rate <= high


def test_the_interval_of_many_alike_clips_is_that_of_a_mean():
    rng = np.random.default_rng(1)
    errors = rng.binomial(10, 0.1, 2_000)
    low, high = ErrorCounts(errors, np.full(2_000, 10)).interval()
    half = 1.96 * errors.std() / 10 / np.sqrt(2_000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_without_espeak_the_command_says_so_in_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "demo")]) == 4
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "espeak-ng is not on PATH" in said[0]


def test_a_folder_begun_with_another_seed_is_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    main(["--out", str(tmp_path), "--seed", "1"])
    capsys.readouterr()
    assert main(["--out", str(tmp_path), "--seed", "2"]) == 2
    assert "schedule.json" in capsys.readouterr().err
