"""A Whisper that is wrong on purpose is found by what it says of golden clips."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.measure.test_engine_check import restamped, verdict
from tests.export.whisper_cases import small_artifact


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_whisper_with_other_weights_is_found(tmp_path, role):
    folder = small_artifact(tmp_path / "whisper", "ragged", "onnxruntime").folder
    right = verdict(folder)
    assert right["verdict"] == "passed"
    assert right["unit"] == "nats a token"
    assert right["error"] < 1e-5
    assert right["changed"] == 0
    path = folder / f"{role}.bin"
    floats = np.fromfile(path, np.float32)
    (floats * (1 + 0.3 * np.random.default_rng(0).standard_normal(len(floats)))).astype(np.float32).tofile(path)
    wrong = verdict(restamped(folder))
    assert wrong["verdict"] == "failed"
    assert wrong["error"] > wrong["bound"]
