"""Turns a package's ONNX graph into the form that TensorRT reads."""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from fuseline.serve.model_package import INPUT_NAME

# The few fields of onnx.proto that are read or changed: message -> field -> (number, type or message, repeated).
_SCHEMA: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ModelProto": {"graph": (7, "GraphProto", False)},
    "GraphProto": {"node": (1, "NodeProto", True), "value_info": (13, "ValueInfoProto", True)},
    "NodeProto": {
        "input": (1, "", True),
        "output": (2, "", True),
        "name": (3, "", False),
        "op_type": (4, "", False),
    },
    "ValueInfoProto": {"name": (1, "", False)},
}


def graph_for_tensorrt(onnx: bytes, input_name: str = INPUT_NAME) -> bytes:
    """Return `onnx` with its pixels cast to floats before they are transposed, if it transposes them as bytes.

    The graph computes the same: CPUs transpose bytes faster than floats, while TensorRT takes uint8 into a Cast and
    nothing else (its API reference, `DataType`). Everything else in the file is kept byte for byte, weights included.
    A graph of floats, which TensorRT takes directly, comes back as it is, and so do bytes that are no such graph; the
    parser's message says better what is wrong with them.
    """
    try:
        model = _model_class().FromString(onnx)
    except DecodeError:
        return onnx
    nodes = list(model.graph.node)
    readers = [index for index, node in enumerate(nodes) if input_name in node.input]
    if [nodes[index].op_type for index in readers] != ["Transpose"]:
        return onnx
    transpose = nodes[readers[0]]
    planes = transpose.output[0]
    casts = [index for index, node in enumerate(nodes) if planes in node.input]
    if [nodes[index].op_type for index in casts] != ["Cast"]:
        return onnx
    cast = nodes[casts[0]]
    floats = f"{input_name}.float"
    transpose.output[0] = cast.output[0]
    cast.input[0], cast.output[0], transpose.input[0] = input_name, floats, floats
    # Nodes are in the order of execution.
    nodes.insert(readers[0], nodes.pop(casts[0]))
    _replace(model.graph.node, nodes)
    # The exporter's type of the tensor in between holds no longer; the parser infers it.
    _replace(model.graph.value_info, [value for value in model.graph.value_info if value.name != planes])
    data: bytes = model.SerializeToString()
    return data


def _replace(field: Any, messages: list[Any]) -> None:
    """Let `field` hold `messages`, which were taken from it, in their order and nothing else."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


@cache
def _model_class() -> Any:
    """Return a class of ModelProto that knows the fields above and passes all others through.

    It is in a pool of its own, so that the onnx package may be imported into the same process.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fuseline_onnx.proto", package="fuseline_onnx", syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if kind else kinds.TYPE_STRING,
                type_name=f".fuseline_onnx.{kind}" if kind else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fuseline_onnx.ModelProto"))
