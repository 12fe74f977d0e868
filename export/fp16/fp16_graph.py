"""The FP16 graph: strongly typed, with the FP32 graph's input and float32 out; chosen nodes stay in FP32."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fuseline.export.fp16.float_nodes import FloatNodes, float_nodes, takes_fp16
from fuseline.export.graph.graph_input import takes_pixels
from fuseline.export.graph.onnx_graph import pixel_nodes, with_cast_first
from fuseline.serve.errors import VerificationError
from fuseline.serve.model_package import OUTPUT_NAME
from fuseline.serve.precision import FP16_LARGEST

PIXEL_SCALE_LOG2 = 6
"""Exponent of the factor that divides pixels and multiplies their weights. Pixels minus their mean reach 255, and the
weights that multiply them were divided by 255 * std, which brings them near FP16's subnormal range. A power of two
moves the scale from one to the other without any rounding."""
_FP32, _FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
_SUFFIX = {_FP32: "fp32", _FP16: "fp16"}


def fp16_from_fp32(model: onnx.ModelProto, fp32_nodes: Collection[str] = ()) -> onnx.ModelProto:
    """Return a copy of `model` (as `onnx_from_network` makes it) that computes in FP16 but for `fp32_nodes`.

    It casts its pixels first, for TensorRT. The mean is subtracted in FP32, where it is exact to 2**-16, before the
    cast to FP16; of normalised floats FP32 ones are cast, and FP16 ones are read as they are. The logits are cast back.
    A value that passes between FP16 and FP32 nodes has one Cast, however many nodes read it.
    `fuseline.export.fp16.mixed_precision` finds out which nodes must stay in FP32.

    Raises:
        VerificationError: a weight is beyond FP16's largest finite number, 65504, and its node is to be FP16.
    """
    fp16 = with_cast_first(model)
    pixels = pixel_nodes(model)
    writer = _Writer(fp16, pixels, frozenset(fp32_nodes))
    first = scaled_first_layer(model)
    if first is not None and first not in writer.fp32:
        writer.scale_pixels(first, pixels[-1].output[0])
    writer.write()
    return fp16


def scaled_first_layer(model: onnx.ModelProto) -> str | None:
    """Return the convolution whose weights hold 1 / (255 * std), and in FP16 get 2**PIXEL_SCALE_LOG2 too, if any."""
    pixels = pixel_nodes(model)
    # Where the graph itself scales the pixels, or its caller, they are in FP16's best range, and no weight carries the
    # scale.
    if not takes_pixels(model) or len(pixels) > 3:
        return None
    return next(str(node.name) for node in model.graph.node if node.input[:1] == [pixels[-1].output[0]])


def with_unweighted_behind(nodes: FloatNodes, fp32_nodes: Collection[str]) -> frozenset[str]:
    """Return `fp32_nodes`, and the nodes without weights that read nothing but their FP32 results.

    In FP16 these would take at least as many casts, and one more rounding. So an FP32 region has no casts inside, and
    ends at the next convolution or at a sum with an FP16 value.
    """
    fp32 = set(fp32_nodes)
    in_fp32: set[str] = set()
    for node in nodes.nodes:
        follows = not node.weighted and all(name in in_fp32 for name in node.activations)
        if follows or node.name in fp32:
            fp32.add(node.name)
            in_fp32.update(node.outputs)
    return frozenset(fp32)


def rounded_to_fp16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return `values` in FP16; infinite where they are beyond its range."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


class _Writer:
    """Types the nodes of one graph, in place."""

    def __init__(self, model: onnx.ModelProto, pixels: Sequence[onnx.NodeProto], fp32_nodes: frozenset[str]) -> None:
        """Begin with `pixels`, the model's `pixel_nodes`, which stay in FP32 as `fp32_nodes` do."""
        self._graph = model.graph
        pixel_names = {node.name for node in pixels}
        self._nodes = float_nodes(model, pixel_names)
        cannot = {node.name for node in self._nodes.nodes if not node.can_be_fp16}
        self.fp32 = fp32_nodes | cannot
        self._pixel_names = pixel_names
        (taken,) = model.graph.input
        self._stored: dict[str, int] = {taken.name: taken.type.tensor_type.elem_type}
        """Type of each float activation, and of the graph's input."""
        self._casts: dict[tuple[str, int], str] = {}
        if self._stored[taken.name] == _FP16:
            # What is FP16 already needs no cast there and back.
            self._casts = {(node.output[0], _FP16): taken.name for node in pixels}
        self._fp16_reads: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        """Initialiser -> the nodes that read it in FP16, with the number of the input."""
        self._fp32_reads: set[str] = set()
        """Initialisers that are read in FP32."""
        self._producers: dict[str, str] = {taken.name: taken.name}
        self._written: list[onnx.NodeProto] = []
        self._scaled: tuple[str, str] | None = None
        """The pixels and the weight between which the power of two is moved, if it is."""

    def scale_pixels(self, first: str, pixels: str) -> None:
        self._scaled = (pixels, self._nodes.by_name[first].proto.input[1])

    def write(self) -> None:
        by_name = self._nodes.by_name
        for node in [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._graph.node]:
            own = by_name.get(node.name)
            single = own is None and sum(name in self._nodes.floats for name in node.input) < 2
            if node.name in self._pixel_names or single:
                # The node makes floats of something else, or reads one float of any type.
                kind = _FP32
            else:
                kind = _FP32 if node.name in self.fp32 else _FP16
                for index, name in enumerate(node.input):
                    node.input[index] = self._read(node, index, name, kind)
            for name in node.output:
                self._producers[name] = node.name
                if name in self._nodes.floats:
                    self._stored[name] = kind
            self._written.append(node)
        self._drop_unread_casts()
        self._cast_logits()
        self._type_initialisers()
        del self._graph.node[:]
        self._graph.node.extend(self._written)

    def _read(self, node: onnx.NodeProto, index: int, name: str, kind: int) -> str:
        """Return the name by which `node` reads `name`, its input number `index`, in type `kind`."""
        if name not in self._nodes.floats:
            return name
        if kind == _FP16 and not takes_fp16(node, index, self._nodes.opset):
            kind = _FP32
        if name in self._nodes.initialisers:
            if kind == _FP16:
                self._fp16_reads.setdefault(name, []).append((node, index))
            else:
                self._fp32_reads.add(name)
            return name
        return name if self._stored[name] == kind else self._cast(name, kind)

    def _cast(self, name: str, kind: int) -> str:
        if (name, kind) in self._casts:
            return self._casts[name, kind]
        producer, source, typed = self._producers[name], name, f"{name}_{_SUFFIX[kind]}"
        if producer in self._pixel_names:
            producer, typed = "pixels", "pixels_fp16"
            if self._scaled is not None:
                scale, source = "pixel_scale_fp16", "pixels_scaled"
                self._graph.initializer.append(numpy_helper.from_array(np.float32(2**-PIXEL_SCALE_LOG2), scale))
                self._written.append(helper.make_node("Mul", [name, scale], [source], name="pixels/scale"))
        number = sum(1 for (other, _) in self._casts if self._producers[other] == self._producers[name])
        suffix = f"_{number + 1}" if number else ""
        self._written.append(
            helper.make_node("Cast", [source], [typed], name=f"{producer}/to_{_SUFFIX[kind]}{suffix}", to=kind)
        )
        self._casts[name, kind] = typed
        return typed

    def _drop_unread_casts(self) -> None:
        """Drop the Cast of an FP16 input to FP32 if no node reads its result."""
        read = {name for node in self._written for name in node.input} | {OUTPUT_NAME}
        self._written = [
            node for node in self._written if node.name not in self._pixel_names or read.intersection(node.output)
        ]

    def _cast_logits(self) -> None:
        if self._stored[OUTPUT_NAME] == _FP32:
            return
        typed = f"{OUTPUT_NAME}_fp16"
        for node in self._written:
            node.input[:] = [typed if name == OUTPUT_NAME else name for name in node.input]
            node.output[:] = [typed if name == OUTPUT_NAME else name for name in node.output]
        self._written.append(helper.make_node("Cast", [typed], [OUTPUT_NAME], name=f"{OUTPUT_NAME}/to_fp32", to=_FP32))

    def _type_initialisers(self) -> None:
        for tensor in list(self._graph.initializer):
            if tensor.name not in self._fp16_reads:
                continue
            values = self._nodes.array(tensor.name)
            if self._scaled is not None and tensor.name == self._scaled[1]:
                values = values * np.float32(2**PIXEL_SCALE_LOG2)
            if (largest := float(np.abs(values).max(initial=0.0))) > FP16_LARGEST:
                raise VerificationError(
                    f"weight {tensor.name} reaches {largest:.6g}, beyond FP16's largest number {FP16_LARGEST:.0f}; its "
                    "layer must stay in FP32"
                )
            if tensor.name not in self._fp32_reads:
                tensor.CopyFrom(numpy_helper.from_array(rounded_to_fp16(values), tensor.name))
                continue
            typed = f"{tensor.name}_fp16"
            self._graph.initializer.append(numpy_helper.from_array(rounded_to_fp16(values), typed))
            for node, index in self._fp16_reads[tensor.name]:
                node.input[index] = typed
