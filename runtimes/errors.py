"""The exceptions that leanear raises on purpose; only the command line turns them into one line and an exit status."""

from __future__ import annotations


class LeanearError(Exception):
    """Something that the user can act on; its text is one line that names the file, the key or the flag."""

    exit_status = 1


class BadInput(LeanearError):
    """A file, folder, flag or key is not what was promised."""

    exit_status = 2


class ParityFailed(LeanearError):
    """An exported graph does not compute what the checkpoint computes."""

    exit_status = 3


class RuntimeUnavailable(LeanearError):
    """The runtime cannot be used on this machine; the text says why and what would help."""

    exit_status = 4


class MeasurementFailed(LeanearError):
    """A measurement ended without a number; the text says how it ended."""

    exit_status = 5


class GateMissed(LeanearError):
    """The accuracy change is outside what the user allowed."""

    exit_status = 6


class DeviceFailed(LeanearError):
    """A device was not measured; the text says which, and why."""

    exit_status = 7


class Regressed(LeanearError):
    """One measurement is worse than another beyond what was allowed."""

    exit_status = 8
