"""What decoding needs to know of a model beside its session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanear.runtimes.artifact import Artifact
from leanear.runtimes.errors import BadInput
from leanear.runtimes.manifest import Alignment, Decoding, EncoderWindows
from leanear.runtimes.speech.encoder_windows import artifact_windows, full_window
from leanear.runtimes.speech.tokens.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class SpeechModel:
    """What decoding needs to know of a model beside its session.

    windows: which it hears audio in, None: the full one; alignment: the heads that word times are taken from, None:
    its graphs do not give what they look at; voice_graph: the voice activity model that came along.
    """

    vocabulary: Vocabulary
    tokens: Decoding
    sample_rate_hz: int
    window_samples: int
    windows: EncoderWindows | None = None
    alignment: Alignment | None = None
    voice_graph: Path | None = None

    @property
    def step_samples(self) -> int:
        """Samples of one timestamp step."""
        return round(self.tokens.timestamp_step_s * self.sample_rate_hz)

    @property
    def encoder_windows(self) -> EncoderWindows:
        """The windows that audio is heard in."""
        return self.windows or full_window(self.window_samples)


def read_speech_model(artifact: Artifact, window: str | None = None) -> SpeechModel:
    """The vocabulary, the tokens and the windows of a Whisper artifact.

    window: "full", "auto" or seconds; None: as the artifact says.

    Raises:
        BadInput: the artifact is of another family, its vocabulary is not usable or of another size, or its encoder
            does not take such a window.
    """
    manifest = artifact.speech
    path = artifact.folder / manifest.vocabulary.file
    vocabulary = read_vocabulary(path)
    size = manifest.output.shape[1]
    if len(vocabulary) != size:
        raise BadInput(f"{path}: {len(vocabulary)} tokens, but the decoder knows {size}")
    windows = artifact_windows(artifact, window)
    tokens, alignment = manifest.decoding, manifest.alignment
    return SpeechModel(
        vocabulary, tokens, artifact.sample_rate_hz, windows.full, windows, alignment, artifact.voice_graph
    )


def demo_hint(source: object) -> str:
    """What has to be known of the demo model, by where a model comes from; "" of any other one."""
    if source != "demo-whisper":
        return ""
    return "demo-whisper knows synthetic sentences of a few words alone: of people's speech it makes nonsense"


def require_word_times(model: SpeechModel, folder: object) -> None:
    """Raises BadInput, with the remedy, where the artifact in `folder` has no word times to give."""
    if model.alignment is None:
        raise BadInput(
            f"--word-timestamps: the graphs of {folder} do not give their attention; export its checkpoint again with"
            " leanear export CHECKPOINT --word-timestamps --out FOLDER"
        )
