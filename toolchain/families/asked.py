"""What a Whisper is asked for in place of what is its own: a task and a language."""

from dataclasses import dataclass

from leanear.runtimes.errors import BadInput
from leanear.runtimes.records import check
from leanear.runtimes.tasks import AskedTask


@dataclass(frozen=True)
class Asked:
    """Task and language that are asked for; None leaves the model's own.

    task: "transcribe" or "translate"; language: a code such as "en", or "auto": whichever is heard.

    Raises:
        BadInput: another task, or a language that is no text.
    """

    task: AskedTask | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        check(self, "a Whisper")

    def as_json(self) -> dict[str, str]:
        """What is asked for, by name, and nothing else: part of the identity of all that is made or measured so."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def flags(self) -> list[str]:
        """As a command line has it."""
        return [word for name, value in self.as_json().items() for word in (f"--{name}", value)]

    def refuse_for(self, classifier: object) -> None:
        """Nothing, where nothing is asked for.

        Raises:
            BadInput: something is, of a model that is no Whisper.
        """
        if self.as_json():
            raise BadInput(f"--task and --language are for Whisper; {classifier} is a classifier")


NOTHING_ASKED = Asked()
