"""The statistics of a network's BatchNorms, and the gain of each for the layer that it folds into."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fuseline.export.folding.fold import batchnorm_tensors, why_not_folded
from fuseline.export.inspection.inspected import DEAD_GAIN, BatchNormFacts, Gain, Range
from fuseline.export.inspection.traced_operations import shown_layer_name

_ATEN = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class BatchNorms:
    """All BatchNorms of a network."""

    facts: tuple[BatchNormFacts, ...]
    gains: Mapping[fx.Node, Tensor]
    """Node of a layer -> signed gain (channels,), float64, of the BatchNorm that folds into it."""
    folded: Mapping[fx.Node, fx.Node]
    """Node of a layer -> node of the BatchNorm that folds into it."""


def batchnorms_of(traced: fx.GraphModule, names: Mapping[str, str], parameters: Mapping[str, int]) -> BatchNorms:
    """Return the BatchNorms of `traced` in running order.

    Args:
        names: the module's names of layers to those that are shown.
        parameters: name of a node -> number of its parameters.

    Raises:
        ArchitectureError: a BatchNorm, which is named, normalises by its batch.
    """
    facts: list[BatchNormFacts] = []
    gains: dict[fx.Node, Tensor] = {}
    folded: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.find_nodes(op="call_function", target=_ATEN.batch_norm.default):
        why_not = why_not_folded(node)
        layer = node.all_input_nodes[0]
        tensors = batchnorm_tensors(traced, node)
        if why_not is None:
            gains[layer], folded[layer] = tensors.gain, node
        magnitude = tensors.gain.abs()
        facts.append(
            BatchNormFacts(
                name=shown_layer_name(node, names),
                channels=tensors.running_mean.numel(),
                parameters=parameters[node.name],
                eps=tensors.eps,
                running_mean=_range(tensors.running_mean),
                running_variance=_range(tensors.running_var),
                gamma=None if tensors.gamma is None else _range(tensors.gamma),
                beta=None if tensors.beta is None else _range(tensors.beta),
                gain=Gain(float(magnitude.min()), float(magnitude.quantile(0.5)), float(magnitude.max())),
                dead_channels=int((magnitude < DEAD_GAIN).sum()),
                folds_into=None if why_not is not None else shown_layer_name(layer, names),
                why_not=why_not,
            )
        )
    return BatchNorms(tuple(facts), gains, folded)


def _range(values: Tensor) -> Range:
    return Range(float(values.min()), float(values.max()))
