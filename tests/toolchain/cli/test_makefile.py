"""What a user passes to make reaches `leanear` as it was typed, whatever it holds, and runs nothing on its way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
import json, sys
print(json.dumps(sys.argv[1:]))
"""


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

    def run(*arguments: str, **environment: str) -> list[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        ended = subprocess.run(
            ["make", "--silent", *arguments],
            cwd=tmp_path,
            env={**kept, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert not list(tmp_path.rglob("PWNED"))
        assert not Path("PWNED").exists()
        given = json.loads(ended.stdout)
        assert isinstance(given, list)
        return given

    return run


@pytest.mark.parametrize("odd", ODD)
def test_every_value_arrives_as_it_was_typed(make, odd):
    names = ("TARGET", "DATA", "OUT", "HOST", "HOSTS", "DEVICE_PYTHON", "SUSTAINED")
    given = make("deploy", f"MODEL={odd}", *(f"{name}={odd}" for name in names))
    flags = ["--target", "--data", "--out", "--sustained", "--host", "--hosts", "--device-python"]
    assert given == ["deploy", *(word for flag in flags for word in (flag, odd)), "--", odd]


@pytest.mark.parametrize("odd", ODD)
def test_values_of_the_environment_too(make, odd):
    assert make("deploy", MODEL=odd, TARGET=odd) == ["deploy", "--target", odd, "--", odd]
    assert make("report", OUT=odd) == ["report", "--", odd]


def test_the_name_of_this_machine_is_no_device(make):
    """Some shells export HOST."""
    assert make("deploy", HOST="laptop", HOSTS="x", DEVICE_PYTHON="y") == ["deploy"]
