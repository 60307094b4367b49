"""Python that imports nothing from the folder that the user stands in: how our processes start, and our own path.

`python -m` and `python -c` look for modules in the current folder first, so a file `onnxruntime.py` that lies there by
chance, or came with somebody's model, would be run. `-P` stops that from Python 3.11 on; devices have 3.9. An empty or
relative entry of PYTHONPATH names that folder too ("$PYTHONPATH:/my/libraries" makes one where it was not set before),
and is left out; its absolute entries are the user's word.
"""

from __future__ import annotations

import os
import sys

import leanear

# Where `leanear` lies as one package: a folder of installed packages, or a zip file. None in a source tree, whose
# folders are one package to the interpreter alone that they were installed in.
_PACKAGE = os.path.abspath(next(iter(leanear.__path__)))
_IS_WHOLE = os.path.abspath(__file__).startswith(_PACKAGE + os.sep)
IMPORT_ROOT = os.path.dirname(_PACKAGE) if _IS_WHOLE else None
WORKER_FLAG = "--worker"  # of the zip file: run the module that is named next
# With -c the current folder is the empty entry, and nothing has been imported from it yet.
_WITHOUT_CURRENT_FOLDER = "import sys; sys.path[:] = filter(None, sys.path); "
_RUN_MODULE = (
    _WITHOUT_CURRENT_FOLDER + "sys.path[:0] = filter(None, [sys.argv.pop(1)]); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, python: str = sys.executable) -> list[str]:
    """Starts a module of these packages, found where this file is: in a folder, or in the zip that a device runs."""
    if IMPORT_ROOT is None or os.path.isdir(IMPORT_ROOT):
        return [python, "-c", _RUN_MODULE, IMPORT_ROOT or "", module]
    return [python, IMPORT_ROOT, WORKER_FLAG, module]


def code_command(code: str) -> list[str]:
    """Starts a line of Python."""
    return [sys.executable, "-c", _WITHOUT_CURRENT_FOLDER + code]


def isolated_environment() -> dict[str, str]:
    """This process's environment for the others: theirs, and those that they start, stay out of the current folder."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    entries = environment.pop("PYTHONPATH", "").split(os.pathsep)
    absolute = [entry for entry in entries if os.path.isabs(entry)]
    if absolute:
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    return environment


def leave_current_folder() -> None:
    """Take the current folder off this process's path, unless it is Python's or ours, or PYTHONPATH spells it out."""
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was deleted: nothing can be imported from it
        return
    spelt_out = isolated_environment().get("PYTHONPATH", "").split(os.pathsep)
    if current in {os.path.realpath(entry) for entry in filter(None, (IMPORT_ROOT, *spelt_out))}:
        return
    libraries = tuple(os.path.realpath(os.path.join(prefix, "lib")) for prefix in (sys.prefix, sys.base_prefix))
    if not current.startswith(libraries):
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or current) != current]
