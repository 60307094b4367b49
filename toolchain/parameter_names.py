"""Errors that were written for the command line, in the words of Python: of flags, the parameters of these names."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from leanear.runtimes.errors import LeanearError

FLAG = re.compile(r"(?<!\S)--([a-z][a-z-]*)")
COMMAND = "leanear "  # what follows it is to be typed

Given = ParamSpec("Given")
Made = TypeVar("Made")


def in_python(called: Callable[Given, Made]) -> Callable[Given, Made]:
    """`called`, whose errors name `max_drop` where they would name --max-drop; commands in them stay as they are."""

    @functools.wraps(called)
    def renamed(*arguments: Given.args, **named: Given.kwargs) -> Made:
        try:
            return called(*arguments, **named)
        except LeanearError as error:
            said, command, typed = str(error).partition(COMMAND)
            error.args = (FLAG.sub(lambda flag: flag[1].replace("-", "_"), said) + command + typed,)
            raise

    return renamed
