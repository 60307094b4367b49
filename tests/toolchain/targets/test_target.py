"""Targets are read strictly; a user's own file works by path."""

from __future__ import annotations

import os

import pytest

from leanear.runtimes.errors import BadInput
from leanear.targets.target import read_target, target_names

OWN = 'description = "mine"\nruntime = "openvino"\ngraph_form = "portable"\nprecision = "fp32"\nthreads = 1\n'
OWN += "query_key_multiple = 8\nvalue_output_multiple = 16\n"


@pytest.mark.parametrize("name", target_names())
def test_every_target_that_leanear_brings_is_well_formed(name):
    target = read_target(name)
    assert target.name == name
    assert target.threads == len(os.sched_getaffinity(0))


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "kitchen pi.toml"
    path.write_text(OWN)
    target = read_target(str(path))
    assert (target.name, target.runtime, target.threads) == ("kitchen pi", "openvino", 1)
    assert (target.query_key_multiple, target.value_output_multiple) == (8, 16)


def test_multiples_that_a_file_does_not_give(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace("query_key_multiple = 8\n", ""))
    assert (read_target(str(path)).query_key_multiple, read_target(str(path)).value_output_multiple) == (4, 16)
    assert read_target(str(path)).feed_forward_multiple == 16
    path.write_text(OWN + "feed_forward_multiple = 64\n")
    assert read_target(str(path)).feed_forward_multiple == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN + "treads = 2\n", "unknown key 'treads'"),
        (OWN.replace("threads = 1\n", ""), "missing key 'threads'"),
        (OWN.replace("openvino", "tflite"), "runtime is 'tflite', expected one of"),
        (OWN.replace("threads = 1", "threads = 0"), "threads is 0"),
        (OWN.replace("portable", "onnxruntime"), "not meant for openvino"),
        ("runtime =", "not TOML"),
        (OWN.replace("multiple = 16", "multiple = 0"), "value_output_multiple is 0, expected a whole"),
        (OWN.replace("multiple = 8", "multiple = true"), "query_key_multiple is True, expected"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_target(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["raspberrypi", "jetson"])
def test_a_target_that_is_elsewhere(name):
    target = read_target(name)
    assert target.on_device
    assert target.all_threads
    assert target.python
    assert not read_target("cpu").on_device


def test_a_device_of_ones_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN + 'measured = "device"\npython = "~/venv/bin/python"\n')
    target = read_target(str(path))
    assert (target.on_device, target.python, target.all_threads, target.threads) == (
        True,
        "~/venv/bin/python",
        False,
        1,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('measured = "there"\n', "measured is 'there'"),
        ("python = 3\n", "python is 3"),
        ('python = "-c"\n', "python is '-c'"),
    ],
)
def test_wrong_places_are_named(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(OWN + text)
    with pytest.raises(BadInput, match=message):
        read_target(str(path))


def test_an_unknown_target_lists_the_known():
    with pytest.raises(BadInput, match="cpu, jetson, openvino, raspberrypi, rtx"):
        read_target("toaster")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml"):
        read_target(str(tmp_path / "none.toml"))


def test_rtx_is_built_ahead_of_time_in_half_precision():
    target = read_target("rtx")
    assert target.compute_capabilities == ("8.6", "8.9", "12.0")
    assert (target.runtime, target.graph_form, target.precision) == ("tensorrt_rtx", "tensorrt", "fp16")
    assert target.query_key_multiple == target.value_output_multiple == 16


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('compute_capabilities = ["sm_86"]', "not a list such as"),
        ("compute_capabilities = 8.6", "compute_capabilities is 8.6, expected a list"),
        ('compute_capabilities = ["8.6"]', "belong to the runtime tensorrt_rtx"),
    ],
)
def test_compute_capabilities_are_read_strictly(tmp_path, line: str, message: str):
    path = tmp_path / "own.toml"
    path.write_text(f"{OWN}{line}\n")
    with pytest.raises(BadInput, match=message):
        read_target(str(path))
