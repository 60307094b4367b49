"""A runtime in one file: the mean of every label's stretch of the window, as graphs of `loudness_weights` have it."""

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
    import numpy as np

    from leanear.runtimes.backends.null_sessions import NullSession

    class LoudSession(NullSession):
        def run(self, waveform):
            stretches = np.array_split(self._checked(waveform)[0], self._labels)
            return np.array([stretch.mean() for stretch in stretches], np.float32)

        def facts(self):
            return {**super().facts(), "runtime": NAME}

    return LoudSession(artifact, options)
