"""The documents of a deployment folder: read strictly, and written as they have always been."""

from __future__ import annotations

import json

import pytest

from leanear.benchmarks.report.precision_section import read_precision
from leanear.deploy.measuring import read_deployment
from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import write

TRIAL = {"precision": "int8", "verdict": "FAIL", "reason": "too coarse"}
DOCUMENTS = {
    "deployment.json": {
        "schema": "leanear-deployment-1",
        "title": "tiny for cpu",
        "asked": {"model": "tiny", "evaluation clips": 8, "multiples": [4, 4], "one_width_per_head": False},
        "provenance": {"model": "tiny", "precision": "fp32"},
    },
    "precision.json": {
        "schema": "leanear-precision-1",
        "asked": "int8-bf16",
        "ships": "bf16",
        "drop_points": 1.0,
        "metric": "accuracy",
        "gate": {
            "runtime": "openvino", "threads": 2, "device": "a machine", "clips": 40, "quantiser_clips": 20, "note": "",
        },
        "trials": [
            {**TRIAL, "reference": None, "measured": None, "change": None, "differing": None},
            {
                "precision": "bf16", "verdict": "PASS", "reason": "", "reference": 0.9, "measured": 0.89,
                "change": {"estimate": -0.01, "low": None, "high": None}, "differing": 1,
            },
        ],
        "slim_manifest_sha256": "0" * 64,
    },
}  # fmt: skip
READERS = {"deployment.json": lambda path: read_deployment(path.parent), "precision.json": read_precision}


@pytest.fixture(params=DOCUMENTS)
def path(request, tmp_path):
    path = tmp_path / request.param
    path.write_text(json.dumps(DOCUMENTS[request.param], indent=1, ensure_ascii=False) + "\n")
    return path


def test_what_is_read_is_written_as_it_was(path):
    before = path.read_bytes()
    write(path, READERS[path.name](path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(colour=1), "unknown key 'colour'"),
        (lambda document: document.update(schema="x-1"), "expected schema"),
        (lambda document: document.pop("title" if "title" in document else "ships"), "missing key"),
        (lambda document: document.update({"title" if "title" in document else "ships": 7}), "is 7, expected a text"),
    ],
)
def test_what_it_is_not_is_one_line(path, change, said):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=f"^{path}: .*{said}"):
        READERS[path.name](path)


def test_a_folder_may_have_no_deployment(tmp_path):
    assert read_deployment(tmp_path) is None
