"""NVIDIA RTX GPUs by TensorRT-RTX: TensorRT's verbs, but engines may be built ahead of time, where no GPU is."""

from __future__ import annotations

from functools import partial

from leanear.runtimes.backends import tensorrt_gpu

NAME = "tensorrt_rtx"
TITLE = "TensorRT-RTX"
PACKAGE = "tensorrt-rtx"
INSTALL = "pip install tensorrt-rtx cuda-python"
EARLIEST = 1  # major version
FORM = tensorrt_gpu.FORM
PRECISIONS = tensorrt_gpu.PRECISIONS
ON_GPU = True
AHEAD_OF_TIME = True

available = partial(tensorrt_gpu.available, NAME)
precisions = tensorrt_gpu.precisions
compile = partial(tensorrt_gpu.compile, name=NAME)
load = partial(tensorrt_gpu.load, name=NAME)
