"""The program of a recognised network: the operators that its forward calls, with its layers' constants."""

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fuseline.export.program import Call, Pictures, Program, Result, Weight


def program_of_module(module: nn.Module, layer_names: Mapping[str, str]) -> Program:
    """Return the program of `module`, one of our networks, traced symbolically; nothing is computed.

    Args:
        module: a network that takes pictures and returns logits.
        layer_names: its submodule names to the names that the program's weights get.
    """
    return _Reader(module, layer_names).program()


class _Reader:
    def __init__(self, module: nn.Module, layer_names: Mapping[str, str]) -> None:
        self._module = module
        self._names = layer_names
        self._calls: list[Call] = []
        self._values: dict[fx.Node, Pictures | Result] = {}

    def program(self) -> Program:
        for node in fx.symbolic_trace(self._module).graph.nodes:
            match node.op:
                case "placeholder":
                    self._values[node] = Pictures()
                case "call_module":
                    self._values[node] = self._of_layer(str(node.target), self._values[node.all_input_nodes[0]])
                case "call_function" | "call_method":
                    self._values[node] = self._of_function(node)
                case "output":
                    return Program(tuple(self._calls), self._values[node.all_input_nodes[0]])
        raise ValueError("the network gives nothing")

    def _of_layer(self, name: str, source: Pictures | Result) -> Pictures | Result:
        layer, new_name = self._module.get_submodule(name), self._names.get(name, name)

        def weight(leaf: str) -> Weight | None:
            tensor = getattr(layer, leaf)
            return None if tensor is None else Weight(f"{new_name}.{leaf}", tuple(tensor.shape))

        match layer:
            case nn.Identity():
                return source
            case nn.Conv2d():
                geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
                return self._called("conv2d", new_name, source, weight("weight"), weight("bias"), *geometry)
            case nn.Linear():
                return self._called("linear", new_name, source, weight("weight"), weight("bias"))
            case nn.BatchNorm2d():
                tensors = map(weight, ("weight", "bias", "running_mean", "running_var"))
                return self._called("batch_norm", new_name, source, *tensors, False, layer.momentum, layer.eps)
            case nn.ReLU():
                return self._called("relu", new_name, source)
            case nn.MaxPool2d():
                pool = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
                return self._called("max_pool2d", new_name, source, *pool)
            case nn.AvgPool2d():
                pool = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
                return self._called("avg_pool2d", new_name, source, *pool)
        raise TypeError(f"{type(layer).__name__} is in none of our networks")

    def _of_function(self, node: fx.Node) -> Pictures | Result:
        arguments: list[Any] = [self._values[value] if isinstance(value, fx.Node) else value for value in node.args]
        if node.target is operator.getitem:
            source: Pictures | Result = arguments[0]
            for dimension, part in enumerate(arguments[1]):
                source = self._called("slice", "", source, dimension, part.start, part.stop, part.step)
            return source
        name = node.target if isinstance(node.target, str) else str(node.target.__name__)
        keywords = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        return self._called(name, "", *arguments, **keywords)

    def _called(self, name: str, layer: str, *arguments: Any, **keywords: Any) -> Result:
        plain = (tuple(value) if isinstance(value, list) else value for value in arguments)
        self._calls.append(Call(name, tuple(plain), keywords, layer))
        return Result(len(self._calls) - 1)
