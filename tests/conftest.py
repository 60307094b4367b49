"""Tiny models with random weights, and one thread in every process of the tests, of which several run at once."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from leanear.benchmarks.sensors.device import usable_cores

# The process that hands out the tests reads this too, and runs none: torch and transformers are not for it.
if TYPE_CHECKING:
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

# A shell that started the tests in the background has made them deaf to Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Processes that tests start find the tests' own modules, wherever they run.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
)

pytest_plugins = ("tests.measured",)

TINY_LABELS = ("down", "left", "right", "up", "yes")

LONGEST = (
    "test_isolation.py", "test_remote_faults.py", "test_two_processes.py", "test_commands.py",
    "test_deploy_device.py", "test_precision_deploy.py", "test_whisper_pruning.py", "test_demo.py",
    "test_transcribing.py", "test_speech_device.py", "test_rotated.py", "test_bundle.py",
    "test_interrupted.py", "test_fresh_process.py", "test_many_clips.py",
    "test_speech_deploy.py", "test_comparison.py", "test_torch_speech.py", "test_distillation.py", "test_compare.py",
    "test_good_input.py", "test_audioset_shape.py", "test_asked.py", "test_whisper_settings.py", "test_report.py",
    "test_any_window.py", "test_decoding_on_runtimes.py", "test_whisper_surgery.py", "test_whisper_folders.py",
    "test_hosts.py", "test_cli.py", "test_examples.py", "test_compensation.py", "test_methods.py", "test_exploring.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: no core waits at the end for what another one has only just begun."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What libraries and tests are made of stays: looking at it for garbage again and again takes a while."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """One process more than there are cores: a test often waits, for what it started or for a moment to come."""
    asked = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return None if asked else usable_cores() + 1


@pytest.fixture(autouse=True, scope="session")
def _one_core() -> Iterator[None]:
    """Commands take all cores where nothing else is said; tests that run at once would have their threads spin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _process: {0})
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


def make_tiny_ast(head_width: int = 16, heads: int = 2, layers: int = 2) -> ASTForAudioClassification:
    """A random AST of 2 layers and width 32 whose logits really depend on its attention."""
    import torch
    from transformers import ASTConfig, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=head_width * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=48,
        max_length=46,
        num_mel_bins=128,
        id2label=dict(enumerate(TINY_LABELS)),
        label2id={label: index for index, label in enumerate(TINY_LABELS)},
    )
    model = ASTForAudioClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        spread = 0.02 if parameter.ndim == 1 else 0.2
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def tiny_ast() -> ASTForAudioClassification:
    return make_tiny_ast()


@pytest.fixture
def tiny_extractor() -> ASTFeatureExtractor:
    return make_tiny_extractor()


def make_tiny_extractor() -> ASTFeatureExtractor:
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(max_length=46, num_mel_bins=128)


def write_tiny(folder: Path) -> Path:
    """Write a dense tiny AST checkpoint and give back its folder."""
    make_tiny_ast().save_pretrained(folder)
    make_tiny_extractor().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_folder(tmp_path):
    """A dense tiny AST checkpoint on disk."""
    return write_tiny(tmp_path / "tiny-ast")


def tone(frequency_hz: float, seconds: float = 0.4, sample_rate_hz: int = 16000) -> np.ndarray:
    """A sine of amplitude 0.3, float32."""
    time_s = np.arange(int(seconds * sample_rate_hz)) / sample_rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def write_tones(folder: Path, takes: int, seconds: float = 0.4, **labels: float) -> Path:
    """Write so many clips of each label, tones near its frequency in Hz, and give back the folder."""
    for label, frequency_hz in (labels or {"yes": 500, "up": 1500}).items():
        (folder / label).mkdir(parents=True)
        for number in range(takes):
            soundfile.write(folder / label / f"{number}.wav", tone(frequency_hz + 20 * number, seconds), 16_000)
    return folder
