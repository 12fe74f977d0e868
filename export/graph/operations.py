"""A network's graph as a list of operations in running order, the same for PyTorch and ONNX.

What an inspection reads: which operations hold weights, and how each carries positions of the picture along. It knows
neither torch nor onnx.
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
    """Positions of the input from one position of the output to the next; below 1 where the map grows."""
    dilation: Pair = (1, 1)


@dataclass(frozen=True, slots=True)
class Stepped:
    """A slice: every `step`-th position along `axis`, counted from the last (-1)."""

    axis: int
    step: int


@dataclass(frozen=True, slots=True)
class Permuted:
    """Axis i of the output is axis `axes[i]` of the input; the batch counts too."""

    axes: tuple[int, ...]


Reach = Window | Stepped | Permuted | Literal["position", "statistics", "everything"]
"""What of its input one position of an operation's output is computed from. `position`: that position alone, unless
the map's size changes, which merges positions. `statistics`: that position, and a statistic of the whole map.
`everything`: the whole map."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation. Values are called by names that are unique in the graph."""

    name: str
    """The layer's, where the operation has weights or is a module of its own; else the graph's."""
    kind: Kind
    inputs: tuple[str, ...]
    """Values that depend on the picture; weights and constants are left out."""
    output: str
    output_shape: tuple[int, ...]
    """Of one image, without the batch; empty where the graph doesn't tell."""
    reach: Reach = "position"
    groups: int = 1
    weight: NDArray[np.float32] | None = None
    """Of a convolution (out, in / groups, height, width) or linear layer (out, in); None where the network computes
    it."""
    weight_shape: tuple[int, ...] = ()
    parameters: int = 0
    """That no operation before it has: shared ones count once."""
    input_positions: int = 1
    """Positions of the map that it takes; what a transposed convolution's multiply-adds count by."""

    @property
    def multiply_adds(self) -> int:
        """For one image; biases, pools and normalisations are not counted, as is customary."""
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
    """A network for one input size."""

    input_value: str
    input_shape: tuple[int, ...]
    """Of one image, as the graph takes it: (channels, height, width), or (height, width, channels)."""
    spatial_axes: Pair
    """Height's and width's axis of the input, counted from the last (-1)."""
    operations: tuple[Operation, ...]


def pooling_window(before: int, after: int) -> tuple[int, Fraction]:
    """Largest window and mean stride of adaptive pooling from `before` positions to `after`.

    Position i takes those from floor(i * before / after) to ceil((i + 1) * before / after), as PyTorch defines it.
    """
    sizes = (-(-(i + 1) * before // after) - i * before // after for i in range(after))
    return max(sizes), Fraction(before, after)
