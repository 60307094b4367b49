"""What the benchmarks' tests measure is used here too, and a device over SSH by every test that names it."""

from __future__ import annotations

from tests.benchmarks.conftest import (  # noqa: F401
    dense_speech,
    short_look_at_other_processes,
    slim_speech,
    speech_clips_path,
    speech_results,
)
from tests.toolchain.deliveries import (  # noqa: F401
    large,
    options,
    own_configuration,
    parts,
    server,
    small,
)
