"""The embedded default: what is shipped, and the code that makes it."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import fftconvolve
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from leanear.demo import demo_clips_folder, demo_model_folder
from leanear.families.modeling_slim_ast import SlimASTConfig, SlimASTForAudioClassification
from leanear.studies.demo.acoustics import NOISES, Ranges, make_noises, make_responses, make_scene, mix
from leanear.studies.demo.make import main
from leanear.studies.demo.packaging import choose_words, count_right, read_clips, with_uniform_attention
from leanear.studies.demo.spectrograms import log_mel, normalise
from leanear.studies.demo.speech import plan_takes
from leanear.studies.demo.training import Schedule, initialise, logits_of, new_config, new_model, tokens_of, train
from leanear.studies.demo.words import ACCENTS, VOICES, WORDS

SPLITS = {"calibration": 256, "evaluation": 700}


def rows_of(split: str) -> list[dict[str, str]]:
    with (demo_clips_folder() / split / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tones(seed: int = 0, words: int = 70) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stand-ins for spoken words, so that no speech synthesiser is needed: one pitch for each of the 35 labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(words) % len(WORDS)
    lengths = rng.integers(3_000, 9_000, words)
    waves = [np.sin(2 * np.pi * (200 + 180 * k) * np.arange(n) / 16_000) for k, n in zip(labels, lengths, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.round(20_000 * np.concatenate(waves)).astype(np.int16), offsets, labels


# What is shipped


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_clips_are_an_audiofolder_with_every_word_equally_often(split):
    rows = rows_of(split)
    assert len(rows) >= SPLITS[split]
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == set(WORDS)
    assert len(set(counts.values())) == 1
    files = {path.name for path in (demo_clips_folder() / split).glob("*.flac")}
    assert files == {row["file_name"] for row in rows}


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_clips_are_16_bit_mono_flac_of_about_a_second(split):
    for row in rows_of(split):
        info = soundfile.info(demo_clips_folder() / split / row["file_name"])
        assert (info.format, info.subtype, info.channels, info.samplerate) == ("FLAC", "PCM_16", 1, 16_000)
        assert 14_400 <= info.frames <= 17_600


def test_no_voice_is_heard_in_two_splits():
    shipped = {split: {row["voice"] for row in rows_of(split)} for split in SPLITS}
    assert not shipped["calibration"] & shipped["evaluation"]
    for split, voices in shipped.items():
        assert voices <= set(VOICES[split])
        assert not voices & (set(VOICES["train"]) | set(VOICES["dev"]))
    everyone = [voice for voices in VOICES.values() for voice in voices]
    assert len(everyone) == len(set(everyone))


def test_versions_of_one_voice_stay_in_one_split():
    # f1 to f5 and m1 to m8 are different voices with numbers for names.
    family = {voice: voice.rstrip("0123456789").lower() for voices in VOICES.values() for voice in voices}
    family = {voice: name for voice, name in family.items() if name not in {"f", "m"}}
    for name in set(family.values()):
        assert len({split for split, voices in VOICES.items() if any(family.get(v) == name for v in voices)}) == 1, name


def test_the_conditions_in_the_metadata_vary():
    rows = rows_of("evaluation")
    assert {row["noise"] for row in rows} == set(NOISES)
    assert {row["accent"] for row in rows} == set(ACCENTS)
    snr_db = np.array([float(row["snr_db"]) for row in rows])
    assert snr_db.max() - snr_db.min() > 10
    assert {float(row["rt60_s"]) > 0 for row in rows} == {True, False}


def test_the_shipped_files_are_small():
    files = [path for path in demo_model_folder().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 38_000_000


def test_the_shipped_model_is_a_stock_ast_with_the_real_tokenisation():
    config = json.loads((demo_model_folder() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["ASTForAudioClassification"]
    assert (config["patch_size"], config["frequency_stride"], config["time_stride"]) == (16, 10, 10)
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert [config["id2label"][str(k)] for k in range(35)] == list(WORDS)
    extractor = AutoFeatureExtractor.from_pretrained(demo_model_folder())
    assert (extractor.num_mel_bins, extractor.sampling_rate) == (128, 16_000)
    assert extractor.max_length == config["max_length"]


def test_the_shipped_mean_and_deviation_are_those_of_the_clips():
    extractor = AutoFeatureExtractor.from_pretrained(demo_model_folder())
    files = [demo_clips_folder() / "calibration" / row["file_name"] for row in rows_of("calibration")][::3]
    waves = [soundfile.read(file, dtype="float32")[0] for file in files]
    values = extractor(waves, sampling_rate=16_000, return_tensors="np")["input_values"]
    # AST's inputs have mean 0 and deviation 0.5; training hears more noise and more levels than the clips have.
    assert abs(values.mean()) < 0.3
    assert abs(values.std() - 0.5) < 0.1


def test_the_shipped_model_names_the_clips_as_well_as_its_card_says():
    model = AutoModelForAudioClassification.from_pretrained(demo_model_folder()).eval()
    extractor = AutoFeatureExtractor.from_pretrained(demo_model_folder())
    waves, labels = read_clips(demo_clips_folder() / "evaluation")
    # The extractor's own numbers, as another test shows, in a tenth of its time.
    lengths = np.array([len(wave) for wave in waves])
    padded = torch.stack([torch.from_numpy(np.pad(wave, (0, 17_600 - len(wave)))) for wave in waves])
    features = normalise(log_mel(padded, lengths, extractor), extractor.mean, extractor.std)
    accuracy = count_right(model, features, labels) / len(labels)
    assert 0.90 <= accuracy <= 0.98
    # Damage to attention is visible: with uniform attention few clips are named.
    few = slice(None, None, 8)
    assert count_right(with_uniform_attention(model), features[few], labels[few]) < 0.5 * len(labels[few])
    card = (demo_model_folder() / "README.md").read_text(encoding="utf-8")
    stated = float(card.split("## Accuracy")[1].split("%")[0])
    # Another processor may round a clip on the edge differently.
    assert abs(stated - 100 * accuracy) < 0.3


# The code that makes it


def test_log_mel_agrees_with_transformers_for_short_exact_and_long_clips():
    extractor = AutoFeatureExtractor.from_pretrained(demo_model_folder())
    rng = np.random.default_rng(0)
    lengths = np.array([400, 559, 560, 8_000, 16_000, 16_240, 17_600])
    waves = torch.zeros(len(lengths), 17_600)
    for row, length in enumerate(lengths):
        waves[row, :length] = torch.from_numpy(0.1 * rng.standard_normal(length).astype(np.float32) + 0.02)
    ours = normalise(log_mel(waves, lengths, extractor), extractor.mean, extractor.std).numpy()
    for row, length in enumerate(lengths):
        theirs = extractor(waves[row, :length].numpy(), sampling_rate=16_000, return_tensors="np")["input_values"][0]
        np.testing.assert_allclose(ours[row], theirs, atol=2e-4)


def test_a_mixed_clip_is_reverberant_speech_plus_noise_at_the_stated_ratio():
    samples, offsets, labels = tones()
    scene = make_scene(samples, offsets, labels, rooms=5, seed=3)
    ranges = Ranges(snr_db=(-5.0, 20.0), peak=(0.1, 0.1), room_share=0.0, odd_length_share=0.0)
    words = np.arange(35)
    noisy = mix(scene, words, ranges, np.random.default_rng(9))
    silent = scene.__class__(**{**vars(scene), "noises": torch.zeros_like(scene.noises)})
    clean = mix(silent, words, ranges, np.random.default_rng(9))
    # Of these two, any second is about as loud as the whole.
    steady = np.flatnonzero(noisy.noise < 2)
    assert set(noisy.noise[steady]) == {NOISES.index("white"), NOISES.index("pink")}
    for row in steady:
        word = words[row]
        speech, whole = clean.waves[row].double().numpy(), noisy.waves[row].double().numpy()
        assert np.abs(whole).max() == pytest.approx(0.1, rel=1e-4)
        # The noise is what is left when the best multiple of the speech is taken away (they are nearly uncorrelated).
        gain = np.dot(speech, whole) / np.dot(speech, speech)
        noise_power = np.mean((whole - gain * speech)[:16_000] ** 2)
        speech_power = np.sum((gain * speech) ** 2) / (offsets[word + 1] - offsets[word])
        ratio_db = 10 * math.log10(speech_power / noise_power)
        assert ratio_db == pytest.approx(noisy.snr_db[row], abs=1.5)


def test_reverberation_is_a_convolution_with_the_room_response():
    samples, offsets, labels = tones()
    scene = make_scene(samples, offsets, labels, rooms=4, seed=3)
    quiet = scene.__class__(**{**vars(scene), "noises": torch.zeros_like(scene.noises)})
    ranges = Ranges(snr_db=(10.0, 10.0), peak=(0.5, 0.5), room_share=1.0, odd_length_share=0.0)
    mixed = mix(quiet, np.array([4, 40]), ranges, np.random.default_rng(1))
    responses = torch.fft.irfft(scene.responses, n=24_576).numpy()
    dry_ranges = Ranges(snr_db=(10.0, 10.0), peak=(0.5, 0.5), room_share=0.0, odd_length_share=0.0)
    dry = mix(quiet, np.array([4, 40]), dry_ranges, np.random.default_rng(1))
    for row in range(2):
        errors = []
        for response in responses[1:]:
            wet = fftconvolve(dry.waves[row].numpy(), response)[:16_000]
            errors.append(np.abs(0.5 * wet / np.abs(wet).max() - mixed.waves[row, :16_000].numpy()).max())
        assert min(errors) < 1e-4 < sorted(errors)[1]


def test_room_responses_have_unit_energy_and_decay_as_stated():
    responses, rt60_s = make_responses(40, np.random.default_rng(0))
    np.testing.assert_allclose(np.sum(responses**2, axis=1), 1, rtol=1e-4)
    assert rt60_s[0] == 0
    assert np.count_nonzero(responses[0]) == 1
    for response, seconds in zip(responses[1:], rt60_s[1:], strict=True):
        tail = response[800:4_800].astype(np.float64).reshape(-1, 400)
        level_db = 10 * np.log10(np.sum(tail**2, axis=1))
        slope_db_per_s = np.polyfit(np.arange(len(level_db)) * 400 / 16_000, level_db, 1)[0]
        assert -60 / slope_db_per_s == pytest.approx(seconds, rel=0.15)


def test_noises_have_the_spectra_of_their_names():
    samples, offsets, _ = tones()
    noises = make_noises(samples, offsets, np.random.default_rng(0)).astype(np.float64)
    np.testing.assert_allclose(np.mean(noises**2, axis=1), 1, rtol=1e-3)
    power = np.abs(np.fft.rfft(noises)) ** 2
    hz = np.fft.rfftfreq(noises.shape[1], 1 / 16_000)

    def band(kind: str, low: float, high: float) -> float:
        return power[NOISES.index(kind)][(hz >= low) & (hz < high)].sum()

    assert band("white", 4_000, 8_000) == pytest.approx(band("white", 0, 4_000), rel=0.05)
    assert band("pink", 2_000, 4_000) == pytest.approx(band("pink", 200, 400), rel=0.1)
    assert band("hum", 0, 1_000) > 5 * band("hum", 1_000, 8_000)


def test_every_word_is_chosen_equally_often_and_voices_evenly():
    takes = plan_takes("calibration", 1, seed=0)
    chosen = choose_words(takes, 26, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 26 * 35
    voices = Counter((takes[k].label, takes[k].voice) for k in chosen)
    assert set(voices.values()) == {2}
    assert len(voices) == 35 * len(VOICES["calibration"])


def slim_model(query_key_widths: list[int], value_output_widths: list[int], seed: int) -> SlimASTForAudioClassification:
    """An untrained slim demo AST whose layers all have these widths."""
    settings = {key: value for key, value in new_config().to_diff_dict().items() if key != "model_type"}
    layers = settings["num_hidden_layers"]
    config = SlimASTConfig([query_key_widths] * layers, [value_output_widths] * layers, 0.125, **settings)
    torch.manual_seed(seed)
    model = SlimASTForAudioClassification(config)
    initialise(model)
    return model


@pytest.mark.parametrize("make", [lambda: new_model(seed=1), lambda: slim_model([8, 40, 24], [4, 16, 4], seed=1)])
def test_all_patches_kept_is_the_stock_forward(make):
    model = make().eval()
    values = torch.randn(2, 100, 128, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(108).expand(2, -1)
    with torch.no_grad():
        stock = model(values).logits
        torch.testing.assert_close(logits_of(model, tokens_of(model, values, None)), stock)
        torch.testing.assert_close(logits_of(model, tokens_of(model, values, everything)), stock)
        assert not torch.allclose(logits_of(model, tokens_of(model, values, everything[:, :50])), stock)


def test_slim_heads_start_with_scores_and_outputs_of_the_scale_that_dense_heads_start_with():
    torch.manual_seed(0)
    hidden = torch.randn(4_000, 256)
    spreads = []
    for model in (new_model(seed=1), slim_model([8, 40, 64], [16, 4, 20], seed=1)):
        attention = model.audio_spectrogram_transformer.layers[2].attention
        # How attention mixes the values is the same question for both; this is what it mixes.
        output = (attention.o_proj(attention.v_proj(hidden))).detach()
        query, key = attention.q_proj(hidden).detach(), attention.k_proj(hidden).detach()
        widths = getattr(attention, "query_key_widths", (64,) * 4)
        scores = [
            0.125 * (q @ k.T).std() for q, k in zip(query.split(widths, dim=1), key.split(widths, dim=1), strict=True)
        ]
        spreads.append((torch.stack(scores), output.std()))
    (dense_scores, dense_output), (slim_scores, slim_output) = spreads
    torch.testing.assert_close(dense_scores, torch.ones(4), atol=0.1, rtol=0)
    torch.testing.assert_close(slim_scores, torch.ones(3), atol=0.25, rtol=0)
    assert float(slim_output) == pytest.approx(float(dense_output), rel=0.2)


@pytest.mark.parametrize("make", [new_model, lambda seed: slim_model([8, 12], [4, 20], seed)])
def test_an_interrupted_training_continues_as_if_it_had_not_stopped(make, tmp_path: Path):
    torch.set_num_threads(1)
    samples, offsets, labels = tones()
    scene = make_scene(samples, offsets, labels, rooms=3, seed=0)
    extractor = AutoFeatureExtractor.from_pretrained(demo_model_folder())
    dev = mix(scene, np.arange(4), Ranges(snr_db=(0.0, 20.0), peak=(0.1, 0.5)), np.random.default_rng(0))
    schedule = Schedule(steps=4, batch=4, warmup_steps=1, save_every=2, check_every=4)

    def stop_at_three(step: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    def unheard(step: int, note: str) -> None:
        pass

    whole = train(make(0), extractor, scene, dev, schedule, tmp_path / "whole.safetensors", unheard)
    broken = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(make(0), extractor, scene, dev, schedule, broken, stop_at_three)
    resumed = train(make(5), extractor, scene, dev, schedule, broken, unheard)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert not torch.equal(whole.classifier.dense.weight, make(0).classifier.dense.weight)


def test_without_espeak_the_command_says_so_in_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "demo")]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "espeak-ng is not on PATH" in said[0]


def test_a_folder_begun_with_another_seed_is_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    main(["--out", str(tmp_path), "--seed", "1"])
    capsys.readouterr()
    assert main(["--out", str(tmp_path), "--seed", "2"]) == 2
    assert "schedule.json" in capsys.readouterr().err
