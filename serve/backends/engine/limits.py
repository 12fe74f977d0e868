"""Refuses, before an engine is built, layers that a library is known not to compute, or wrongly, on a kind of GPU.

NVIDIA's support matrix of TensorRT for RTX says of compute capability 7.5 that neither FP32 matrix products nor 3-D
convolutions nor BF16 are supported. With a dynamic batch an FP32 product was seen to build, to run and to answer zeros
of the right shape, and BF16 to crash (github.com/pytorch/TensorRT, pull 4643). 1.7.1 refuses the product by itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fuseline.serve.backends.engine.library import INSTALL, NAMES
from fuseline.serve.backends.engine.precision import described_node, layers_of, node_name
from fuseline.serve.backends.engine.target import Builder
from fuseline.serve.errors import BackendUnavailableError

_PRODUCTS = ("MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT", "MOE", "RECURRENCE")
_VOLUME_DIMENSIONS = 5
"""Number of dimensions of a 3-D convolution's image: batch, channels, depth, height, width."""


def check_computable(network: Any, choice: Builder, layer_names: Mapping[str, str] | None = None) -> None:
    """Check that `choice`'s library computes every layer of the parsed `network` on its capability.

    Args:
        layer_names: see `described_node`.

    Raises:
        BackendUnavailableError: it doesn't compute some; the message names them.
    """
    if (choice.library, choice.capability) != ("tensorrt_rtx", "sm75"):
        return
    faults = [f"{described_node(node, layer_names)} ({why})" for node, why in _faults_on_turing(network)]
    if faults:
        raise BackendUnavailableError(
            f"{NAMES[choice.library]} can't compute {len(faults)} layers of the graph on {choice.capability}, and may "
            f"answer zeros instead: {', '.join(faults)}; `fuseline export --fp16` without --keep-fp32 for them writes "
            f"a graph that it can, or TensorRT, on a machine that has the GPU: {INSTALL['tensorrt']}"
        )


def _faults_on_turing(network: Any) -> Iterator[tuple[str, str]]:
    """Yield the ONNX node of each layer that isn't computed on compute capability 7.5, and why."""
    for layer in layers_of(network):
        kind, inputs = layer.type.name, [layer.get_input(index) for index in range(layer.num_inputs)]
        tensors = [tensor for tensor in inputs if tensor is not None]
        types = {tensor.dtype.name for tensor in tensors}
        if "BF16" in types | {layer.get_output(index).dtype.name for index in range(layer.num_outputs)}:
            yield node_name(layer), "BF16"
        # This includes a product of dequantised tensors, which other GPUs compute in INT8: 1.7.1 takes it for an FP32
        # product on this capability.
        elif kind in _PRODUCTS and "FLOAT" in types:
            yield node_name(layer), "an FP32 matrix product"
        elif kind == "CONVOLUTION" and len(tuple(tensors[0].shape)) == _VOLUME_DIMENSIONS:
            yield node_name(layer), "a 3-D convolution"
