"""A network's graph as a list of operations in running order, in one form for PyTorch and ONNX.

An inspection reads from it which operations have weights, and which positions of its input each output position depends
on. This module knows neither torch nor onnx.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["conv", "transposed conv", "linear", "max-pool", "average-pool", "global-pool", "batchnorm", "other"]
Pair = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Each position of the output is computed from a window of positions on the input's last two axes."""

    kernel: Pair = (1, 1)
    stride: tuple[Fraction | int, Fraction | int] = (1, 1)
    """Number of input positions from one output position to the next; below 1 where the map grows."""
    dilation: Pair = (1, 1)


@dataclass(frozen=True, slots=True)
class Stepped:
    """A slice that takes every `step`-th position along `axis`, which is counted from the last (-1)."""

    axis: int
    step: int


@dataclass(frozen=True, slots=True)
class Permuted:
    """A permutation: axis i of the output is axis `axes[i]` of the input, where the batch is an axis too."""

    axes: tuple[int, ...]


Reach = Window | Stepped | Permuted | Literal["position", "statistics", "everything"]
"""The part of the input that one position of an operation's output is computed from. `position`: the same position
alone, unless the map's size changes, which merges positions. `statistics`: the same position, and a statistic of the
whole map. `everything`: the whole map."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation. Values are called by names that are unique in the graph."""

    name: str
    """Name of the layer, if the operation has weights or is a module of its own; else the graph's name."""
    kind: Kind
    inputs: tuple[str, ...]
    """Values that depend on the picture; weights and constants are left out."""
    output: str
    output_shape: tuple[int, ...]
    """Shape of the output without the batch; () where the graph doesn't tell it."""
    reach: Reach = "position"
    groups: int = 1
    weight: NDArray[np.float32] | None = None
    """Weight of a convolution (out, in / groups, height, width) or linear layer (out, in); None where the network
    computes it."""
    weight_shape: tuple[int, ...] = ()
    parameters: int = 0
    """Number of parameters that no earlier operation has, so that shared ones count once."""
    input_positions: int = 1
    """Number of positions of the input map, by which a transposed convolution's multiply-adds are counted."""

    @property
    def multiply_adds(self) -> int:
        """Number of multiply-adds for one image; biases, pools and normalisations don't count, as is customary."""
        weights = math.prod(self.weight_shape)
        match self.kind:
            case "conv":
                return weights * math.prod(self.output_shape[-2:])
            case "transposed conv":
                return weights * self.input_positions
            case "linear":
                return weights * math.prod(self.output_shape[:-1])
            case _:
                return 0


@dataclass(frozen=True, slots=True)
class OperationGraph:
    """The operations of a network for one input size."""

    input_value: str
    input_shape: tuple[int, ...]
    """Shape of one image, as the graph takes it: (channels, height, width), or (height, width, channels)."""
    spatial_axes: Pair
    """Axes of height and width in the input, counted from the last (-1)."""
    operations: tuple[Operation, ...]


def pooling_window(before: int, after: int) -> tuple[int, Fraction]:
    """Return the largest window and the mean stride of adaptive pooling from `before` positions to `after`.

    Output position i takes the inputs from floor(i * before / after) to ceil((i + 1) * before / after), as PyTorch
    defines it.
    """
    sizes = (-(-(i + 1) * before // after) - i * before // after for i in range(after))
    return max(sizes), Fraction(before, after)
