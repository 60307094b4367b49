"""What a user passes to make reaches `leanear` as it was typed, whatever it holds, and runs nothing on its way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leanear.cli.deploying import deploy

MAKEFILE = Path(__file__).parents[3] / "Makefile"
ODD = [
    'it\'s "odd"; touch PWNED | touch PWNED & touch PWNED',
    "$(shell touch PWNED)",
    "$$(touch PWNED) ${HOME} $HOME $$HOME `touch PWNED` $(info x) $(eval y:=z)",
    "two\nlines\n\ttouch PWNED\nall: ; touch PWNED",
    "# no comment",
    "ends with \\",
    "-oProxyCommand=touch PWNED",
    "--help",
    "%.o: %.c",
    "two  spaces, and at the end  ",  # make itself drops those at the beginning
    "ü ☃ \x1b[31m",
]
TELLING = """#!{python}
import json, os, sys
told = {{name: os.environ[name] for name in sorted(os.environ) if name.startswith("LEANEAR_DEPLOY_")}}
print(json.dumps([sys.argv[1:], told]))
open("typed", "w").write(os.environ.get("LEANEAR_TYPED", ""))
"""
FLAGS = {
    "TARGET": "--target", "DATA": "--data", "SPARSITY": "--sparsity", "SPEEDUP": "--speedup",
    "LATENCY_MS": "--latency-ms", "RTF": "--rtf", "MACS": "--macs", "MAX_DROP": "--max-drop", "PRUNE": "--prune",
    "RECOVERY": "--recovery", "RECIPE": "--recipe", "OUT": "--out", "SUSTAINED": "--sustained",
    "PRECISION": "--precision", "WINDOW": "--window", "HOST": "--host", "HOSTS": "--hosts",
    "DEVICE_PYTHON": "--device-python",
}  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder whose `leanear` prints what it is given."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in (".requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".venv" / ".ready").touch()
    program = tmp_path / ".venv" / "bin" / "leanear"
    program.write_text(TELLING.format(python=sys.executable))
    program.chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        ended = subprocess.run(
            ["make", "--silent", *arguments],
            cwd=tmp_path,
            env={**kept, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr
        assert not list(tmp_path.rglob("PWNED"))
        assert not Path("PWNED").exists()
        given, told = json.loads(ended.stdout)
        return given, told

    return run


@pytest.mark.parametrize("odd", ODD)
def test_every_value_arrives_as_it_was_typed(make, odd):
    given, told = make("deploy", *(f"{name}={odd}" for name in ("MODEL", *FLAGS)))
    assert given == ["deploy"]
    assert told == {f"LEANEAR_DEPLOY_{name}": odd for name in ("MODEL", *FLAGS)}


@pytest.mark.parametrize("odd", ODD)
def test_values_of_the_environment_too(make, odd):
    given, told = make("deploy", MODEL=odd, TARGET=odd)
    assert (given, told) == (["deploy"], {"LEANEAR_DEPLOY_MODEL": odd, "LEANEAR_DEPLOY_TARGET": odd})
    assert make("report", OUT=odd)[0] == ["report", "--", odd]


def test_what_is_empty_is_not_set(make):
    assert make("deploy", "TARGET=", "SPARSITY=", LEANEAR_DEPLOY_TARGET="own.toml")[1] == {
        "LEANEAR_DEPLOY_TARGET": "own.toml"
    }


def test_the_name_of_this_machine_is_no_device(make):
    """Some shells export HOST."""
    assert make("deploy", HOST="laptop", HOSTS="x", DEVICE_PYTHON="y") == (["deploy"], {})


def test_what_is_typed_to_make_is_told_from_what_the_environment_sets(make, tmp_path):
    make("deploy", "MODEL=typed", "HOST=pi@here", "DATA=", TARGET="cpu", LEANEAR_DEPLOY_OUT="elsewhere")
    assert set((tmp_path / "typed").read_text().split()) >= {"LEANEAR_DEPLOY_MODEL", "LEANEAR_DEPLOY_HOST"}
    assert not {"LEANEAR_DEPLOY_TARGET", "LEANEAR_DEPLOY_OUT"} & set((tmp_path / "typed").read_text().split())


def test_every_setting_is_one_of_deploys():
    """By its own name: the variable that click reads for the option."""
    variables = {parameter.envvar: parameter for parameter in deploy.params}
    for name, flag in FLAGS.items():
        assert flag in variables[f"LEANEAR_DEPLOY_{name}"].opts
    assert variables["LEANEAR_DEPLOY_MODEL"].name == "model"


def test_what_is_no_setting_is_not_passed_over(make):
    with pytest.raises(AssertionError, match="MODLE: no such setting; there are TARGET MODEL "):
        make("deploy", "MODLE=mine", "PYTHON=python3")
