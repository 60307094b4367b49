"""What an export is asked for, as far as it can be judged before torch is imported, which takes seconds."""

from leanear.data.dataset import Data
from leanear.families.checkpoint import checkpoint_folder, data_folder
from leanear.families.registry import require_speech, task_of
from leanear.runtimes.choose import check_half
from leanear.runtimes.errors import BadInput
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW, FULL
from leanear.runtimes.tasks import SPEECH_TASK


def check_export(
    model: str, data: Data | None, *, form: str, precision: str, window: str | None, word_timestamps: bool
) -> str:
    """The windows that MODEL's encoder is exported with, see `chosen_window`, where the rest of it can be, too.

    Raises:
        BadInput: as `chosen_window`; the form has not that precision; or its ranges need DATA, and there is none.
    """
    chosen = chosen_window(window, form, task_of(checkpoint_folder(model)), model, word_timestamps)
    check_half(precision, form)
    if precision == "int8":
        data_folder(model, data)
    return chosen


def chosen_window(window: str | None, form: str, task: str, model: str, word_timestamps: bool = False) -> str:
    """The windows that an encoder is exported with, where `window` was asked for.

    None: DEFAULT_WINDOW, but the full one for the form "tensorrt", whose engines are built for one window.

    Raises:
        BadInput: the model is a classifier, or the form has not that window, or no word timestamps.
    """
    require_speech(task, model, window=window, word_timestamps=word_timestamps)
    if form == "tensorrt" and window not in (None, FULL):
        raise BadInput(
            f"--window {window}: engines are built for one window, so the form {form!r} has the full one alone"
        )
    if form == "tensorrt" and word_timestamps:
        raise BadInput(f"--word-timestamps: TensorRT's fused kernels give no attention, so the form {form!r} has none")
    return window or (DEFAULT_WINDOW if task == SPEECH_TASK and form != "tensorrt" else FULL)
