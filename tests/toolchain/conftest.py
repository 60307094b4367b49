"""A device over SSH, for every test that names it."""

from __future__ import annotations

from tests.toolchain.deliveries import (  # noqa: F401
    large,
    options,
    own_configuration,
    parts,
    server,
    short_benchmark,
    shortest_benchmark,
    small,
)
