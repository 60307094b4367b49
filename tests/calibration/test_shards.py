"""Chunks are computed once, added in their order, and kept until all are there; only those of the same inputs."""

from __future__ import annotations

import pytest
import torch

from leanear.calibration import shards
from leanear.calibration.shards import gather
from leanear.calibration.statistics import merge_statistics, statistics_from_tensors, statistics_tensors
from leanear.runtimes.errors import BadInput
from tests.calibration.collected import collect_statistics
from tests.calibration.small_attention import Attention, logits

MADE_FROM = {"checkpoint": "0" * 64}
CHUNKS = torch.arange(7).split(3)


class Work:
    """Statistics of seven clips in chunks of three, three and one, and which chunks were asked for."""

    def __init__(self):
        self.model = Attention(4, cross=True)
        self.site = self.model.site()
        self.inputs = torch.randn(7, 10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        self.asked: list[int] = []
        self.told: list[tuple[int, int]] = []

    def of(self, clips):
        """In the types that the statistics of any fp32 model have."""
        return collect_statistics(
            self.model.float(), (self.model.site(),), self.inputs[clips].float(), clips % 3, logits, labels="observed"
        )

    def compute(self, number: int):
        self.asked.append(number)
        return statistics_tensors(self.of(CHUNKS[number]))

    def gather(self, folder=None, made_from=MADE_FROM, fail_at=None):
        def progress(done, total):
            self.told.append((done, total))
            if done == fail_at:
                raise KeyboardInterrupt

        self.asked.clear()
        self.told.clear()

        parts = gather(len(CHUNKS), self.compute, folder=folder, made_from=made_from, progress=progress)
        return merge_statistics(*map(statistics_from_tensors, parts))


def equal(one, other) -> bool:
    one, other = statistics_tensors(one), statistics_tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_chunks_are_added_in_their_order_and_are_the_whole():
    work = Work()
    found = work.gather()
    assert work.asked == [0, 1, 2]
    assert work.told == [(1, 3), (2, 3), (3, 3)]
    assert equal(found, merge_statistics(*(work.of(chunk) for chunk in CHUNKS)))
    for name, tensor in statistics_tensors(work.of(torch.arange(7))).items():
        assert torch.allclose(statistics_tensors(found)[name], tensor, rtol=1e-5, atol=1e-5), name


def test_interrupted_work_goes_on_to_the_same_sums(tmp_path):
    work = Work()
    expected = work.gather()
    with pytest.raises(KeyboardInterrupt):
        work.gather(tmp_path, fail_at=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk-00000.safetensors", "chunk-00001.safetensors"]
    assert equal(work.gather(tmp_path), expected)
    assert work.asked == [2]
    assert work.told == [(3, 3)]
    assert equal(work.gather(tmp_path), expected)
    assert work.asked == []


@pytest.mark.parametrize("damage", ["other inputs", "cut short", "text", "gone", "no description"])
def test_what_is_not_whole_or_not_of_these_inputs_is_computed_again(tmp_path, damage, caplog):
    work = Work()
    expected = work.gather(tmp_path)
    path = tmp_path / "chunk-00001.safetensors"
    if damage == "other inputs":
        path.unlink()
        work.gather(tmp_path, made_from={"checkpoint": "1" * 64})
        assert work.asked == [0, 1, 2], "none of the others is taken either"
        assert equal(work.gather(tmp_path), expected)
        assert work.asked == [0, 1, 2]
        return
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    if damage == "text":
        path.write_text("chunk")
    if damage == "gone":
        path.unlink()
    if damage == "no description":
        from safetensors.torch import load_file, save_file

        save_file(load_file(path), path)
    assert equal(work.gather(tmp_path), expected)
    assert work.asked == [1]
    said = [f"note: {path}: damaged; what was kept in it is made again"] if damage in ("cut short", "text") else []
    assert caplog.messages == said


def test_a_full_disk_is_an_error_of_the_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def no_room(*_arguments, **_options):
        raise SafetensorError("I/O error: no room")

    monkeypatch.setattr(shards, "save_file", no_room)
    with pytest.raises(OSError, match="no room") as caught:
        Work().gather(tmp_path)
    assert caught.value.filename == str(tmp_path / "chunk-00000.safetensors")
    assert not list(tmp_path.iterdir())


def test_alone_there_is_nothing_to_join(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with shards.processes() as rank:
        assert (rank, shards.rank(), shards.world_size()) == (0, 0, 1)
    tensor = torch.ones(2)
    shards.broadcast([tensor])
    shards.wait()
    assert tensor.tolist() == [1, 1]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="2 processes, more than GPUs: give it --nproc-per-node 1"), shards.processes():
        raise AssertionError("they would share a GPU, which nccl does not do")
