"""A tiny Whisper, and what is cut of it, for every test that names it."""

from __future__ import annotations

from tests.toolchain.whisper_surgery import dense, dense_folder, heard, inputs, pruned  # noqa: F401
