"""The names by which clients know a graph's input and output."""

from collections.abc import Mapping

import onnx

from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME


def with_tensor_names(model: onnx.ModelProto, input_name: str, output_name: str) -> onnx.ModelProto:
    """Return a graph like `model`, whose input and output are `INPUT_NAME` and `OUTPUT_NAME`, with these names instead.

    `model` isn't changed, and is returned itself if they are its names already. Every step of an export works on the
    customary names, and a graph gets its own when it is written. Another tensor that has one of the names, a weight
    included, steps aside: it gets a number behind its name. Names of nodes stay.
    """
    if (input_name, output_name) == (INPUT_NAME, OUTPUT_NAME):
        return model
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    new_names = {INPUT_NAME: input_name, OUTPUT_NAME: output_name}
    for wanted in (input_name, output_name):
        if wanted in taken and wanted not in new_names:
            new_names[wanted] = _free_name(wanted, taken | set(new_names.values()))
    _rename(graph, new_names)
    return renamed


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _rename(graph: onnx.GraphProto, new_names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = new_names.get(named.name, named.name)
