"""Every command that README, docs/ and --help tell is one that leanear takes; those that need no network are run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile

from leanear.cli.commands import cli, run
from leanear.runtimes.choose import choose_runtime
from tests.conftest import tone, write_tiny, write_tones

pytestmark = pytest.mark.usefixtures("measured_here")

ROOT = Path(__file__).parents[2]
DEMOS = ROOT / "toolchain" / "demo"
MADE = {"cli.md", "files.md", "python.md"}  # from help, which is looked at itself, and from dataclasses
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in MADE)]
PROGRAMS = ("leanear", "make", "python3", "python", "pip")


def commands_of(text: str) -> list[str]:
    """The commands in a text, without comments; of a pipe the last, `|` between words being alternatives."""
    found = []
    for line in text.splitlines():
        command = re.split(r"\s+# ", line.strip())[0].split(" | leanear ")
        said = command[0] if len(command) == 1 else f"leanear {command[-1]}"
        if said.split(" ")[0] in PROGRAMS:
            found.append(said)
    return found


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```(?:sh)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def told() -> list[str]:
    """Every command once."""
    pages = [command for page in PAGES for block in blocks_of(page) for command in commands_of(block)]
    helps = [line for each in cli.commands.values() for line in commands_of(each.help or "")]
    return list(dict.fromkeys([*pages, *helps]))


def test_there_are_commands_to_look_at():
    assert {"make deploy TARGET=cpu", "make test", "leanear transcribe talk.flac", "leanear doctor"} <= set(told())
    assert len(told()) > 40


def settings_of(words: list[str]) -> dict[str, str]:
    return {f"LEANEAR_DEPLOY_{name}": value for name, value in (word.split("=", 1) for word in words)}


@pytest.mark.parametrize("command", told())
def test_every_command_is_one(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command)
    if program == "leanear":
        cli.commands[words[0]].make_context(words[0], words[1:], parent=cli.make_context("leanear", words))
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name, value in settings_of(words[1:]).items():
            monkeypatch.setenv(name, value)
            assert name in {parameter.envvar for parameter in cli.commands["deploy"].params}
        cli.commands["deploy"].make_context("deploy", [], parent=cli.make_context("leanear", ["deploy"]))
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert re.fullmatch(r"\.\[(\w+)\]", words[-1])[1] in extras
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
    else:
        from leanear.benchmarks.device.runner import _parser

        for verb in command.partition(".pyz ")[2].split(" | "):
            _parser().parse_known_args(shlex.split(verb)[:1] + ["x"] * verb.startswith("classify"))


# Those that run: demos, models and audio are tiny ones of the same names


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")

    for name in ("demo-ast", "path-or-hub-id", "CHECKPOINT"):
        write_tiny(folder / name)
    shutil.copytree(DEMOS / "whisper" / "model", folder / "demo-whisper")  # whose 8 bits are proved on real words
    for part, count in (("train", 8), ("test", 4)):
        _copy_first_clips(DEMOS / "whisper" / "clips" / "evaluation", folder / "demo-whisper-clips" / part, count)
        write_tones(folder / "folder" / part, 6, 0.5)
    for name in ("demo-ast-clips", "DATA", "clips"):
        shutil.copytree(folder / "folder", folder / name)
    (folder / "talks").mkdir()
    for place in ("talk.flac", "interview.wav", "talks/one.flac"):
        soundfile.write(folder / place, tone(440, 2.5), 16000)
    return folder


def _copy_first_clips(given: Path, out: Path, clips: int) -> None:
    out.mkdir(parents=True)
    rows = (given / "metadata.csv").read_text(encoding="utf-8").splitlines()[: clips + 1]
    (out / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for row in rows[1:]:
        shutil.copy(given / row.split(",")[0], out)


@pytest.fixture
def here(field, monkeypatch):
    """In the folder, where demos are tiny and measuring is short."""
    monkeypatch.chdir(field)
    for module in ("leanear.families.checkpoint", "leanear.demo"):
        monkeypatch.setattr(f"{module}.demo_model_folder", lambda name="demo-ast": field / name)
    for module in ("leanear.families.checkpoint", "leanear.evaluate.evaluation"):
        monkeypatch.setattr(f"{module}.demo_clips_folder", lambda name="demo-ast": field / f"{name}-clips")
    for name, value in {
        "DEPLOY_BUDGET": "1", "DEPLOY_CALIBRATION_CLIPS": "8", "EXPLORE_CALIBRATION_CLIPS": "8",
        "BENCH_BUDGET": "1", "TRANSCRIBE_TEMPERATURES": "0", "TRANSCRIBE_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LEANEAR_{name}", value)
    return field


RUN = {  # in this order, with the statuses that a random model may end with: 6, its gate; 8, it became worse
    "make deploy TARGET=cpu": {0},
    "make deploy TARGET=cpu MODEL=demo-whisper PRECISION=int8": {0},
    "leanear deploy demo-ast --prune all --macs 0.5 --max-drop 1": {0, 6},
    "make deploy TARGET=openvino MODEL=path-or-hub-id DATA=folder SPARSITY=0.5 MAX_DROP=1": {0, 6},
    "make deploy TARGET=raspberrypi": {0},
    "leanear deploy --target openvino --precision bf16 --precision-drop 0.5": {0, 4},
    "leanear report deployments/demo-ast/cpu": {0},
    "leanear bench deployments/demo-ast/cpu/slim --against deployments/demo-ast/cpu/dense --out results.json": {0},
    "leanear compare deployments/before deployments/after": {0, 8},
    "leanear explore CHECKPOINT --data DATA --out explored/": {0},
    "leanear transcribe talk.flac": {0},
    "leanear transcribe talk.flac --model deployments/demo-whisper/cpu/slim --output-format srt --out talk.srt": {0},
    "leanear transcribe talks/ interview.wav --output-format srt --output-format json --output-dir subtitles": {0},
    "leanear classify clip.wav": {0},
    "leanear export slim/ --form onnxruntime --out artifact/": {0},
    "leanear eval demo-ast --json": {0},
    "leanear eval demo-whisper": {0},
    "leanear targets": {0},
}
OF_A_SMALL_MODEL = {"0.5": "0.97"}  # of --macs: most of what a random one of the tests computes is its front end
NEEDS = {
    "leanear compare deployments/before deployments/after": (
        ("deployments/demo-ast/cpu", "deployments/before"), ("deployments/demo-ast/cpu", "deployments/after"),
    ),
    "leanear export slim/ --form onnxruntime --out artifact/": (("deployments/demo-ast/cpu/checkpoint", "slim"),),
    "leanear classify clip.wav": (("interview.wav", "clip.wav"),),
}  # fmt: skip


@pytest.mark.parametrize("command", RUN)
def test_it_runs(command, here, monkeypatch, capsys, request):
    assert command in told()
    if "report" not in command:
        request.getfixturevalue("markdown_alone")
    for given, wanted in NEEDS.get(command, ()):
        (shutil.copytree if Path(given).is_dir() else shutil.copy)(given, wanted)
    program, *words = shlex.split(command)
    if "bf16" in words and "bf16" not in choose_runtime("openvino").precisions():
        pytest.skip("this CPU does not compute in bf16")
    if "--macs" in words:
        place = words.index("--macs") + 1
        words[place] = OF_A_SMALL_MODEL[words[place]]
    if program == "make":
        for name, value in settings_of(words[1:]).items():
            monkeypatch.setenv(name, value)
        words = ["deploy"]
    status = run(words)
    assert status in RUN[command], capsys.readouterr().err


def test_a_bundle_runs_what_its_page_tells(here, markdown_alone):
    """Where its runtime is installed, as here."""
    assert run(["deploy", "--target", "raspberrypi"]) == 0
    bundle = here / "deployments" / "demo-ast" / "raspberrypi" / "bundle"
    (line,) = [command for command in told() if " verify | " in command]
    for verb in ("doctor", "verify", "eval", f"classify {here}/interview.wav"):
        assert verb == "doctor" or verb.split()[0] in line
        command = [sys.executable, "leanear.pyz", *shlex.split(verb)]
        ended = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
