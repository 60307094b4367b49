"""TensorRT and the CUDA runtime without a GPU, for tests: an engine is its ONNX graph, run by ONNX Runtime.

A cast to bfloat16 that is put into a network rounds, and what computes behind it is of float32 again, as ONNX Runtime
has no kernels of bfloat16.

The GPU's memory is the machine's own, so a pointer is an address; names, arguments, results and the order in which they
may be called are those of TensorRT 10's Python package and of cuda-python.
"""

from __future__ import annotations

import ctypes
import enum
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
KINDS = {np.dtype(np.float32): "FLOAT", np.dtype(np.float16): "HALF", np.dtype(np.int64): "INT64"}


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class FakeCuda(types.ModuleType):
    """`cuda.bindings.runtime`: every function gives (status, values...)."""

    def __init__(self, devices: int = 1, name: bytes = b"Fake Orin") -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.name = devices, name
        self.memory: dict[int, Any] = {}
        self.capturing: list[Any] | None = None
        self.copies_2d = self.launches = 0
        self.fails: set[str] = set()
        self.cudaMemcpyKind = types.SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cuda") and callable(found) and name in super().__getattribute__("fails"):
            return lambda *_arguments: (2, 0)
        return found

    def cudaGetDeviceCount(self):
        return (0, self.devices) if self.devices else (35, None)

    def cudaGetErrorString(self, status):
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient"}.get(int(status), b"unknown")

    def cudaGetDeviceProperties(self, device):
        return 0, types.SimpleNamespace(name=self.name, major=8, minor=7)

    def cudaRuntimeGetVersion(self):
        return 0, 12060

    def cudaDriverGetVersion(self):
        return 0, 12060

    def cudaMemGetInfo(self):
        return 0, 1 << 30, 2 << 30

    def _allocate(self, size):
        memory = (ctypes.c_byte * (size + 256))()
        address = ctypes.addressof(memory)
        address += -address % 256
        self.memory[address] = (memory, size)
        return 0, address

    cudaMalloc = cudaMallocHost = _allocate

    def _free(self, pointer):
        del self.memory[int(pointer)]
        return (0,)

    cudaFree = cudaFreeHost = _free

    def inside(self, pointer: int, size: int) -> bool:
        """Whether these bytes are in memory that was allocated."""
        return any(begin <= pointer and pointer + size <= begin + length for begin, (_, length) in self.memory.items())

    def cudaMemsetAsync(self, pointer, value, size, stream):
        ctypes.memset(pointer, value, size)
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert self.capturing is None
        assert kind == 2 or self.inside(target, size)
        assert kind == 1 or self.inside(source, size)
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaMemcpy2DAsync(self, target, pitch, source, source_pitch, width, height, kind, stream):
        assert width <= pitch
        assert width <= source_pitch
        assert self.inside(target, pitch * (height - 1) + width)
        assert self.inside(source, source_pitch * (height - 1) + width)
        self.copies_2d += 1
        for row in range(height):
            ctypes.memmove(target + row * pitch, source + row * source_pitch, width)
        return (0,)

    def cudaStreamCreate(self):
        return 0, 7

    def cudaStreamDestroy(self, stream):
        return (0,)

    def cudaStreamSynchronize(self, stream):
        assert self.capturing is None
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        captured, self.capturing = self.capturing, None
        return 0, captured

    def cudaGraphInstantiate(self, graph, flags):
        return 0, list(graph)

    def cudaGraphDestroy(self, graph):
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        return (0,)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for work in graph:
            work()
        return (0,)

    def cudaEventCreate(self):
        return 0, object()

    def cudaEventRecord(self, event, stream):
        return (0,)

    def cudaEventElapsedTime(self, start, end):
        return 0, 1.25

    def cudaEventDestroy(self, event):
        return (0,)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.began = True


DataType = enum.IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "INT64": 8, "BF16": 7})
LayerType = enum.IntEnum("LayerType", "SOFTMAX NORMALIZATION CONVOLUTION SHAPE CAST QUANTIZE DEQUANTIZE OTHER")
LAYERS = {
    "Softmax": LayerType.SOFTMAX,
    "LayerNormalization": LayerType.NORMALIZATION,
    "Conv": LayerType.CONVOLUTION,
    "Shape": LayerType.SHAPE,
    "Cast": LayerType.CAST,
    "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE,
}
DATA_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
}


class _Tensor:
    """A tensor of a network, which has one name wherever it is looked at."""

    def __init__(self, network: _Network, name: str, shape: tuple[int, ...] = ()) -> None:
        self._network, self._name, self.shape = network, name, shape

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        for node in self._network.graph.node:
            node.input[:] = [name if each == self._name else each for each in node.input]
            node.output[:] = [name if each == self._name else each for each in node.output]
        self._network.kinds[name] = self._network.kinds[self._name]
        self._name = name

    @property
    def dtype(self) -> DataType:
        return self._network.kinds.get(self._name, DataType.INT32)


class _Layer:
    """A node of a graph."""

    def __init__(self, network: _Network, node: onnx.NodeProto) -> None:
        self._network, self.node = network, node

    name = property(lambda self: self.node.name)
    type = property(lambda self: LAYERS.get(self.node.op_type, LayerType.OTHER))
    num_inputs = property(lambda self: len(self.node.input))
    num_outputs = property(lambda self: len(self.node.output))

    def get_input(self, place):
        return _Tensor(self._network, self.node.input[place]) if self.node.input[place] else None

    def get_output(self, place):
        return _Tensor(self._network, self.node.output[place])

    def set_input(self, place, tensor):
        self.node.input[place] = tensor.name


class _Network:
    def __init__(self) -> None:
        self.path = ""
        self.graph = onnx.GraphProto()
        self.inputs: list[_Tensor] = []
        self.kinds: dict[str, DataType] = {}
        self.casts: list[tuple[str, DataType]] = []

    layers = property(lambda self: [_Layer(self, node) for node in self.graph.node])
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.graph.output))
    num_layers = property(lambda self: len(self.graph.node))

    def get_input(self, number):
        return self.inputs[number]

    def get_output(self, number):
        return _Tensor(self, self.graph.output[number].name)

    def get_layer(self, number):
        return self.layers[number]

    def parse(self, path):
        self.path, self.model = path, onnx.load(path, load_external_data=False)
        self.graph = self.model.graph
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            self.kinds[value.name] = DATA_TYPES.get(value.type.tensor_type.elem_type, DataType.INT32)
        for tensor in inferred.initializer:
            self.kinds[tensor.name] = DATA_TYPES.get(tensor.data_type, DataType.INT32)
        for value in self.graph.input:
            sizes = value.type.tensor_type.shape.dim
            shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
            self.inputs.append(_Tensor(self, value.name, shape))

    def add_cast(self, tensor, kind):
        place = 1 + max([n for n, node in enumerate(self.graph.node) if tensor.name in node.output], default=-1)
        name = f"{tensor.name}.cast.{kind.name}"
        self.casts.append((tensor.name, kind))
        rounded = [onnx.TensorProto.BFLOAT16] if kind == DataType.BF16 else []
        before = tensor.name
        for number, target in enumerate((*rounded, onnx.TensorProto.FLOAT)):
            after = name if target == onnx.TensorProto.FLOAT else f"{name}.rounded"
            self.graph.node.insert(
                place + number, onnx.helper.make_node("Cast", [before], [after], name=after, to=target)
            )
            before = after
        self.kinds[name] = kind
        return _Layer(self, self.graph.node[place + len(rounded)])

    def unmark_output(self, tensor):
        (number,) = [n for n, value in enumerate(self.graph.output) if value.name == tensor.name]
        self.unmarked = self.graph.output.pop(number)

    def mark_output(self, tensor):
        assert self.unmarked.name == tensor.name
        self.graph.output.append(self.unmarked)

    def serialize(self):
        """What an engine has to be made of: the graph's path, or that of what it was changed to."""
        if not self.casts:
            return self.path.encode()
        onnx.save(self.model, f"{self.path}.changed.onnx")
        return f"{self.path}.changed.onnx".encode()


class _Error:
    def __init__(self, node: str, said: str) -> None:
        self._node, self._said = node, said

    def node_name(self):
        return self._node

    def desc(self):
        return self._said


class _Profile:
    def __init__(self) -> None:
        self.spans: dict[str, tuple] = {}

    def set_shape(self, name, least, usual, most):
        assert all(a <= b <= c for a, b, c in zip(least, usual, most))
        self.spans[name] = (least, usual, most)


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self):
        return memoryview(self.data + b".")


class FakeTensorRT(types.ModuleType):
    """The package `tensorrt`. capable: of building ahead of time, as tensorrt_rtx is."""

    def __init__(self, cuda: FakeCuda, name: str = "tensorrt", version: str = "10.3.0", capable: bool = False) -> None:
        super().__init__(name)
        fake = self
        self.__version__ = version
        self.ILogger = ILogger
        self.refused: str | None = None  # what the parser says of a node
        self.fails = False  # whether building does
        self.foreign = False  # whether engines are of another GPU
        self.capturable = True
        self.builds: list[Any] = []
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 1})
        self.ProfilingVerbosity = enum.IntEnum("Verbosity", {"DETAILED": 2})
        self.BuilderFlag = enum.IntEnum("BuilderFlag", {"TF32": 7})
        self.MemoryPoolType = enum.IntEnum("Pool", {"WORKSPACE": 0})
        self.LayerType, self.DataType = LayerType, DataType
        self.TensorIOMode = enum.IntEnum("Mode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
        self.ComputeCapability = enum.IntEnum("Capability", {"SM86": 1, "SM89": 2, "SM120": 3})

        class Config:
            profiling_verbosity = None

            def __init__(self) -> None:
                self.cleared: list[Any] = []
                self.limits: dict[Any, int] = {}
                self.profiles: list[_Profile] = []
                self.cache: _Cache | None = None
                self.capabilities: dict[int, Any] = {}
                if capable:
                    self.num_compute_capabilities = 0

            def clear_flag(self, flag):
                self.cleared.append(flag)

            def set_memory_pool_limit(self, pool, size):
                self.limits[pool] = size

            def add_optimization_profile(self, profile):
                self.profiles.append(profile)

            def create_timing_cache(self, data):
                return _Cache(bytes(data))

            def set_timing_cache(self, cache, ignore_mismatch):
                self.cache = cache
                return True

            def get_timing_cache(self):
                return self.cache

            def set_compute_capability(self, capability, number):
                self.capabilities[number] = capability

        class Builder:
            def __init__(self, log) -> None:
                assert log.began
                self.log = log

            def create_network(self, flags=0):
                assert flags == 2
                return _Network()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return _Profile()

            def build_serialized_network(self, network, config):
                if fake.fails:
                    self.log.log(Severity.ERROR, "Error Code 2: OutOfMemory\n (requested 9 bytes)")
                    return None
                fake.builds.append((network, config))
                count = sum(layer.type == fake.LayerType.SOFTMAX for layer in network.layers)
                lines = [f"Name: _gemm_mha_v2_myl0_{n}, LayerType: kgen, Inputs: []" for n in range(count)]
                self.log.log(
                    Severity.VERBOSE,
                    "Engine Layer Information:\n" + "\n".join([*lines, "Name: out, LayerType: gemm, Inputs: []"]),
                )
                return memoryview(network.serialize())

        class OnnxParser:
            def __init__(self, network, log) -> None:
                self.network, self.errors = network, []

            num_errors = property(lambda self: len(self.errors))
            num_subgraphs = property(lambda self: 1)

            def supports_model_v2(self, model, path=None):
                assert isinstance(model, bytes)
                return self._take(path)

            def parse_from_file(self, path):
                return self._take(path)

            def _take(self, path):
                if fake.refused:
                    self.errors.append(_Error("some.node", fake.refused))
                    return False
                self.network.parse(path)
                return True

            def get_error(self, number):
                return self.errors[number]

            def is_subgraph_supported(self, number):
                return False

        class Runtime:
            def __init__(self, log) -> None:
                self.log = log

            def deserialize_cuda_engine(self, data):
                if fake.foreign:
                    self.log.log(Severity.ERROR, "Error Code 6: the engine is of compute capability 8.9")
                    return None
                return FakeEngine(fake, cuda, bytes(data).decode())

        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime


class FakeEngine:
    """A deserialised engine."""

    def __init__(self, library: FakeTensorRT, cuda: FakeCuda, path: str) -> None:
        self.library, self.cuda = library, cuda
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tensors = {t.name: (t, library.TensorIOMode.INPUT) for t in self.session.get_inputs()}
        self.tensors.update({t.name: (t, library.TensorIOMode.OUTPUT) for t in self.session.get_outputs()})

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, number):
        return list(self.tensors)[number]

    def get_tensor_mode(self, name):
        return self.tensors[name][1]

    def get_tensor_shape(self, name):
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name][0].shape)

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name=KINDS[np.dtype(TYPES[self.tensors[name][0].type])])

    def create_execution_context(self):
        return FakeContext(self)


class FakeContext:
    """A context: shapes and addresses, and runs that read and write there."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name, shape):
        fixed = self.engine.get_tensor_shape(name)
        if len(shape) != len(fixed) or any(a not in (-1, b) for a, b in zip(fixed, shape)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        assert address % 256 == 0, name
        if name not in self.engine.tensors:
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        cuda, shapes, addresses = self.engine.cuda, dict(self.shapes), dict(self.addresses)
        assert set(addresses) == set(self.engine.tensors)
        if cuda.capturing is None:
            self._run(shapes, addresses)
            return True
        if not self.engine.library.capturable:
            return False
        cuda.capturing.append(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        inputs = {
            t.name: self._view(t.name, t.type, shapes[t.name], addresses) for t in self.engine.session.get_inputs()
        }
        outputs = self.engine.session.get_outputs()
        for tensor, value in zip(outputs, self.engine.session.run(None, inputs)):
            self._view(tensor.name, tensor.type, value.shape, addresses)[...] = value

    def _view(self, name: str, kind: str, shape: tuple[int, ...], addresses: dict[str, int]) -> np.ndarray:
        count, dtype = int(np.prod(shape)), np.dtype(TYPES[kind])
        assert self.engine.cuda.inside(addresses[name], count * dtype.itemsize), name
        memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(addresses[name])
        return np.frombuffer(memory, dtype, count).reshape(shape)
