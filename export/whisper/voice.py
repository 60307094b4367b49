"""Silero's voice activity model in an artifact: one graph of 1.3 MB, as its package on the index has it."""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from leanear.runtimes.errors import RuntimeUnavailable
from leanear.runtimes.files import sha256_file
from leanear.runtimes.manifest import VoiceFile
from leanear.runtimes.voice.graph import RATE_HZ

PACKAGE, PACKAGED_FILE, VOICE_FILE = "silero_vad", "silero_vad_16k_sequence.onnx", "voice.onnx"


def packaged_voice_graph() -> Path:
    """The graph in the installed package, whose code is not imported.

    Raises:
        RuntimeUnavailable: the package is not installed, or has no such graph.
    """
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / "data" / PACKAGED_FILE
        if path.is_file():
            return path
    raise RuntimeUnavailable("--vad: the package silero-vad is not installed; pip install silero-vad")


def write_voice_graph(folder: Path, sample_rate_hz: int) -> VoiceFile | None:
    """Copy the graph to an artifact's folder; what the manifest says of it, None where the model hears another rate."""
    if sample_rate_hz != RATE_HZ:
        return None
    path = folder / VOICE_FILE
    shutil.copyfile(packaged_voice_graph(), path)
    made_by = f"silero-vad {importlib.metadata.version('silero-vad')}"
    return VoiceFile(VOICE_FILE, sha256_file(path), path.stat().st_size, made_by)
