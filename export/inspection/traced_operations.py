"""The operations of a traced PyTorch network, in the form of `fuseline.export.graph.operations`."""

import math
import operator
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from fuseline.export.folding.fold import attribute
from fuseline.export.folding.trace import layer_name
from fuseline.export.graph.operations import (
    Kind,
    Operation,
    OperationGraph,
    Pair,
    Permuted,
    Reach,
    Stepped,
    Window,
    pooling_window,
)

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv2d.default, _ATEN.conv2d.padding)
_WEIGHTED = (*_CONVOLUTIONS, _ATEN.conv_transpose2d.input, _ATEN.linear.default)
_WINDOW_POOLS: Mapping[object, Kind] = {
    _ATEN.max_pool2d.default: "max-pool",
    _ATEN.max_pool2d_with_indices.default: "max-pool",
    _ATEN.avg_pool2d.default: "average-pool",
}
_ADAPTIVE_POOLS: Mapping[object, Kind] = {
    _ATEN.adaptive_avg_pool2d.default: "average-pool",
    _ATEN.adaptive_max_pool2d.default: "max-pool",
}
_REDUCTIONS = (_ATEN.mean.dim, _ATEN.sum.dim_IntList, _ATEN.amax.default)
# Operators that normalise by the map's own statistics, at inference too.
_MAP_STATISTICS = (_ATEN.group_norm.default, _ATEN.instance_norm.default)
_PADDING = (_ATEN.pad.default, _ATEN.constant_pad_nd.default, _ATEN.reflection_pad2d.default)
_RESAMPLING_KERNELS = {
    _ATEN.upsample_nearest2d.vec: 1,
    _ATEN.upsample_bilinear2d.vec: 2,
    _ATEN.upsample_bicubic2d.vec: 4,
}


def operations_from_trace(traced: fx.GraphModule, names: Mapping[str, str]) -> OperationGraph:
    """Return the operations of `traced`, a graph of `fuseline.export.folding.trace.trace`.

    Args:
        names: module names to the names that are shown; a module without one keeps its own.
    """
    (image,) = traced.graph.find_nodes(op="placeholder")
    reader = _Reader(traced, names)
    return OperationGraph(
        input_value=image.name,
        input_shape=shape_of(image),
        spatial_axes=(-2, -1),
        operations=tuple(reader.operation(node) for node in traced.graph.nodes if node in reader.live),
    )


def is_weighted(node: fx.Node) -> bool:
    """Return whether `node` is a convolution or a linear layer."""
    return node.target in _WEIGHTED


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of `node`'s value without the batch; of several values, the first one's."""
    value = node.meta.get("val")
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return tuple(int(size) for size in value.shape[1:]) if isinstance(value, Tensor) else ()


def shown_layer_name(node: fx.Node, names: Mapping[str, str]) -> str:
    """Return the name of a convolution, linear layer or BatchNorm `node`, also where its weight is computed."""
    weight = node.args[3] if node.target == _ATEN.batch_norm.default else node.args[1]
    plain = isinstance(weight, fx.Node) and weight.op == "get_attr"
    name = layer_name(node) if plain else _scope(node) or node.name
    return names.get(name, name)


class _Reader:
    def __init__(self, traced: fx.GraphModule, names: Mapping[str, str]) -> None:
        self._traced, self._names = traced, names
        self.live = {node for node in _dependents_of_input(traced.graph) if node.op == "call_function"}
        self._uncounted = {name: parameter.numel() for name, parameter in traced.named_parameters()}

    def operation(self, node: fx.Node) -> Operation:
        arguments = _arguments(node)
        kind, reach = _kind_and_reach(node, arguments)
        weight_shape: tuple[int, ...] = ()
        weight = None
        parameters = 0
        if is_weighted(node):
            given = arguments["weight"]
            weight_shape = tuple(int(size) for size in given.meta["val"].shape)
            if given.op == "get_attr":
                weight = attribute(self._traced, str(given.target)).detach().float().numpy()
        if kind != "other":
            parameters = sum(self._uncounted.pop(name, 0) for name in self._tensors_of(node))
        source = node.all_input_nodes[0]
        return Operation(
            name=self._name(node),
            kind=kind,
            inputs=tuple(taken.name for taken in node.all_input_nodes if self._is_seen(taken)),
            output=node.name,
            output_shape=shape_of(node),
            reach=reach,
            groups=int(arguments.get("groups", 1)) if is_weighted(node) else 1,
            weight=weight,
            weight_shape=weight_shape,
            parameters=parameters,
            input_positions=math.prod(shape_of(source)[-2:]) if kind == "transposed conv" else 1,
        )

    def _is_seen(self, node: fx.Node) -> bool:
        return node in self.live or node.op == "placeholder"

    def _tensors_of(self, node: fx.Node) -> Iterator[str]:
        """Yield the names of the tensors that `node`'s weights are, or are computed from."""
        seen: set[fx.Node] = set()
        waiting = list(node.all_input_nodes)
        while waiting:
            taken = waiting.pop()
            if taken in seen or self._is_seen(taken):
                continue
            seen.add(taken)
            if taken.op == "get_attr":
                yield str(taken.target)
            waiting += taken.all_input_nodes

    def _name(self, node: fx.Node) -> str:
        if is_weighted(node) or node.target == _ATEN.batch_norm.default:
            return shown_layer_name(node, self._names)
        scope = _scope(node)
        shown = self._names.get(scope, scope)
        stem = str(node.target).removeprefix("aten.").partition(".")[0].strip("_")
        # A pool that is a module of its own is a layer to people; other operators of a module are named with it.
        if shown and _is_pool_module(node):
            return shown
        return f"{shown}/{stem}" if shown else stem


def _kind_and_reach(node: fx.Node, arguments: Mapping[str, Any]) -> tuple[Kind, Reach]:
    target = node.target
    if target in _CONVOLUTIONS:
        kernel = tuple(arguments["weight"].meta["val"].shape[2:])
        return "conv", Window(_pair(kernel), _pair(arguments["stride"]), _pair(arguments["dilation"]))
    if target == _ATEN.conv_transpose2d.input:
        return "transposed conv", _transposed_window(arguments)
    if target == _ATEN.batch_norm.default:
        return "batchnorm", "position"
    if target == _ATEN.linear.default:
        return "linear", "position"
    if target in _WINDOW_POOLS:
        kernel = _pair(arguments["kernel_size"])
        dilation = _pair(arguments.get("dilation") or 1)
        return _WINDOW_POOLS[target], Window(kernel, _pair(arguments.get("stride") or kernel), dilation)
    if target in _ADAPTIVE_POOLS:
        after = _pair(arguments["output_size"])
        if after == (1, 1):
            return "global-pool", "everything"
        before = shape_of(node.all_input_nodes[0])[-2:]
        (height, down), (width, along) = (pooling_window(a, b) for a, b in zip(before, after, strict=True))
        return _ADAPTIVE_POOLS[target], Window((height, width), (down, along))
    if target in _REDUCTIONS:
        rank = len(shape_of(node.all_input_nodes[0])) + 1
        axes = {axis % rank for axis in arguments.get("dim") or range(rank)}
        return ("global-pool", "everything") if rank == 4 and axes == {2, 3} else ("other", "position")
    return "other", _reach_of_others(node, arguments)


def _reach_of_others(node: fx.Node, arguments: Mapping[str, Any]) -> Reach:
    target, shape = node.target, shape_of(node)
    if target == _ATEN.slice.Tensor:
        rank = len(shape) + 1
        return Stepped(int(arguments["dim"]) % rank - rank, int(arguments["step"]))
    if target == _ATEN.permute.default:
        rank = len(arguments["dims"])
        return Permuted(tuple(axis % rank for axis in arguments["dims"]))
    if target in (_ATEN.transpose.int, _ATEN.swapaxes.default):
        rank = len(shape) + 1
        order = list(range(rank))
        first, second = (axis % rank for axis in list(node.args[1:3]) if isinstance(axis, int))
        order[first], order[second] = second, first
        return Permuted(tuple(order))
    if target in _PADDING:
        return Window()
    if target in _MAP_STATISTICS:
        return "statistics"
    if target in _RESAMPLING_KERNELS:
        before = shape_of(node.all_input_nodes[0])[-2:]
        side = _RESAMPLING_KERNELS[target]
        down, along = (Fraction(a, b) for a, b in zip(before, shape[-2:], strict=True))
        return Window((side, side), (down, along))
    if target == _ATEN.pixel_unshuffle.default:
        side = int(arguments["downscale_factor"])
        return Window((side, side), (side, side))
    return "position"


def _transposed_window(arguments: Mapping[str, Any]) -> Window:
    """Return the window of a transposed convolution, whose output positions meet every stride-th kernel element."""
    kernel, stride = _pair(arguments["weight"].meta["val"].shape[2:]), _pair(arguments["stride"])
    dilation = _pair(arguments["dilation"])
    height, width = (-(-((k - 1) * d + 1) // s) for k, d, s in zip(kernel, dilation, stride, strict=True))
    return Window((height, width), (Fraction(1, stride[0]), Fraction(1, stride[1])))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return every argument of `node` by its name in the operator's schema, defaults too."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    given = dict(node.kwargs)
    arguments = {}
    for index, argument in enumerate(node.target._schema.arguments):
        value = node.args[index] if index < len(node.args) else given.get(argument.name, argument.default_value)
        arguments[argument.name] = value
    return arguments


def _dependents_of_input(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on the picture's pixels, not on weights or sizes alone."""
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        tensor = isinstance(node.meta.get("val"), Tensor | tuple | list) or node.target is operator.getitem
        if node.op == "placeholder" or (tensor and any(taken in depends for taken in node.all_input_nodes)):
            depends.add(node)
    return depends


def _scope(node: fx.Node) -> str:
    """Return the innermost module that `node` runs in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_pool_module(node: fx.Node) -> bool:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return bool(stack) and "pool" in str(stack[-1][1]).rpartition(".")[2].lower()


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    sizes = [int(size) for size in value]
    return (sizes[0], sizes[-1])
