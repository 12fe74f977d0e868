"""A folded network as an ONNX graph: `image` in, as the `InputSpec` says, `logits` float32 out, the batch dynamic."""

import ast
from collections.abc import Container, Mapping
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import onnx
import torch
from torch import fx

from fuseline.export.folding.exporter_errors import explained, reason_of
from fuseline.export.folding.fold import FoldedNetwork, attribute
from fuseline.export.folding.trace import MAX_BATCH_ROWS, quiet_exporter
from fuseline.export.graph.graph_input import set_metadata, takes_pixels
from fuseline.serve.errors import ArchitectureError
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME, InputSpec

# TensorRT 10 and 11, ONNX Runtime and OpenVINO all read this opset; nothing here needs a newer one.
OPSET = 20
_ATEN = torch.ops.aten
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Names that no user's module has.
_PIXEL_MEAN, _PIXEL_SCALE = "fuseline_pixel_mean", "fuseline_pixel_scale"
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"


def onnx_from_network(network: FoldedNetwork, input_spec: InputSpec, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """Export `network` to a checked ONNX model whose nodes bear the names of the network's layers.

    Its input and output have the customary names, whatever `input_spec` calls them; see
    `fuseline.export.graph.tensor_names`.

    Args:
        network: takes pixels if `input_spec` is of pixels, else normalised images.
        metadata: values for the model's metadata properties; see `set_metadata`.

    Raises:
        ArchitectureError: the network has an operator that ONNX hasn't, or the exported graph still has a
            BatchNormalization, or doesn't have the promised input and output.
    """
    module = _served_network(network, input_spec)
    # Two rows: torch.export specialises a dimension of size 1.
    example = torch.zeros((2, *input_spec.row_shape), dtype=getattr(torch, input_spec.dtype))
    with quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=MAX_BATCH_ROWS)}},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ArchitectureError(
                f"torch can't write the network as ONNX: {explained(error, network.module.graph)}"
            ) from error
    assert program is not None
    model = program.model_proto
    _name_after_layers(model)
    model.producer_name, model.producer_version = "fuseline", version("fuseline")
    set_metadata(model, metadata)
    check_graph(model, input_spec)
    return model


def _served_network(network: FoldedNetwork, input_spec: InputSpec) -> fx.GraphModule:
    """Return the served function: logits (n, classes), float32, of rows as `input_spec` says.

    It is one flat graph without a wrapper, as the exporter keeps the names of layers only then. `network` isn't
    changed.
    """
    graph = fx.Graph()
    image = graph.placeholder(INPUT_NAME)
    constants: dict[str, tuple[float, ...]] = {}
    if network.pixel_mean is not None:
        images, constants = _normalising_nodes(graph, image, network.pixel_mean, network.pixel_scale)
    elif input_spec.dtype == "float32":
        images = image
    else:
        images = graph.call_function(_ATEN.to.dtype, (image, torch.float32))
    (body_input,) = network.module.graph.find_nodes(op="placeholder")
    graph.output(graph.graph_copy(network.module.graph, {body_input: images}))
    # The tensors of its nodes, not its state_dict, as buffers that are not saved are part of the function too.
    targets = [str(node.target) for node in network.module.graph.find_nodes(op="get_attr")]
    tensors = {target: attribute(network.module, target) for target in targets}
    for name, values in constants.items():
        tensors[name] = torch.tensor(values, dtype=torch.float64).float().reshape(-1, 1, 1)
    return fx.GraphModule(tensors, graph).eval()


def _normalising_nodes(
    graph: fx.Graph, image: fx.Node, mean: tuple[float, ...], scale: tuple[float, ...] | None
) -> tuple[fx.Node, dict[str, tuple[float, ...]]]:
    """Add to `graph` what centres pixels (n, h, w, c), uint8; return float NCHW images, and the constants by name."""
    # Transposed while still bytes, a quarter of the memory traffic: 2 to 10 % of ResNet-18's time on a CPU.
    planes = graph.call_function(_ATEN.permute.default, (image, [0, 3, 1, 2]))
    # Contiguous, as when the network was traced, so that its views stay valid. It is free, as ONNX has no strides.
    planes = graph.call_function(_ATEN.contiguous.default, (planes,))
    pixels = graph.call_function(_ATEN.to.dtype, (planes, torch.float32))
    pixels = graph.call_function(_ATEN.sub.Tensor, (pixels, graph.get_attr(_PIXEL_MEAN)))
    constants = {_PIXEL_MEAN: mean}
    if scale is not None:
        pixels = graph.call_function(_ATEN.mul.Tensor, (pixels, graph.get_attr(_PIXEL_SCALE)))
        constants[_PIXEL_SCALE] = scale
    return pixels, constants


def with_cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` (as `onnx_from_network` makes it) that casts its pixels before it transposes them.

    It computes the same, for TensorRT, which takes uint8 only into a Cast (its API reference, `DataType`). A model of
    floats is copied as it is.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Shapes and types between nodes change here and in FP16; every reader infers them anew.
    del copy.graph.value_info[:]
    if not takes_pixels(model):
        return copy
    transpose, cast, *arithmetic = pixel_nodes(copy)
    network_input = arithmetic[-1].output[0]
    cast.input[0] = INPUT_NAME
    for before, after in pairwise((cast, *arithmetic, transpose)):
        after.input[0] = before.output[0] = f"pixels_{before.op_type.lower()}"
    transpose.output[0] = network_input
    constants = {node.input[1] for node in arithmetic}
    for tensor in copy.graph.initializer:
        if tensor.name in constants:
            tensor.dims[:] = [tensor.dims[0]]
    names = {node.name for node in (transpose, cast, *arithmetic)}
    ordered = [cast, *arithmetic, transpose, *(node for node in copy.graph.node if node.name not in names)]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def pixel_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that turn the graph's input into the network's: Transpose, Cast, Sub and, if there is one, Mul.

    Where the graph takes normalised floats, it is the Cast of FP16 ones to FP32; for FP32 ones there is none.
    """
    nodes: list[onnx.NodeProto] = []
    value = INPUT_NAME
    if not takes_pixels(model):
        if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return []
        nodes = [node for node in model.graph.node if value in node.input]
        assert [node.op_type for node in nodes] == ["Cast"], f"{value} meets {len(nodes)} nodes; one Cast was written"
        return nodes
    for kind, constant in (("Transpose", None), ("Cast", None), ("Sub", _PIXEL_MEAN), ("Mul", _PIXEL_SCALE)):
        found = [
            node
            for node in model.graph.node
            if node.op_type == kind and node.input[0] == value and (constant is None or node.input[1] == constant)
        ]
        if not found and constant == _PIXEL_SCALE:
            break
        assert len(found) == 1, f"{value} meets {len(found)} {kind} nodes; one was written"
        nodes.append(found[0])
        value = found[0].output[0]
    return nodes


def check_graph(model: onnx.ModelProto, input_spec: InputSpec) -> None:
    """Raise `ArchitectureError` unless `model` is valid ONNX, free of BatchNormalization and as a package promises."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArchitectureError(f"the network's ONNX graph is not valid: {reason_of(error)}") from error
    left = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ArchitectureError(f"the ONNX graph still has {len(left)} BatchNormalization nodes: {', '.join(left)}")
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    if [value.name for value in inputs] != [INPUT_NAME] or [value.name for value in outputs] != [OUTPUT_NAME]:
        raise ArchitectureError(f"the ONNX graph must take `{INPUT_NAME}` and give `{OUTPUT_NAME}` and nothing else")
    taken, given = inputs[0].type.tensor_type, outputs[0].type.tensor_type
    sizes = tuple(dim.dim_value for dim in taken.shape.dim[1:])
    wanted = onnx.TensorProto.DataType.Value(input_spec.format.onnx_type)
    if taken.elem_type != wanted or sizes != input_spec.row_shape:
        raise ArchitectureError(
            f"`{INPUT_NAME}` is {sizes} of type {taken.elem_type}, not {input_spec.row_shape} {input_spec.dtype}"
        )
    if given.elem_type != onnx.TensorProto.FLOAT or not taken.shape.dim[0].dim_param:
        raise ArchitectureError(f"`{OUTPUT_NAME}` must be float32 and the batch dynamic")


def _name_after_layers(model: onnx.ModelProto) -> None:
    """Name nodes and weights after the network's layers, and remove the exporter's traces, which name files."""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    weights = {tensor.name for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        layer = _layer_of(node, weights)
        # Convolutions and the classifier are layers of their own; other nodes of a module are named with the operator.
        stem = layer if layer and node.op_type in _WEIGHTED else f"{layer}/{node.op_type}".lstrip("/")
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name)
        node.name = name
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.name = "fuseline"
    model.graph.doc_string = model.doc_string = ""


def _layer_of(node: onnx.NodeProto, weights: Container[str]) -> str:
    """Return the layer whose weight `node` uses, or, for an operator without weights, the module that calls it."""
    if node.op_type in _WEIGHTED and node.input[1] in weights:
        return str(node.input[1]).removesuffix(".weight")
    for entry in node.metadata_props:
        if entry.key == _NAME_SCOPES:
            modules = [scope for scope in ast.literal_eval(entry.value)[:-1] if scope]
            return str(modules[-1]) if modules else ""
    return ""
