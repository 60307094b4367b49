"""pruning.json with values that do not go together is refused in one line that names the key."""

from __future__ import annotations

import dataclasses
import re

import pytest

from leanear.families.checkpoint_files import PRUNING_FILE
from leanear.prune.document import read_pruning
from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import write_json
from leanear.runtimes.records import as_json
from tests.toolchain.pruning_documents import distilled, pruning_document

SOUND = pruning_document(recovery=distilled(10, (0.5, 0.2), 1))

NOTHING_COUNTED = dataclasses.replace(SOUND.loss.finished, counted=-1.0)


def damaged_loss(**changed):
    return dataclasses.replace(SOUND.loss, **changed)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("sparsity", {"sparsity": 7.0}),
        ("by_kind", {"by_kind": {"encoder": 0.5, "strange": 0.5}}),
        ("feed_forward_by_kind", {"feed_forward_by_kind": {"decoder": 0.5}}),
        ("loss.best", {"loss": damaged_loss(best=99)}),
        ("loss.best", {"loss": damaged_loss(best=-1)}),
        (
            "loss.finished.counted",
            {"loss": damaged_loss(finished=dataclasses.replace(SOUND.loss.finished, counted=-1.0))},
        ),
        ("recovery.best_epoch", {"recovery": distilled(10, (0.5, 0.2), 2)}),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_key(tmp_path, key, changed):
    write_json(tmp_path / PRUNING_FILE, as_json(SOUND))
    assert read_pruning(tmp_path) == SOUND
    write_json(tmp_path / PRUNING_FILE, as_json(dataclasses.replace(SOUND, **changed)))
    with pytest.raises(BadInput, match=re.escape(f"{PRUNING_FILE}: {key} does not go with the rest")):
        read_pruning(tmp_path)
