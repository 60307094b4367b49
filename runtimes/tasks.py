"""What a model is for, in the words of the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated, Literal, Tuple, get_args

SPEECH_TASK = "automatic-speech-recognition"
CLASSIFICATION_TASK = "audio-classification"
TAGGING_TASK = "audio-tagging"  # the Hub calls this classification too
TASKS = (CLASSIFICATION_TASK, TAGGING_TASK, SPEECH_TASK)
SpokenTask = Literal["transcribe", "translate"]  # what a speech model is asked for
SPOKEN_TASKS: Tuple[SpokenTask, ...] = get_args(SpokenTask)
AskedTask = Annotated[str, SPOKEN_TASKS]  # as `leanear.runtimes.records` checks it
MULTI_LABEL = "multi_label_classification"


def classifier_task(problem_type: object, labels: int) -> str:
    """Of a model with this `problem_type` in config.json and so many logits, of which a single one is a yes or no."""
    return TAGGING_TASK if problem_type == MULTI_LABEL or labels == 1 else CLASSIFICATION_TASK
