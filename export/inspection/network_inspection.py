"""Inspection of a trained network: its architecture, layers, receptive fields, BatchNorms, and FP16's risks."""

from pathlib import Path

import torch
from torch import fx

from fuseline.export.assumptions.assumptions import check_assumed
from fuseline.export.checkpoint.wrapper_prefixes import printable
from fuseline.export.folding.trace import trace
from fuseline.export.graph.operations import OperationGraph
from fuseline.export.inspection.activation_look import (
    GENERATED_IMAGES,
    MAX_MULTIPLY_ADDS,
    image_count,
    largest_activations,
)
from fuseline.export.inspection.batchnorm_facts import BatchNorms, batchnorms_of
from fuseline.export.inspection.fp16_risk import fp16_facts, largest_value, scaled_rows
from fuseline.export.inspection.inspected import Fp16Look, Inspection, first_filters, layers_of
from fuseline.export.inspection.traced_operations import operations_from_trace
from fuseline.export.loading.loading import NetworkSource, network_of, read_source
from fuseline.export.network import TrainedNetwork
from fuseline.serve.errors import ArchitectureError, InputError

_OF_AN_EXPORT = frozenset({"size", "normalization", "task", "folders"})
"""Keys of `--assume` that say nothing about the network itself."""


def inspect_checkpoint(path: Path, input_size: tuple[int, int] | None = None) -> Inspection:
    """Recognise the checkpoint at `path` and inspect it, for an input of `input_size` (height, width).

    Raises:
        CheckpointError: the file is no checkpoint.
        ArchitectureError: the file holds no network that Fuseline knows.
        InputError: the network takes no picture of that size.
    """
    return inspect_source(NetworkSource(path), input_size)


def inspect_source(source: NetworkSource, input_size: tuple[int, int] | None = None) -> Inspection:
    """Inspect the network of any source, as `inspect_checkpoint` does. Raise what `network_of` raises, too."""
    checkpoint = read_source(source)
    network = network_of(checkpoint, source, input_size)
    check_assumed(
        {key: value for key, value in source.assumed.items() if key not in _OF_AN_EXPORT}, network.assumptions
    )
    return inspect_network(
        network,
        file=printable(checkpoint.path.name),
        sha256=checkpoint.sha256,
        notes=checkpoint.notes,
        input_size=input_size,
    )


def inspect_network(
    network: TrainedNetwork,
    *,
    file: str,
    sha256: str,
    notes: tuple[str, ...],
    input_size: tuple[int, int] | None = None,
) -> Inspection:
    """Inspect `network`, for an input of `input_size` (height, width), by default of its usual size.

    No file is read, and `network` isn't changed; it runs on a few generated images.

    Raises:
        InputError: the network takes no picture of that size.
        ArchitectureError: the network can't be traced, or one of its BatchNorms normalises by its batch.
    """
    height, width = input_size or network.usual_input_size
    shape = (network.in_channels, height, width)
    traced = _trace(network, shape)
    graph = operations_from_trace(traced, network.layer_names)
    batchnorms = batchnorms_of(traced, network.layer_names, {o.output: o.parameters for o in graph.operations})
    layers = layers_of(graph, height, width)
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    in_layers = sum(layer.parameters for layer in layers) + sum(facts.parameters for facts in batchnorms.facts)
    return Inspection(
        file=file,
        sha256=sha256,
        architecture=network.architecture,
        evidence=network.evidence,
        unseen=tuple(assumption.line for assumption in network.assumptions if assumption.is_open),
        notes=notes,
        classes=network.classes,
        input_shape=shape,
        parameters=parameters,
        other_parameters=parameters - in_layers,
        layers=layers,
        batchnorms=batchnorms.facts,
        applied_folds=(),
        fp16=_fp16_look(traced, graph, batchnorms, shape),
        filters=first_filters(graph),
    )


def _trace(network: TrainedNetwork, shape: tuple[int, int, int]) -> fx.GraphModule:
    try:
        return trace(network.module, shape)
    except ArchitectureError as tracing:
        height, width = network.usual_input_size
        # A picture of that size tells whether the size is wrong, or the network can't be traced.
        try:
            with torch.inference_mode():
                network.module(torch.zeros((1, *shape)))
        except Exception as error:  # user code runs here
            raise InputError(
                f"--input-size: the network takes no picture of {shape[1]} x {shape[2]} pixels and {shape[0]} "
                f"channels: {str(error).strip() or type(error).__name__}; its usual size is {height} x {width}"
            ) from error
        raise tracing


def _fp16_look(
    traced: fx.GraphModule, graph: OperationGraph, batchnorms: BatchNorms, shape: tuple[int, int, int]
) -> Fp16Look:
    multiply_adds = image_count() * sum(operation.multiply_adds for operation in graph.operations)
    looked = multiply_adds <= MAX_MULTIPLY_ADDS
    activations = largest_activations(traced, shape) if looked else {}
    nodes = {node.name: node for node in traced.graph.nodes}
    layers = []
    for operation in graph.operations:
        if operation.kind not in ("conv", "transposed conv", "linear"):
            continue
        node = nodes[operation.output]
        gain = batchnorms.gains.get(node)
        weight = operation.weight
        if weight is not None:
            weight = scaled_rows(weight, None if gain is None else gain.numpy())
        # Once folded, the layer's output is its BatchNorm's; the value between the two is never stored in FP16.
        layers.append(fp16_facts(operation.name, weight, activations.get(batchnorms.folded.get(node, node))))
    at_output = {node.name: value for node, value in activations.items() if node not in batchnorms.folded}
    most = largest_value(at_output)
    names = {operation.output: operation.name for operation in graph.operations}
    return Fp16Look(
        images=GENERATED_IMAGES if looked else None,
        why_no_images=None if looked else _too_much(multiply_adds),
        layers=tuple(layers),
        largest_value_at=None if most is None else names[most[0]],
        largest_value=None if most is None else most[1],
    )


def _too_much(multiply_adds: int) -> str:
    return (
        f"{image_count()} images of this size take {multiply_adds / 1e9:.0f} G multiply-adds, more than "
        f"{MAX_MULTIPLY_ADDS / 1e9:.0f} G; a smaller --input-size shows activations"
    )
