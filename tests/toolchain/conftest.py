"""What the benchmarks' tests measure is used here too."""

from __future__ import annotations

from tests.benchmarks.conftest import (  # noqa: F401
    dense_speech,
    short_look_at_other_processes,
    slim_speech,
    speech_clips_path,
    speech_results,
)
