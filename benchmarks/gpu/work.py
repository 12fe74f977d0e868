"""What a network has to do for a batch at the least: multiply-adds, and bytes to and from memory.

Counted from the FP32 graph's operations. Bytes are those of a runtime that fuses what can be fused and keeps nothing
in its caches from one layer to the next:

- the weights and biases of every convolution and linear layer, read once for each batch;
- the input of every convolution, pool and linear layer read once and its output written once, for each image;
- the second operand of every addition of two maps, read once; the addition itself is fused into a convolution;
- ReLU, normalisation, casts and reshapes: nothing, except that pixels are read as bytes and written once as numbers.

A runtime that fuses less moves more; one whose caches hold a whole map moves less. So a share of the bandwidth is the
share that useful traffic takes, and it may pass 1 where a network fits into the caches.
"""

import math
from dataclasses import dataclass

from fuseline.export.graph.operations import OperationGraph


@dataclass(frozen=True, slots=True)
class NetworkWork:
    """Work of one network at one input size; elements are numbers of the contender's precision."""

    multiply_adds: int
    """Multiply-adds of one image."""
    weight_elements: int
    map_elements: int
    """Read and written for one image."""
    pixel_bytes: int
    """Read for one image."""

    def flops(self, rows: int) -> int:
        """Floating-point operations for `rows` images: a multiply-add is two."""
        return 2 * self.multiply_adds * rows

    def bytes(self, rows: int, element_bytes: int) -> int:
        """Bytes to and from memory for `rows` images in one batch, as this module counts them."""
        return element_bytes * (self.weight_elements + rows * self.map_elements) + rows * self.pixel_bytes


def network_work(graph: OperationGraph) -> NetworkWork:
    """Count `graph`, whose input is one image of uint8 pixels."""
    pixels = math.prod(graph.input_shape)
    sizes = {graph.input_value: pixels}
    sizes |= {operation.output: math.prod(operation.output_shape) for operation in graph.operations}
    # Written by whatever makes numbers of the pixels; the first convolution reads them as its input.
    maps = pixels
    for operation in graph.operations:
        if operation.kind != "other":
            maps += sum(sizes[name] for name in operation.inputs) + sizes[operation.output]
        elif len(operation.inputs) > 1:
            maps += sum(sizes[name] for name in operation.inputs[1:])
    return NetworkWork(
        multiply_adds=sum(operation.multiply_adds for operation in graph.operations),
        weight_elements=sum(operation.parameters for operation in graph.operations),
        map_elements=maps,
        pixel_bytes=pixels,
    )
