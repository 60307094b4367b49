"""The comparison with Whisper's peers: its arithmetic, and the processes that answer one request at a time."""

from __future__ import annotations

import io
import os
import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from leanear.benchmarks.peers.lasting_worker import LastingWorker, WorkerFailed
from leanear.benchmarks.peers.whisper_results import (
    GOALS,
    Goal,
    Ratio,
    Turn,
    agreement,
    bytes_per_token,
    compare,
    encoder_operations,
    growth_bytes,
    median_interval,
    others_share,
    ratio_of,
    show_floor,
    show_memory,
    show_ratios,
    show_speed,
    verdict,
)
from leanear.benchmarks.peers.whisper_speed import ENGINES, Engine, Run, check_tokens, ragged_widths, window_of
from leanear.benchmarks.peers.whisper_worker import (
    Disturbance,
    Repeated,
    measure_reading,
    peers_checkpoint,
    status_bytes,
)

WORKER = "tests.benchmarks.odd_lasting_worker"
TINY = {
    "d_model": 384, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "encoder_layers": 4, "decoder_layers": 4,
    "vocab_size": 51865, "max_source_positions": 1500, "num_mel_bins": 80,
}  # fmt: skip


@pytest.fixture
def worker():
    worker = LastingWorker(Path(sys.executable), WORKER)
    yield worker
    worker.close()


def turns(*seconds: float, front_end_s: float | None = None, others: float = 0.0) -> list[Turn]:
    return [Turn(each, each / 2, front_end_s, others, 2 * each) for each in seconds]


def test_one_process_answers_one_request_after_another(worker):
    first, second = worker.ask({"do": "count", "word": "a"}), worker.ask({"do": "count", "word": "b"})
    assert first["process"] == second["process"] != os.getpid()
    assert second["asked"] == ["a", "b"]


def test_a_closed_worker_ends_and_starts_afresh(worker):
    first = worker.ask({"do": "count", "word": "a"})
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first["process"], 0)
    worker.close()
    assert worker.ask({"do": "count", "word": "b"})["asked"] == ["b"]


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("crash", "ended with status 1: ZeroDivisionError: division by zero"),
        ("nan", "ended with status 1: ValueError: Out of range float values"),
        ("unheard of", "ended with status 1: KeyError: 'unheard of'"),
        ("die", "ended by signal 9: "),
        ("list", "answered something that is not a JSON object: '[1, 2]'"),
    ],
)
def test_a_failure_is_a_reason_and_never_an_answer(worker, do, said):
    with pytest.raises(WorkerFailed) as failure:
        worker.ask({"do": do})
    assert str(failure.value).startswith(said)


def test_the_log_of_a_failure_is_kept(worker):
    worker.ask({"do": "count", "word": "a"})
    with pytest.raises(WorkerFailed) as failure:
        worker.ask({"do": "crash"})
    assert "a library prints this to stdout" in failure.value.log_tail
    assert "and so does a program that it starts" in failure.value.log_tail


def test_a_dead_worker_says_so_again(worker):
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="ended by signal 9"):
            worker.ask({"do": "die"})
    assert not worker.alive


def test_a_silent_worker_is_ended(worker):
    process = worker.ask({"do": "count", "word": "a"})["process"]
    with pytest.raises(WorkerFailed, match=r"said nothing for 0\.5 s"):
        worker.ask({"do": "hang"}, limit_s=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_environment_that_is_not_there_is_a_failure(tmp_path):
    worker = LastingWorker(tmp_path / "python", WORKER)
    with pytest.raises(WorkerFailed, match="No such file"):
        worker.ask({"do": "count", "word": "a"})
    worker.close()


@pytest.mark.parametrize("count", [6, 7, 15, 20, 40])
def test_the_interval_has_the_confidence_that_it_promises(count):
    low, high = median_interval([float(number) for number in range(count)])
    rank = int(low)  # values below the interval's lower end
    assert high == count - 1 - rank

    def outside(rank: int) -> float:
        return 2 * sum(comb(count, below) for below in range(rank + 1)) / 2**count

    assert outside(rank) <= 0.05 < outside(rank + 1)


def test_the_interval_covers_the_median_of_a_skewed_law():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = median_interval(list(generator.exponential(size=15)))
        covered += low <= np.log(2) <= high
    assert covered / 2000 == pytest.approx(1 - 2 * (1 + 15 + 105 + 455) / 2**15, abs=0.015)


def test_few_rounds_give_extremes_and_no_verdict():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert verdict(Ratio(0.5, 0.5, 0.5, 5), Goal("a", "b", 0.85)) == "too few rounds"


def test_ratios_are_of_the_same_round():
    ratio = ratio_of([1.0, 10.0, 1.0], [2.0, 20.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (0.5, 0.5, 0.5, 3)
    with pytest.raises(ValueError):
        ratio_of([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(0.7, 0.6, 0.8, 15), "met"),
        (Ratio(0.8, 0.7, 0.9, 15), "met by the median"),
        (Ratio(0.9, 0.8, 1.0, 15), "missed"),
    ],
)
def test_a_goal_is_met_by_the_whole_interval_or_by_the_median(ratio, said):
    assert verdict(ratio, Goal("a", "b", 0.85)) == said
    assert verdict(ratio, Goal("a", "b", None)) == ""


def test_goals_name_engines_and_ours_are_measured_against_dense_peers():
    engines = {engine.name: engine for engine in ENGINES}
    assert len(engines) == len(ENGINES)
    for goal in GOALS:
        assert engines[goal.ours].ours
        assert engines[goal.peer].model == "dense"
        assert engines[goal.ours].exact == engines[goal.peer].exact
    assert not any(engine.model == "slim" and not engine.ours for engine in ENGINES)


def test_comparing_leaves_out_who_was_not_measured_and_counts_quiet_rounds():
    rows = compare(
        {
            "ours fp32": turns(*[0.6] * 8),
            "CTranslate2 float32": turns(*[1.0] * 7, front_end_s=0.2) + turns(1.0, front_end_s=0.2, others=0.5),
        }
    )
    assert [(row["ours"], row["peer"]) for row in rows] == [("ours fp32", "CTranslate2 float32")]
    (row,) = rows
    assert row["ratio"]["median"] == pytest.approx(0.6)
    assert row["ratio_without_the_peers_front_end"]["median"] == pytest.approx(0.75)
    assert row["verdict"] == "met"
    assert row["quiet_rounds"] == 7


def test_the_share_of_others_is_the_median_turns():
    assert others_share({"a": turns(1.0, others=0.1), "b": turns(1.0, 1.0, others=0.3)}) == 0.3


def test_tokens_agree_up_to_the_first_difference():
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert agreement([1, 2], [1, 2]) == 2
    with pytest.raises(ValueError):
        agreement([1, 2], [1])


def test_exact_engines_must_agree_with_an_exact_peer_and_slim_ones_among_themselves(tmp_path):
    run = Run(tmp_path / "python", tmp_path, 2, 3, ENGINES)
    found = check_tokens(
        run,
        {
            "ours fp32": [1, 2, 3],
            "ours int8": [1, 9, 9],
            "CTranslate2 float32": [1, 2, 4],
            "ours fp32, 50 % pruned": [7, 7, 7],
            "ours OpenVINO fp32, 50 % pruned": [7, 7, 7],
        },
    )
    assert found["ours fp32"] == {"same_tokens": 2, "as": "CTranslate2 float32", "must": True, "of": 3}
    assert found["ours int8"]["must"] is False
    assert found["ours OpenVINO fp32, 50 % pruned"]["as"] == "ours fp32, 50 % pruned"
    assert "optimum fp32" not in found


def test_growth_is_the_slope_after_the_start():
    assert growth_bytes([100 + 5 * minute for minute in range(60)]) == pytest.approx(5 * 47)
    assert growth_bytes([0, 50, 80, 99, 99, 99, *[100] * 24]) == pytest.approx(0, abs=1e-6)
    assert growth_bytes([7]) == 0


def test_the_floor_counts_what_a_step_reads():
    needed = bytes_per_token(TINY, 100)
    assert needed["weights"] == 4 * 4 * (6 * 384 * 384 + 2 * 384 * 1536)
    assert needed["vocabulary"] == 4 * 51865 * 384
    assert needed["cross_cache"] == 4 * 4 * 2 * 1500 * 384
    assert needed["self_cache"] == 4 * 4 * 2 * 50 * 384


def test_the_encoders_operations_are_those_of_torch():
    """torch's own counter, over an encoder of other sizes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {
        "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 3, "decoder_layers": 0,
        "vocab_size": 99, "max_source_positions": 50, "num_mel_bins": 20,
    }  # fmt: skip
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(**sizes, **heads, **tokens, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        WhisperEncoder(config).eval()(torch.zeros(1, 20, 100))
    assert encoder_operations(sizes) == counter.get_total_flops()


@pytest.mark.parametrize("seed", range(20))
def test_pruned_widths_keep_half(seed):
    widths = ragged_widths(np.random.default_rng(seed), 6)
    assert sum(widths) == 6 * 32
    assert all(8 <= width <= 56 and width % 4 == 0 for width in widths)


def test_a_window_is_filled_up_or_cut():
    short, long = np.ones(5, np.float32), np.ones(16000 * 31, np.float32)
    assert window_of(short).sum() == 5
    assert window_of(long).shape == window_of(short).shape == (480000,)


def test_repeated_audio_ends_where_it_was_told_to():
    audio = Repeated(np.arange(4, dtype=np.float32), 10)
    assert audio[0:6].tolist() == [0, 1, 2, 3, 0, 1]
    assert audio[6:99].tolist() == [2, 3, 0, 1]
    assert len(audio[10:20]) == 0


def test_peers_get_the_weights_and_a_tokenizer_that_they_can_read(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_text(name)
    out = peers_checkpoint(source, tmp_path / "out")
    assert (out / "model.safetensors").read_text() == "model.safetensors"
    assert "PreTrainedTokenizerFast" in (out / "tokenizer_config.json").read_text()


def test_a_process_knows_its_memory_and_its_disturbance():
    assert status_bytes("VmHWM") >= status_bytes("VmRSS") > 2**20
    with pytest.raises(ValueError, match="no line VmNothing"):
        status_bytes("VmNothing")
    with Disturbance() as others:
        sum(range(10**5))
    assert others.share >= 0
    assert others.own_s > 0


def test_an_engine_that_fails_is_one_line_and_the_others_go_on(tmp_path, capsys):
    class Silent:
        def __init__(self, answer: dict | None) -> None:
            self.answer = answer

        def ask(self, request: dict) -> dict:
            if self.answer is None:
                raise WorkerFailed("ended by signal 9: nothing on stderr")
            return self.answer

        def close(self) -> None:
            pass

    run = Run(tmp_path / "python", tmp_path, 2, 3, ENGINES[:2])
    answer = {"total_s": 1.0, "front_end_s": 0.1, "others_share": 0.0, "cpu_s": 2.0, "tokens": [1, 2, 3]}
    run.workers = {"ours fp32": Silent(answer), "ours int8": Silent(None)}
    found = run.rounds(2)
    assert list(found) == ["ours fp32"]
    assert found["ours fp32"][0].total_s == 1.0
    assert run.failures == {"ours int8": "ended by signal 9: nothing on stderr"}
    assert capsys.readouterr().err.splitlines() == ["ours int8: ended by signal 9: nothing on stderr"]


def test_the_tables_show_what_was_measured():
    console = Console(width=200, record=True, file=io.StringIO())
    found = {"ours fp32": turns(*[0.6] * 8), "CTranslate2 float32": turns(*[1.0] * 8, front_end_s=0.03)}
    same = {"ours fp32": {"same_tokens": 100, "as": "CTranslate2 float32", "must": True, "of": 100}}
    show_speed(console, found, same, 100)
    show_ratios(console, compare(found))
    floor = {"bytes_per_token": {"weights": 130_000_000}, "reading_gb_per_s": {"best": 20.0}, "token_ms": 6.5,
             "encoder_gflop": 40.5, "multiplying_gflop_per_s": {"best": 200.0}, "encoder_ms": 202.5}  # fmt: skip
    show_floor(console, floor)
    memory = {"weight_bytes": 151e6, "loaded_bytes": 200e6, "first_peak_bytes": 250e6, "long_peak_bytes": 310e6,
              "fallback_peak_bytes": 320e6, "limit_bytes": 301e6, "growth_bytes": 0.0,
              "resident_bytes": [1] * 60, "audio_s": 1800.0}  # fmt: skip
    show_memory(console, {"ours fp32": memory})
    text = console.export_text()
    for said in (
        "100 of 100",
        "0.600 (0.600 to 0.600)",
        "met",
        "6.50 ms",
        "missed",
        "+0.0 in 30 min (flat)",
        "3.00",
    ):
        assert said in text


def test_reading_is_measured(monkeypatch):
    monkeypatch.setattr("leanear.benchmarks.peers.whisper_worker.MEASURE_S", 0.05)
    found = measure_reading({"threads": 1, "bytes": 4_000_000})
    assert 0 < found["median"] <= found["best"]


def test_engines_have_forms_of_their_own():
    assert len({engine.form for engine in ENGINES}) == len(ENGINES)
    assert Engine("a", "onnxruntime", "int8").exact is False
