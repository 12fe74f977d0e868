"""Quantisation by ONNX Runtime's static quantiser, with tensors and scales chosen here.

`QDQQuantizer` is the part of `onnxruntime.quantization.quantize_static` that writes the graph. The other part finds
ranges; here `fuseline.export.int8.calibrators` does that.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference

from fuseline.export.int8.calibrators import Range
from fuseline.export.int8.operators import QUANTISED_OPERATORS, VALUE_KEEPING, quantised_nodes

_UNSIGNED_MAX, _SIGNED_MAX = 255, 127
# The scale of an activation that is always 0, for which any scale will do.
_SCALE_OF_ZEROS = 1.0

Quantiser = Callable[[onnx.ModelProto, Mapping[str, Range], Collection[str]], onnx.ModelProto]
"""A function from an FP32 graph, its activations' ranges and names of layers that stay FP32 to the quantised graph."""


def quantised_for_cpus(
    model: onnx.ModelProto, ranges: Mapping[str, Range], keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of `model` with QDQ pairs for CPUs: uint8 activations, int8 weights with a scale for each channel.

    A channel is an output channel. The 256 levels span an activation's own range, which starts at 0 behind a ReLU. This
    is the form that both ONNX Runtime and OpenVINO fuse entirely on x86: both inputs of a residual addition are
    quantised, pooling keeps its input's scale, biases are int32, the logits float32. With int8 activations ONNX Runtime
    leaves half of the convolutions in FP32, and OpenVINO's results overflow on CPUs without VNNI.

    Args:
        ranges: the range of every tensor in `fuseline.export.int8.operators.quantised_tensors`.
        keep_fp32: names of the layers that stay FP32.
    """
    return _quantised(model, ranges, keep_fp32, signed=False)


def quantised_for_tensorrt(
    model: onnx.ModelProto, ranges: Mapping[str, Range], keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of `model` with QDQ pairs for TensorRT: int8 activations whose zero is 0, float biases.

    All else is as for CPUs. TensorRT refuses other zeros, takes uint8 for int8 silently, and dequantises no int32. Of a
    residual addition only the shortcut is quantised; the sum is then computed in the convolution before it rounds its
    result (TensorRT's documentation, "Explicit Quantization", Q/DQ placement).
    """
    signed = _quantised(model, ranges, keep_fp32, signed=True)
    _unround_residuals(signed)
    _finish(signed, model)
    return signed


def _quantised(
    model: onnx.ModelProto, ranges: Mapping[str, Range], keep_fp32: Collection[str], *, signed: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

    inferred = shape_inference.infer_shapes(model)
    # This mark keeps the quantiser from inferring shapes itself, for which it would write the model to disk.
    onnx.helper.set_model_props(inferred, {"onnx.infer": "onnxruntime.quant"})
    scales = {name: _scale_and_zero(range_, signed=signed) for name, range_ in _shared(model, ranges).items()}
    limits = {
        name: TensorData(lowest=np.float32(range_.low), highest=np.float32(range_.high))
        for name, range_ in ranges.items()
    }
    wanted = [node.name for node in quantised_nodes(model, keep_fp32)]
    with _silence():
        quantiser = QDQQuantizer(
            inferred,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            # An empty list would mean all nodes.
            nodes_to_quantize=wanted or [""],
            nodes_to_exclude=[],
            op_types_to_quantize=list(QUANTISED_OPERATORS),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": signed,
                "TensorQuantOverrides": scales,
                # Only inputs are quantised, so that nothing is rounded between a convolution and its ReLU or addition.
                "OpTypesToExcludeOutputQuantization": [kind for kind in QUANTISED_OPERATORS if kind != "MaxPool"],
                "ForceQuantizeNoInputCheck": True,
                "QuantizeBias": not signed,
            },
        )
        quantiser.quantize_model()
    written: onnx.ModelProto = quantiser.model.model
    _finish(written, model)
    return written


def _shared(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return `ranges`; a tensor with another's values gets that one's range, so that rounding it changes nothing."""
    producers = {output: node for node in model.graph.node for output in node.output}
    shared = {}
    for name in ranges:
        source = candidate = name
        while candidate in producers and producers[candidate].op_type in VALUE_KEEPING:
            candidate = producers[candidate].input[0]
            source = candidate if candidate in ranges else source
        shared[name] = ranges[source]
    return shared


def _scale_and_zero(range_: Range, *, signed: bool) -> list[dict[str, Any]]:
    """Return scale and zero point of a range, as the quantiser takes them."""
    if signed:
        scale = _usable(max(-range_.low, range_.high) / _SIGNED_MAX)
        return [{"scale": scale, "zero_point": np.array(0, np.int8)}]
    scale = _usable((range_.high - range_.low) / _UNSIGNED_MAX)
    zero = min(round(-range_.low / float(scale)), _UNSIGNED_MAX)
    return [{"scale": scale, "zero_point": np.array(zero, np.uint8)}]


def _usable(scale: float) -> NDArray[np.float32]:
    """Return `scale`, but never 0, as for an activation that is always 0, nor one that machines may flush to 0."""
    return np.array(max(scale, float(np.finfo(np.float32).tiny)) if scale else _SCALE_OF_ZEROS, np.float32)


def _unround_residuals(model: onnx.ModelProto) -> None:
    """Let every residual addition read one of its branches unrounded, as its convolution gives it."""
    producers = {output: node for node in model.graph.node for output in node.output}
    for addition in [node for node in model.graph.node if node.op_type == "Add"]:
        for index, name in enumerate(addition.input):
            pair = _pair_before(name, producers)
            if pair is not None and pair[0] in producers and producers[pair[0]].op_type == "Conv":
                addition.input[index] = pair[0]
                break


def _pair_before(name: str, producers: Mapping[str, onnx.NodeProto]) -> tuple[str, onnx.NodeProto] | None:
    """Return the activation that `name` dequantises, and its QuantizeLinear; None if it dequantises none."""
    dequantise = producers.get(name)
    if dequantise is None or dequantise.op_type != "DequantizeLinear":
        return None
    quantise = producers.get(dequantise.input[0])
    return None if quantise is None else (quantise.input[0], quantise)


def _finish(written: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Sort nodes in running order, name them after layers, remove what nothing reads, and copy `model`'s metadata."""
    graph = written.graph
    nodes = _in_running_order(written, [node.name for node in model.graph.node])
    layer_of_tensor = {output: node.name for node in model.graph.node for output in node.output}
    layer_of_tensor |= {taken.name: taken.name for taken in model.graph.input}
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            node.name = f"{layer_of_tensor[node.input[0]]}/QuantizeLinear"
    quantise_of = {node.output[0]: node.name for node in nodes if node.op_type == "QuantizeLinear"}
    for node in nodes:
        if node.op_type == "DequantizeLinear":
            pair = quantise_of.get(node.input[0])
            weight = node.output[0].removesuffix("_DequantizeLinear_Output")
            node.name = pair.replace("QuantizeLinear", "DequantizeLinear") if pair else f"{weight}/DequantizeLinear"
    _replace(graph.node, nodes)
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    _replace(graph.initializer, sorted((t for t in graph.initializer if t.name in read), key=lambda t: t.name))
    _replace(graph.value_info, [])
    written.producer_name, written.producer_version = model.producer_name, model.producer_version
    _replace(written.metadata_props, list(model.metadata_props))
    onnx.checker.check_model(written, full_check=True)


def _in_running_order(model: onnx.ModelProto, names: Iterable[str]) -> list[onnx.NodeProto]:
    """Return `model`'s nodes called `names` in that order, each behind the nodes that it needs, and no others."""
    by_name = {node.name: node for node in model.graph.node}
    producers = {output: node for node in model.graph.node for output in node.output}
    placed: dict[str, onnx.NodeProto] = {}

    def place(node: onnx.NodeProto) -> None:
        for name in node.input:
            needed = producers.get(name)
            if needed is not None and needed.output[0] not in placed:
                place(needed)
        placed[node.output[0]] = node

    for name in names:
        if by_name[name].output[0] not in placed:
            place(by_name[name])
    return list(placed.values())


def _replace(field: Any, messages: Iterable[Any]) -> None:
    """Replace the content of `field` by `messages`, in their order."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantiser's advice, which goes to the root logger, from the user; errors pass."""
    root = logging.getLogger()
    level = root.level
    # Without a handler, logging.warning() would configure the root for good.
    handler = logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
