"""Whisper side by side with its peers: models for whisper.cpp, turns that are resumed, tables."""

from __future__ import annotations

import argparse
import struct

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.peers import real_whisper
from leanear.benchmarks.peers.ggml import Q5_1, Q8_0, openai_name, packed, write_ggml
from leanear.benchmarks.peers.lasting_worker import WorkerFailed
from leanear.benchmarks.peers.real_whisper_models import Engine, our_engines, peers, sources_sha256
from leanear.benchmarks.peers.real_whisper_table import Ears, tables
from leanear.benchmarks.peers.real_whisper_worker import TimedSession, status_bytes
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.decode_options import DecodeOptions
from leanear.runtimes.speech.long_audio import transcribe
from tests.runtimes.speech_sessions import MODEL, hashed
from tests.whisper_models import write_whisper


def test_blocks_of_eight_bits_give_back_what_went_in():
    """The layout is read here by hand: a float16 scale and 32 signed bytes."""
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    values[1, :32] = 0
    data = packed(values, Q8_0)
    assert len(data) == 8 * 34
    for place, block in enumerate(values.reshape(-1, 32)):
        scale, *levels = struct.unpack("<e32b", data[34 * place : 34 * place + 34])
        np.testing.assert_allclose(scale * np.array(levels), block, atol=np.abs(block).max() / 200)


def test_blocks_of_five_bits_give_back_what_went_in():
    """The layout is read here by hand: step, least value, 32 fifth bits, 16 bytes of two low nibbles."""
    values = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    data = packed(values, Q5_1)
    assert len(data) == 2 * 24
    for place, block in enumerate(values):
        step, least, high, *low = struct.unpack("<eeI16B", data[24 * place : 24 * place + 24])
        levels = [each & 15 for each in low] + [each >> 4 for each in low]
        levels = [level + 16 * (high >> number & 1) for number, level in enumerate(levels)]
        np.testing.assert_allclose(least + step * np.array(levels), block, atol=(block.max() - block.min()) / 55)


def test_names_are_openais():
    assert (
        openai_name("model.decoder.layers.3.encoder_attn.q_proj.weight") == "decoder.blocks.3.cross_attn.query.weight"
    )
    assert openai_name("model.encoder.layers.0.self_attn_layer_norm.bias") == "encoder.blocks.0.attn_ln.bias"
    assert openai_name("model.encoder.layers.0.final_layer_norm.bias") == "encoder.blocks.0.mlp_ln.bias"
    assert openai_name("model.encoder.layer_norm.weight") == "encoder.ln_post.weight"
    assert openai_name("model.decoder.embed_positions.weight") == "decoder.positional_embedding"


def test_a_model_for_whisper_cpp_has_every_tensor_and_nothing_behind(tmp_path):
    checkpoint, out = write_whisper(tmp_path / "checkpoint"), tmp_path / "model.bin"
    write_ggml(checkpoint, out, "f16")
    data = out.read_bytes()
    magic, vocabulary, positions, width, *_, bins, kind = struct.unpack_from("<12i", data)
    assert (magic, kind) == (0x67676D6C, 1)
    at = 48
    rows, columns = struct.unpack_from("<2i", data, at)
    assert rows == bins
    at += 8 + 4 * rows * columns
    (tokens,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(tokens):
        at += 4 + struct.unpack_from("<i", data, at)[0]
    shapes = {}
    while at < len(data):
        dimensions, length, kind = struct.unpack_from("<3i", data, at)
        shape = struct.unpack_from(f"<{dimensions}i", data, at + 12)[::-1]
        at += 12 + 4 * dimensions
        shapes[data[at : at + length].decode()] = shape
        at += length + int(np.prod(shape)) * (4 if kind == 0 else 2)
    assert at == len(data)
    assert shapes["decoder.token_embedding.weight"] == (vocabulary, width)
    assert shapes["encoder.positional_embedding"] == (positions, width)
    assert shapes["encoder.conv1.bias"] == (width, 1)


def test_engines_have_names_of_their_own():
    engines = [*peers(), *our_engines(True)]
    assert len({engine.name for engine in engines}) == len(engines)
    assert Engine("openvino", "int8", "auto", True).name == "leanear, OpenVINO int8, auto, slim"


def test_only_chooses_by_part_of_a_name():
    chosen = real_whisper.chosen_engines(argparse.Namespace(only=["int8, auto"], slim=None))
    assert {engine.library for engine in chosen} == {"onnxruntime", "openvino"}
    assert not any(engine.slim for engine in chosen)
    with pytest.raises(BadInput, match="--only wispr: part of no engine's name: faster-whisper float32; "):
        real_whisper.chosen_engines(argparse.Namespace(only=["wispr"], slim=None))


def test_other_code_of_ours_is_another_sha(tmp_path, monkeypatch):
    monkeypatch.setattr("leanear.benchmarks.peers.real_whisper_models.ROOT", tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "graph.py").write_text("one = 1\n")
    before = sources_sha256("export")
    assert sources_sha256("export") == before
    (tmp_path / "export" / "graph.py").write_text("one = 2\n")
    assert sources_sha256("export") != before


class Answers:
    """A worker that says the reference, or one that dies."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.asked = seconds, 0

    def ask(self, request: dict) -> dict:
        self.asked += 1
        if self.seconds is None:
            raise WorkerFailed("ended by signal 9: nothing on stderr")
        parts = {
            "encode_s": 0.6 * self.seconds,
            "step_s": 0.3 * self.seconds,
            "short": 1,
            "second_tries": 0,
            "cpu_s": 2 * self.seconds,
        }
        return {
            "heard": [{"text": " Seven", "seconds": self.seconds, **parts}] * len(request["clips"]),
            "peak_bytes": 9,
        }

    def close(self) -> None:
        pass


@pytest.fixture
def options(tmp_path):
    for split, count in (("train", 1), ("test", 3)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for number in range(count):
            soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 16_000), 16_000)
        lines = [f"{number}.wav,{'seven' if number else 'eight'}" for number in range(count)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    checkpoint = write_whisper(tmp_path / "checkpoint")
    return argparse.Namespace(
        checkpoint=str(checkpoint), slim=None, data=tmp_path / "data", state=tmp_path / "state", rounds=2, clips=2,
        no_joined=False, threads=1, minutes=float("inf"),
    )  # fmt: skip


def test_what_was_heard_is_kept_and_an_engine_that_fails_is_one_line(options, capsys):
    fast, slow = Engine("openvino", "fp32", "full"), Engine("openvino-genai", "fp32")
    run = real_whisper.Run(options)
    run._workers = {fast: Answers(0.1), slow: Answers(0.2), Engine("whisper.cpp", "f16"): Answers(None)}
    assert run.hear_all()
    assert run.failures == {"whisper.cpp f16": "ended by signal 9: nothing on stderr"}
    assert "not measured: whisper.cpp f16: ended by signal 9" in capsys.readouterr().err
    again = real_whisper.Run(options)
    again._workers = {fast: Answers(0.1), slow: Answers(0.2)}
    assert again.hear_all()
    assert again._workers[fast].asked == 0
    said = "\n".join(
        tables(Ears(again.rows, [fast.name, slow.name], again.clips, real_whisper.JOINED), options.data, 1)
    )
    # One second each and one word wrong of three; the joined clips were heard in a tenth of one clip's three seconds.
    assert (
        "| leanear, OpenVINO fp32, full | 0.1000 | 0.500 (0.500 to 0.500) | 0.2000 | 0.0333 | 33.33 | 1 / 0 / 0 |"
        in said
    )
    assert (
        "| leanear, OpenVINO fp32, full | OpenVINO GenAI fp32 | 0.500 (0.500 to 0.500) | 0.500 (0.500 to 0.500) |"
        in said
    )
    assert "| leanear, OpenVINO fp32, full | 600.0 | 300.0 | 100.0 | 1000.0 |" in said


def test_a_run_out_of_time_says_that_it_is_not_whole(options):
    options.minutes = -1.0
    run = real_whisper.Run(options)
    run._workers = {Engine("openvino", "fp32", "full"): Answers(0.1)}
    assert not run.hear_all()
    assert run.rows == []


def test_a_session_is_timed_part_by_part_and_says_the_same():
    options, waveform = DecodeOptions(best_of=2), np.full(1500, 0.1, np.float32)
    timed = TimedSession(hashed(0))
    said = list(transcribe(timed, MODEL, waveform, options))
    assert said == list(transcribe(hashed(0), MODEL, waveform, options)) != []
    assert timed.encode_s > 0 < timed.step_s


def test_a_process_knows_its_memory():
    assert status_bytes("VmHWM") >= status_bytes("VmRSS") > 2**20
    with pytest.raises(ValueError, match="no line VmNothing"):
        status_bytes("VmNothing")
