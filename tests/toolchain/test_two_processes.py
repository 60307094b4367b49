"""Pruning and recovery on two processes of `torchrun`, started once for both, end with what one process makes."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from leanear.plan import read_plan
from leanear.recover.kept_training import STATE_FILE
from tests.conftest import make_tiny_ast, tone, write_tiny
from tests.toolchain.recover.test_distillation import damaged

ROOT = Path(__file__).parents[2]
WORKER = """
import os
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from leanear.calibration.shards import processes
from leanear.cli.commands import run
from leanear.recover.distillation import Distillation
from tests.conftest import make_tiny_ast
from tests.toolchain.recipes import recipe_flags
from tests.toolchain.recover.test_distillation import damaged, distill_hidden, parts

model, data, out, rank = *sys.argv[1:], os.environ.get("RANK", "0")
with processes():
    shots = recipe_flags(Path(out), "shots = 2")
    for name, goal in (("half", ["--sparsity", "0.5"]), ("shots", ["--sparsity", "0.8", *shots]),
                       ("search", ["--max-drop", "60"])):
        flags = ["--out", f"{out}/{name}", "--calibration-clips", "60", *goal]
        status = run(["prune", model, "--data", data, *flags])
        assert status == 0, (name, status)
    teacher = make_tiny_ast()
    for method in ("full", "lora"):
        student, said = damaged(teacher), []
        # 33 clips in batches of 8 leave 1 for the last update, of which the second process has no part
        options = Distillation(
            method=method, epochs=2, batch_size=8, hidden_weight=0.5, learning_rate=1e-3, seconds=600.0, bfloat16=False
        )
        distill_hidden(
            student, teacher, *parts(37, held_out=4), options, state=Path(out, method), made_from={"model": "0"},
            report=lambda text, fraction=None: said.append(text),
        )
        assert bool(said) == (rank == "0"), said
        save_file(student.state_dict(), Path(out, f"{method}-{rank}.safetensors"))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with what one process made, `one`, and what two did, `two`.

    Of sixty clips 48 are scored: three chunks, so that one process has two of them and the other one.
    """
    from torch.distributed.run import main as torchrun  # for this alone, half a second in every process of the tests

    folder = tmp_path_factory.mktemp("made")
    model, data = write_tiny(folder / "model"), folder / "data"
    for label, frequency_hz in (("yes", 500), ("up", 1500), ("left", 2500), ("down", 3500)):
        (data / label).mkdir(parents=True)
        for number in range(30):
            noise = np.random.default_rng(number).normal(size=6400)
            clip = tone(frequency_hz + 20 * number) + 0.02 * number * noise
            soundfile.write(data / label / f"{number}.wav", clip.clip(-1, 1), 16000)
    given = ["-c", str(model), str(data)]
    launcher = ["--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        for name, value in (("PYTHONPATH", str(ROOT)), ("OMP_NUM_THREADS", "1"), ("CUDA_VISIBLE_DEVICES", "")):
            patch.setenv(name, value)
        # torchrun itself, which here need not import torch again; it raises what is not ended with 0
        two = pool.submit(torchrun, [*launcher, given[0], WORKER, *given[1:], str(folder / "two")])
        patch.setattr(sys, "argv", [*given, str(folder / "one")])
        exec(WORKER, {})  # the one
        two.result(timeout=600)
    return folder


def test_two_processes_write_the_plan_of_one_to_the_byte(made):
    plans = {}
    for name in ("half", "shots", "search"):
        one, two = (made / processes / name for processes in ("one", "two"))
        for file in ("plan.json", "pruning.json", "model.safetensors"):
            assert (one / file).read_bytes() == (two / file).read_bytes(), (name, file)
        plans[name] = read_plan(one / "plan.json")
    assert plans["half"].sparsity >= 0.5
    assert plans["shots"].sparsity >= 0.8
    assert plans["half"].sites != plans["shots"].sites
    assert len(json.loads((made / "two" / "search" / "pruning.json").read_text())["search"]) > 1
    assert not list(made.rglob("*.state")), "nothing is left behind"


def test_two_processes_end_with_one_model_that_is_the_single_processs(made):
    start = damaged(make_tiny_ast()).state_dict()
    for method in ("full", "lora"):
        one = load_file(made / "one" / f"{method}-0.safetensors")
        first, second = (load_file(made / "two" / f"{method}-{rank}.safetensors") for rank in (0, 1))
        for name, value in one.items():
            assert torch.isfinite(first[name]).all()
            assert torch.equal(first[name], second[name]), name
            if not name.endswith("k_proj.bias"):  # its gradient is rounding alone, which AdamW brings to full size
                assert torch.allclose(first[name], value, atol=1e-5), name
        moved = max((value - start[name]).abs().max().item() for name, value in one.items())
        assert moved > 1e-3, "the models do not agree because none was trained"
        assert [path.name for path in (made / "two" / method).iterdir()] == [STATE_FILE]
