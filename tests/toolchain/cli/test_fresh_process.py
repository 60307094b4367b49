"""What is seen in a process that has run nothing else, of which there is one for each encoding of what it writes."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_tiny, write_tones
from tests.toolchain.cli.test_interrupted import INTERRUPTED

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
ON_CLIPS = ("--data", "{data}", "--out")
COMMANDS = {
    "ASCII": {
        "help": ("--help",),
        "targets": ("targets",),
        "no folder": ("prune", "{out}/größer", "--out", "{out}/slim"),
    },
    "C": {
        "lacks": ("eval", "{lacks}", "--data", "{data}"),
        "has more": ("eval", "{has_more}", "--data", "{data}"),
        "explore": ("explore", "{model}", *ON_CLIPS, "{out}/explored"),
        "prune": ("prune", "{model}", *ON_CLIPS, "{out}/größer", "--sparsity", "0.4"),
        "interrupted": ("prune", "{model}", *ON_CLIPS, "{out}/early", "--recovery", "full"),
    },
}
SEVERAL = """
import json, sys
from leanear.entry import main
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv = ["leanear", *arguments]
    try:
        if name == "interrupted":
            from tests.toolchain.interrupting import interrupted_at
            sys.exit(interrupted_at("leanear.prune.pruning.read_calibration", arguments))
        main()
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            print("--", stop.code or 0, file=stream, flush=True)
"""


def write_odd(model: Path, folder: Path, **weights) -> Path:
    """A checkpoint that has these weights in place of the model's, and one that is none of the model's."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    odd = {**tensors, **weights, "another.weight": tensors["classifier.dense.bias"].clone()}
    save_file(odd, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def in_one_process(out):
    """Gives, by name, status, output and errors of the commands in an environment, run once, one after another."""
    import torch

    model = write_tiny(out / "model")
    lacks = write_odd(model, out / "lacks", **{"classifier.dense.bias": torch.zeros(1)})
    places = {"model": model, "data": write_tones(out / "data", 8), "out": out}
    places.update(lacks=lacks, has_more=write_odd(model, out / "has-more"))

    def ended(environment):
        commands = {name: [word.format(**places) for word in said] for name, said in COMMANDS[environment].items()}
        program = [sys.executable, "-c", SEVERAL, json.dumps(commands, ensure_ascii=False)]
        environ = {**os.environ, **ENVIRONMENTS[environment]}
        process = subprocess.run(program, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
        parts = [re.split(r"-- (\d+)\n", stream) for stream in (process.stdout, process.stderr)]
        assert len(parts[0]) == len(parts[1]) == 2 * len(commands) + 1, process.stderr
        return dict(zip(commands, zip(map(int, parts[0][1::2]), parts[0][::2], parts[1][::2])))

    return functools.cache(ended)


@pytest.mark.parametrize(
    ("environment", "name"), [*(("ASCII", name) for name in COMMANDS["ASCII"]), ("C", "explore"), ("C", "prune")]
)
def test_no_letter_is_too_much_for_an_output_in_ascii(in_one_process, environment, name):
    status, printed, errors = in_one_process(environment)[name]
    assert "Traceback" not in errors
    assert status in (0, 1, 2), errors
    assert printed or errors


def test_of_weights_that_do_not_fit_one_line_is_all_that_is_said(in_one_process):
    said = [in_one_process("C")[name][2] for name in ("lacks", "has more")]
    lacks, has_more = ([line for line in errors.splitlines() if not line.startswith("  ")] for errors in said)
    assert len(lacks) == len(has_more) == 1, said
    assert "'classifier.dense.bias' has another shape in the weights" in lacks[0]
    assert has_more[0].endswith("weights that are none of the model's are not used: another.weight")


def test_before_anything_is_kept_nothing_is_called_so(in_one_process, out):
    """Ctrl-C where the clips are to be read, in a process that has kept the chunks of commands before."""
    status, _, errors = in_one_process("C")["interrupted"]
    assert (status, errors.strip().splitlines()[-1]) == (130, INTERRUPTED)
    assert not list(out.glob(".early.state/**/*.safetensors"))
