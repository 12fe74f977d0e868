"""Measurements inside a graph, by added nodes that return a few numbers about each value."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fuseline.export.graph.runtimes import run_batches
from fuseline.serve.model_package import OUTPUT_NAME

_START = ""
"""The place before all nodes, none of which has this name."""
Combine = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


class GraphProbes:
    """A copy of a graph that nodes are added to, and the measurements to take when it runs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._made_by = {output: node.name for node in model.graph.node for output in node.output}
        self._made_by |= {taken.name: _START for taken in model.graph.input}
        self._behind: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        """Name of a node of the graph, or `_START` -> the nodes that were added behind it."""
        self._known: set[str] = set()
        self._measured: dict[str, Combine] = {}

    def add(self, node: onnx.NodeProto, behind: str) -> None:
        """Add `node`, whose output is new, behind the graph's node called `behind`."""
        self._behind[behind].append(node)
        self._known.update(node.output)
        self._made_by.update(dict.fromkeys(node.output, behind))

    def apply(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add an operator behind the node that makes the first of `inputs`, unless `output` exists; return `output`.

        What reads the graph's input comes before all nodes.
        """
        if output not in self._known:
            self.add(helper.make_node(operator, inputs, [output], name=output, **attributes), self._made_by[inputs[0]])
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add an initialiser unless `name` exists; return `name`."""
        if name not in self._known:
            self._known.add(name)
            self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def rounded(self, value: str) -> str:
        """Add nodes that round the float32 activation `value` to FP16; return the result, which is float32."""
        fp16 = self.apply("Cast", [value], f"fp16:{value}", to=TensorProto.FLOAT16)
        return self.apply("Cast", [fp16], f"rounded:{value}", to=TensorProto.FLOAT)

    def reduce(self, operator: str, value: str, name: str, combine: Combine, axes: tuple[int, ...] = ()) -> None:
        """Measure `value`, reduced over `axes`, by default all, under `name`; `combine` merges those of two batches."""
        inputs = [value]
        if axes:
            inputs.append(self.constant(f"axes:{axes}", np.array(axes, np.int64)))
        self._measured[self.apply(operator, inputs, name, keepdims=0)] = combine

    def count(self, value: str, name: str) -> None:
        """Measure the number of elements of `value` under `name`."""
        self._measured[self.apply("Size", [value], name)] = np.add

    def run(
        self, pixels: NDArray[np.uint8], on_progress: Callable[[float], None]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float64]]]:
        """Return the logits for `pixels` (n, h, w, c), and the measurements by name. Raise as `run_batches` does."""
        model, names = self._probed(), list(self._measured)
        logits, totals = [], dict[str, NDArray[np.float64]]()
        for values in run_batches(model, pixels, (OUTPUT_NAME, *names), on_progress):
            logits.append(values[0])
            for name, value in zip(names, values[1:], strict=True):
                wide = value.astype(np.float64)
                totals[name] = self._measured[name](totals[name], wide) if name in totals else wide
        return np.concatenate(logits), totals

    def _probed(self) -> onnx.ModelProto:
        graph = self._model.graph
        # Added nodes come right behind what they read, so that the runtime can free it.
        nodes = list(self._behind[_START])
        nodes += [added for node in graph.node for added in (node, *self._behind[node.name])]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._measured)
        return self._model
