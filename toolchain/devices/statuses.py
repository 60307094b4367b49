"""How a delivery to a device can end, and the one line that says why."""

from leanear.benchmarks.results import Results

LINE_CHARACTERS = 500
STATUSES = {
    "ok": "measured",
    # no connection
    "connection refused": "nothing listens at that address",
    "name unknown": "the name has no address",
    "unreachable": "no way to the address",
    "no answer": "the device did not answer in time",
    "host key changed": "it is not the device that was known by this name",
    "host key unknown": "its host key was never accepted",
    "authentication failed": "no key was accepted",
    "asks for a password": "no key was accepted, and there is no terminal to ask on",
    "ssh configuration": "the user's SSH configuration is not usable",
    "connection failed": "ssh says why",
    # a connection, but
    "no python": "there is no such Python",
    "python too old": "Python 3.9 or later is needed",
    "busy": "another deploy is at work there",
    "disk full": "there is no room",
    "not writable": "the device's folder cannot be written",
    "connection lost": "the device or the network went away",
    "stalled": "the device stopped talking",
    "damaged": "a file is not what its sha256 says",
    # all copied, but
    "no numpy": "numpy is missing",
    "runtime absent": "the runtime is missing",
    "compile failed": "ahead-of-time work failed",
    "check failed": "an engine does not answer there as the checkpoint does, so nothing was measured",
    "measurement failed": "a part of the benchmark failed",
    "interrupted": "it was interrupted on this side",
    "failed": "anything else; the reason says what",
}


class Stop(Exception):
    """The delivery ends here, with one of STATUSES and one line."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def results_status(results: Results) -> tuple[str, str]:
    """The status of a device that gave results, and the reason where it is not "ok"."""
    failures = results.failures()
    if not failures:
        return "ok", ""
    part, reason = next(iter(failures.items()))
    return ("check failed" if results.is_wrong else "measurement failed"), f"{part}: {reason}"


def plain(text: str) -> str:
    """One line of printable characters: what a device says must not move a cursor or end a line."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(kept.split())[:LINE_CHARACTERS]
