"""The results of an inspection of a checkpoint or package, as plain values: showing them needs neither torch nor onnx.

Sizes are in pixels, and shapes are of one image.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.export.graph.operations import Kind, Operation, OperationGraph, Pair, Window
from fuseline.export.inspection.fp16_risk import Fp16Facts
from fuseline.export.inspection.receptive_field import receptive_fields

DEAD_GAIN = 1e-4
"""Gain below which a channel is dead: an input 10 from its mean moves the output by less than FP16's spacing near 1,
2**-10, so that the output is the offset whatever the picture."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution, linear layer or pool."""

    name: str
    kind: Kind
    kernel: Pair | None
    """(height, width); None for linear layers and global pools."""
    stride: Pair | None
    """(vertical, horizontal); None for linear layers, global pools, and adaptive pools whose windows lie unevenly."""
    dilation: Pair
    groups: int
    output_shape: tuple[int, ...]
    """(channels, height, width), or (features,)."""
    parameters: int
    """Number of parameters in weight and bias, without BatchNorm; 0 where an earlier layer has the same ones."""
    multiply_adds: int
    """Number of multiply-adds for one image; biases, pools and BatchNorms don't count, as is customary."""
    receptive_field_pixels: Pair | None
    """(height, width) of the pixels that one position of the output can depend on through windows alone; None behind a
    global pool."""
    sees_whole_input: bool
    """Whether the output depends on a statistic of the whole map: a global pool, or a gate computed from one."""
    covers_input: bool
    """Whether the receptive field is at least as large as the picture."""


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a tensor's elements."""

    smallest: float
    largest: float


@dataclass(frozen=True, slots=True)
class Gain:
    """The distribution of |gamma / sqrt(running_var + eps)| over channels."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, slots=True)
class BatchNormFacts:
    """One BatchNorm at inference."""

    name: str
    channels: int
    parameters: int
    """Number of parameters in gamma and beta; 0 where an earlier BatchNorm has the same ones."""
    eps: float
    running_mean: Range
    running_variance: Range
    gamma: Range | None
    """Range of gamma, as of `beta`; None without affine parameters."""
    beta: Range | None
    gain: Gain
    dead_channels: int
    """Number of channels whose |gain| is below `DEAD_GAIN`."""
    folds_into: str | None
    """The convolution or linear layer that the BatchNorm folds into; None if it folds into none."""
    why_not: str | None
    """Why the BatchNorm folds into none; None if it folds."""


@dataclass(frozen=True, slots=True)
class AppliedFold:
    """A BatchNorm that an export folded, by its report."""

    convolution: str
    batchnorm: str
    largest_gain: float


@dataclass(frozen=True, slots=True)
class Fp16Look:
    """The effect that FP16 would have."""

    images: str | None
    """The images on which activations were measured, for people; None if there were none."""
    why_no_images: str | None
    """Why activations weren't measured; None if they were."""
    layers: tuple[Fp16Facts, ...]
    largest_value_at: str | None
    """The operation with the largest of all values, sums of branches too."""
    largest_value: float | None


@dataclass(frozen=True, slots=True, eq=False)
class FirstFilters:
    """The first convolution's weights."""

    layer: str
    weight: NDArray[np.float32]
    """(out, in / groups, height, width)."""


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """Everything that an inspection found."""

    file: str
    sha256: str
    architecture: str
    evidence: tuple[str, ...]
    """Sentences: why the network is taken to be that."""
    unseen: tuple[str, ...]
    """Sentences: what nothing in the file tells, and was taken as is customary."""
    notes: tuple[str, ...]
    """What was done to read the file."""
    classes: int
    input_shape: tuple[int, int, int]
    """(channels, height, width) of the input that all figures are for."""
    parameters: int
    """Number of all parameters."""
    other_parameters: int
    """Number of parameters that are in neither layers nor BatchNorms."""
    layers: tuple[Layer, ...]
    """The layers in running order, named as in the file."""
    batchnorms: tuple[BatchNormFacts, ...]
    applied_folds: tuple[AppliedFold, ...]
    """The folds of a package, whose BatchNorms are folded already; empty for a checkpoint."""
    fp16: Fp16Look
    filters: FirstFilters | None
    """The first convolution's filters; None without a convolution whose weights are plain tensors."""

    @property
    def multiply_adds(self) -> int:
        """Number of multiply-adds of the whole network for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the filters' weights; a number that isn't finite is None."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "filters"}
        return plain | {"multiply_adds": self.multiply_adds, "dead_gain_below": DEAD_GAIN}


def layers_of(graph: OperationGraph, height: int, width: int) -> tuple[Layer, ...]:
    """Return every convolution, linear layer and pool of `graph`, for a picture of `height` x `width` pixels."""
    reached = receptive_fields(graph)
    return tuple(
        Layer(
            name=operation.name,
            kind=operation.kind,
            kernel=_kernel(operation),
            stride=_stride(operation),
            dilation=operation.reach.dilation if isinstance(operation.reach, Window) else (1, 1),
            groups=operation.groups,
            output_shape=operation.output_shape,
            parameters=operation.parameters,
            multiply_adds=operation.multiply_adds,
            receptive_field_pixels=field.pixels,
            sees_whole_input=field.whole_input,
            covers_input=field.covers(height, width),
        )
        for operation in graph.operations
        if operation.kind not in ("batchnorm", "other")
        for field in (reached[operation.output],)
    )


def first_filters(graph: OperationGraph) -> FirstFilters | None:
    """Return the weights of the convolution that runs first."""
    for operation in graph.operations:
        if operation.kind == "conv":
            return None if operation.weight is None else FirstFilters(operation.name, operation.weight)
    return None


def _kernel(operation: Operation) -> Pair | None:
    if operation.kind in ("conv", "transposed conv"):
        return operation.weight_shape[-2], operation.weight_shape[-1]
    return operation.reach.kernel if isinstance(operation.reach, Window) else None


def _stride(operation: Operation) -> Pair | None:
    if not isinstance(operation.reach, Window):
        return None
    down, along = (Fraction(step) for step in operation.reach.stride)
    if operation.kind == "transposed conv":
        down, along = 1 / down, 1 / along
    return (int(down), int(along)) if down.denominator == along.denominator == 1 else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
