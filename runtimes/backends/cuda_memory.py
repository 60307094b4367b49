"""NVIDIA's CUDA runtime by the package cuda-python: memory, copies, one stream, graphs and events, errors named."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any, Sequence

import numpy as np

from leanear.runtimes.errors import MeasurementFailed, RuntimeUnavailable

INSTALL = "pip install cuda-python"
MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # since 12.8, and before
ALIGNMENT_BYTES = 256  # what TensorRT asks of a tensor's address


class Cuda:
    """The first GPU, with one stream on it.

    Raises:
        RuntimeUnavailable: cuda-python is missing, or there is no GPU with a driver; the text says which.
    """

    def __init__(self) -> None:
        self._api = _import_api()
        status, count = self._api.cudaGetDeviceCount()[:2]
        if int(status) != 0 or not count:
            raise RuntimeUnavailable(f"no NVIDIA GPU that CUDA can use: {self._said(status)}")
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        self.device = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.capability = f"{properties.major}.{properties.minor}"
        self.stream = self.call("cudaStreamCreate")

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the CUDA runtime gives besides its status, nothing as None.

        Raises:
            MeasurementFailed: the status is an error; the text has the function's name and CUDA's words.
        """
        status, *values = getattr(self._api, name)(*arguments)
        if int(status) != 0:
            raise MeasurementFailed(f"CUDA: {name}: {self._said(status)}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def _said(self, status: Any) -> str:
        if int(status) == 0:
            return "none is there"
        _, text = self._api.cudaGetErrorString(status)
        return f"{text.decode() if isinstance(text, bytes) else text} (error {int(status)})"

    def versions(self) -> dict[str, int]:
        """CUDA's versions of runtime and driver, as CUDA numbers them: 12060 is 12.6."""
        return {"runtime": int(self.call("cudaRuntimeGetVersion")), "driver": int(self.call("cudaDriverGetVersion"))}

    def free_bytes(self) -> int:
        """Free memory of the GPU, which on a Jetson is the board's."""
        return int(self.call("cudaMemGetInfo")[0])

    def to_device(self, pointer: int, array: np.ndarray) -> None:
        """Begin to copy an array to the GPU; it has to stay as it is until `wait`."""
        self._copy(pointer, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def to_host(self, array: np.ndarray, pointer: int) -> None:
        """Begin to copy from the GPU to an array, which is whole after `wait`."""
        self._copy(array.ctypes.data, pointer, array.nbytes, "cudaMemcpyDeviceToHost")

    def inside(self, target: int, source: int, size: int) -> None:
        """Begin to copy from one place of the GPU to another."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def rows_inside(self, target: int, pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Begin to copy `height` rows of `width` bytes that lie `source_pitch` apart to rows that lie `pitch` apart."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpy2DAsync", target, pitch, source, source_pitch, width, height, kind, self.stream)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self.call("cudaMemcpyAsync", target, source, size, getattr(self._api.cudaMemcpyKind, kind), self.stream)

    def wait(self) -> None:
        """Wait for all that was begun."""
        self.call("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """From here on, what is begun is written down instead."""
        self.call(
            "cudaStreamBeginCapture", self.stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )

    def end_capture(self) -> Any:
        """What was written down, ready to launch."""
        graph = self.call("cudaStreamEndCapture", self.stream)
        ready = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return ready

    def abandon_capture(self) -> None:
        """End a capture that failed, so that the stream runs again."""
        self._api.cudaStreamEndCapture(self.stream)

    def launch(self, graph: Any) -> None:
        """Begin all of a captured graph."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def close(self) -> None:
        """Give the stream back."""
        self.call("cudaStreamDestroy", self.stream)


class Buffer:
    """Zeroed memory of the GPU that is given back by `close`."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self.size = cuda, size
        self.pointer = int(cuda.call("cudaMalloc", max(size, 1)))
        cuda.call("cudaMemsetAsync", self.pointer, 0, max(size, 1), cuda.stream)

    def close(self) -> None:
        self._cuda.call("cudaFree", self.pointer)


class Pinned:
    """An array of zeros in memory that the GPU copies from and to without a copy in between."""

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: Any = np.float32) -> None:
        self._cuda = cuda
        count = int(np.prod(shape, dtype=np.int64))
        size = count * np.dtype(dtype).itemsize
        self._pointer = int(cuda.call("cudaMallocHost", max(size, 1)))
        memory = (ctypes.c_byte * size).from_address(self._pointer)
        self.array = np.frombuffer(memory, dtype=dtype, count=count).reshape(tuple(shape))
        self.array[...] = 0

    def close(self) -> None:
        self._cuda.call("cudaFreeHost", self._pointer)


class Stopwatch:
    """The GPU's own time between two places of the stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._events = [cuda.call("cudaEventCreate") for _ in range(2)]

    def start(self) -> None:
        self._cuda.call("cudaEventRecord", self._events[0], self._cuda.stream)

    def stop(self) -> None:
        self._cuda.call("cudaEventRecord", self._events[1], self._cuda.stream)

    def ms(self) -> float:
        """Milliseconds between the two, after `Cuda.wait`."""
        return round(float(self._cuda.call("cudaEventElapsedTime", *self._events)), 4)

    def close(self) -> None:
        for event in self._events:
            self._cuda.call("cudaEventDestroy", event)


def _import_api() -> Any:
    said = ""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            said = said or " ".join(str(error).split())[:200]
    raise RuntimeUnavailable(f"the package cuda-python does not import ({said}); try: {INSTALL}")
