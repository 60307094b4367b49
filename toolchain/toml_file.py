"""A TOML file that a user wrote."""

import tomllib
from pathlib import Path
from typing import Any

from leanear.runtimes.errors import BadInput


def read_toml(path: Path) -> dict[str, Any]:
    """The document in the file.

    Raises:
        BadInput: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else error})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML ({error})") from None
