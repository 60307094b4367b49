"""A network of float32 that computes in bfloat16: casts are put before the layers that may be coarse.

Networks are strongly typed: a layer computes in the type of its inputs. So the graph stays what was proved, in float32,
and what it becomes is said here:
- products, activations and residuals are in bfloat16, the products' weights too;
- norms and softmax stay in float32: there large numbers meet small ones;
- convolutions do, whose weights are no input that could be cast;
- so does the front end: a spectrum has more digits than bfloat16's eight bits hold;
- inputs and outputs keep their types.
bfloat16 has float32's range, so nothing has to stay in float32 for its size.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

FRONT_END = "front_end."  # how its nodes are named
KEPT_LAYERS = ("NORMALIZATION", "SOFTMAX", "CONVOLUTION")
UNTOUCHED_LAYERS = ("CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE")  # their types are their own
EARLIEST_CAPABILITY = (8, 0)  # Ampere: NVIDIA's table of precisions by compute capability


def has_bf16(capability: str) -> bool:
    """Whether GPUs of a compute capability, such as "8.7", compute in bfloat16."""
    return tuple(int(part) for part in capability.split(".")) >= EARLIEST_CAPABILITY


def compute_in_bf16(library: Any, network: Any) -> None:
    """Change a parsed network in place, before it is built; its layers are in the order in which they compute."""
    _Rounding(library, network).run()


class _Rounding:
    """The tensors of floats, in which type each is so far, and the casts that there are."""

    def __init__(self, library: Any, network: Any) -> None:
        self._network, self._kinds = network, library.DataType
        self._layers = [network.get_layer(number) for number in range(network.num_layers)]
        self._outputs = {network.get_output(number).name for number in range(network.num_outputs)}
        self._coarse: Dict[str, Any] = {}  # tensors that are in bfloat16 now
        self._casts: Dict[Tuple[str, Any], Any] = {}
        # Types as they were parsed: once an input is changed, those behind it are no longer what they say.
        self._floats = {
            tensor.name
            for layer in self._layers
            for tensor in (*_inputs(layer).values(), *_outputs(layer))
            if tensor.dtype == self._kinds.FLOAT
        }

    def run(self) -> None:
        named = [number for number, layer in enumerate(self._layers) if layer.name.startswith(FRONT_END)]
        for layer in self._layers[(named[-1] + 1 if named else 0) :]:
            kind = layer.type.name
            if kind not in UNTOUCHED_LAYERS:
                self._change(layer, self._kinds.FLOAT if kind in KEPT_LAYERS else self._kinds.BF16)
        for name in sorted(self._outputs & set(self._coarse)):
            self._restore(self._coarse[name], name)

    def _change(self, layer: Any, wanted: Any) -> None:
        """Let a layer compute in the wanted type, if it computes in floats at all."""
        for place, tensor in _inputs(layer).items():
            if tensor.name in self._floats and (tensor.name in self._coarse) != (wanted == self._kinds.BF16):
                layer.set_input(place, self._as(tensor, wanted))
        if wanted == self._kinds.BF16:
            self._coarse.update({tensor.name: tensor for tensor in _outputs(layer) if tensor.name in self._floats})

    def _as(self, tensor: Any, wanted: Any) -> Any:
        key = tensor.name, wanted
        if key not in self._casts:
            self._casts[key] = self._network.add_cast(tensor, wanted).get_output(0)
        return self._casts[key]

    def _restore(self, tensor: Any, name: str) -> None:
        """An output of the network in float32 again, under its own name."""
        self._network.unmark_output(tensor)
        tensor.name = f"{name}.bf16"
        output = self._network.add_cast(tensor, self._kinds.FLOAT).get_output(0)
        output.name = name
        self._network.mark_output(output)


def _inputs(layer: Any) -> Dict[int, Any]:
    """A layer's inputs by their place; some places may be empty."""
    found = {place: layer.get_input(place) for place in range(layer.num_inputs)}
    return {place: tensor for place, tensor in found.items() if tensor is not None}


def _outputs(layer: Any) -> List[Any]:
    return [layer.get_output(place) for place in range(layer.num_outputs)]
