"""A runtime in one file: it answers with how loud a clip is, and needs nothing that has to be installed."""

from __future__ import annotations

NAME = "loud"
TITLE = "Loudness"
PACKAGE = "loud>=1"  # so it is offered to users
INSTALL = "pip install loud"
FORM = "portable"
PRECISIONS = ("fp32",)
ON_GPU = False
AHEAD_OF_TIME = False


def available():
    return None


def precisions():
    return PRECISIONS


def compile(artifact, options, out):
    return None


def load(artifact, options):
    from leanear.runtimes.backends.null_sessions import NullSession

    class LoudSession(NullSession):
        def facts(self):
            return {**super().facts(), "runtime": NAME}

    return LoudSession(artifact, options)
