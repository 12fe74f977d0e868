"""A folded network as an ONNX graph: `image` uint8 NHWC in, `logits` float32 out, the batch dynamic."""

import ast
import json
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.fold import FoldedNetwork
from serve.errors import ArchitectureError
from serve.model_package import INPUT_NAME, OUTPUT_NAME, InputSpec

# TensorRT 10 and 11, ONNX Runtime and OpenVINO all read it; nothing here needs a newer one.
OPSET = 20
_BODY = "body"
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"


class _PixelNetwork(nn.Module):
    """The served function: the mean is subtracted from raw pixels, everything else is in the folded body."""

    pixel_mean: Tensor

    def __init__(self, network: FoldedNetwork) -> None:
        super().__init__()
        mean = torch.tensor(network.pixel_mean, dtype=torch.float64).float()
        self.register_buffer("pixel_mean", mean.reshape(-1, 1, 1))
        self.body = network.module

    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, classes), float32, of `image` (n, h, w, c), uint8."""
        # Transposed while still bytes, a quarter of the memory traffic: 2 to 10 % of ResNet-18's time on a CPU.
        return self.body(image.permute(0, 3, 1, 2).to(torch.float32) - self.pixel_mean)  # type: ignore[no-any-return]


def onnx_from_network(network: FoldedNetwork, input_spec: InputSpec, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """Export `network` to a checked ONNX model whose nodes bear the names of the network's layers.

    Args:
        metadata: goes into the model's metadata properties, each value as JSON, under `fuseline.<key>`.

    Raises:
        ArchitectureError: the exported graph still holds a BatchNormalization, or not the promised input and output.
    """
    module = _PixelNetwork(network).eval()
    # Two rows: torch.export specialises a dimension of size 1.
    example = torch.zeros((2, *input_spec.row_shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch's exporter warns about its own internals; what matters here is checked below.
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=65536)}},
                verbose=False,
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    model = program.model_proto
    _name_after_layers(model)
    model.producer_name, model.producer_version = "fuseline", version("fuseline")
    onnx.helper.set_model_props(model, {f"fuseline.{key}": json.dumps(value) for key, value in metadata.items()})
    check_graph(model, input_spec)
    return model


def with_cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` (as `onnx_from_network` makes it) that casts its pixels before it transposes them.

    The same function, for TensorRT, which takes uint8 into a Cast and nothing else (its API reference, `DataType`).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    transpose, cast, subtraction = _pixel_nodes(copy.graph)
    network_input = subtraction.output[0]
    cast.input[0], cast.output[0] = INPUT_NAME, "pixels"
    subtraction.input[0], subtraction.output[0] = "pixels", "pixels_centred"
    transpose.input[0], transpose.output[0] = "pixels_centred", network_input
    mean = next(tensor for tensor in copy.graph.initializer if tensor.name == subtraction.input[1])
    mean.dims[:] = [mean.dims[0]]
    nodes = [cast, subtraction, transpose, *list(copy.graph.node)[3:]]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(ordered)
    # Shapes and types between them changed; every reader infers them anew.
    del copy.graph.value_info[:]
    return copy


def _pixel_nodes(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]:
    transpose, cast, subtraction = list(graph.node)[:3]
    kinds = [node.op_type for node in (transpose, cast, subtraction)]
    assert kinds == ["Transpose", "Cast", "Sub"], f"the pixels meet {', '.join(kinds)}; Transpose, Cast, Sub expected"
    return transpose, cast, subtraction


def check_graph(model: onnx.ModelProto, input_spec: InputSpec) -> None:
    """Raise `ArchitectureError` unless `model` is valid ONNX, free of BatchNormalization and as a package promises."""
    onnx.checker.check_model(model, full_check=True)
    left = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ArchitectureError(f"the ONNX graph still has {len(left)} BatchNormalization nodes: {', '.join(left)}")
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    if [value.name for value in inputs] != [INPUT_NAME] or [value.name for value in outputs] != [OUTPUT_NAME]:
        raise ArchitectureError(f"the ONNX graph must take `{INPUT_NAME}` and give `{OUTPUT_NAME}` and nothing else")
    taken, given = inputs[0].type.tensor_type, outputs[0].type.tensor_type
    sizes = tuple(dim.dim_value for dim in taken.shape.dim[1:])
    if taken.elem_type != onnx.TensorProto.UINT8 or sizes != input_spec.row_shape:
        raise ArchitectureError(
            f"`{INPUT_NAME}` is {sizes} of type {taken.elem_type}, not {input_spec.row_shape} uint8"
        )
    if given.elem_type != onnx.TensorProto.FLOAT or not taken.shape.dim[0].dim_param:
        raise ArchitectureError(f"`{OUTPUT_NAME}` must be float32 and the batch dynamic")


def _name_after_layers(model: onnx.ModelProto) -> None:
    """Name nodes and weights as the network's layers, and drop the exporter's traces: they name files."""
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.name.startswith(f"{_BODY}."):
            renamed[tensor.name] = tensor.name.removeprefix(f"{_BODY}.")
            tensor.name = renamed[tensor.name]
        del tensor.metadata_props[:]
    taken: set[str] = set()
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        layer = _layer_of(node)
        # Convolutions and the classifier are layers of their own; what else a module does is told apart by operator.
        stem = layer if node.op_type in ("Conv", "Gemm", "MatMul") else f"{layer}/{node.op_type}".lstrip("/")
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name)
        node.name = name
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = renamed.get(value.name, value.name)
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.name = "fuseline"
    model.graph.doc_string = model.doc_string = ""


def _layer_of(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _NAME_SCOPES:
            scopes = ast.literal_eval(entry.value)
            modules = [scope for scope in scopes[:-1] if scope.startswith(f"{_BODY}.")]
            return modules[-1].removeprefix(f"{_BODY}.") if modules else ""
    return ""
