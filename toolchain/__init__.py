"""Prune, export, benchmark and report audio transformers for edge devices.

    import leanear

    slim = leanear.load("path-or-hub-id").prune("data/", sparsity=0.5)
    artifact = slim.export("out/", target="cpu")
    print(artifact.open().run(waveform), artifact.bench("data/").table())

Nothing is imported before it is used: a device that has numpy and one runtime opens artifacts with this package, too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanear.api import Artifact, Measured, Model, Session, load, open_artifact
    from leanear.runtimes.errors import BadInput, LeanearError

__all__ = ["Artifact", "BadInput", "LeanearError", "Measured", "Model", "Session", "load", "open_artifact"]
_ERRORS = ("BadInput", "LeanearError")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'leanear' has no attribute {name!r}")
    home = "leanear.runtimes.errors" if name in _ERRORS else "leanear.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
