"""A tiny model and clips for it, for every test that names them and has none of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import tone, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny-ast")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two labels of the model's five, 44.1 kHz stereo WAV."""
    folder = tmp_path_factory.mktemp("data")
    for label, frequency_hz in (("yes", 500), ("up", 1500)):
        (folder / label).mkdir()
        for number in range(8):
            mono = tone(frequency_hz + 20 * number, 0.5, 44100)
            soundfile.write(folder / label / f"{number}.wav", np.stack([mono, 0.5 * mono], axis=1), 44100)
    return folder
