"""Layers that no exporter of ours writes, as TensorRT for RTX parses them, held against what sm75 computes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fuseline.serve.backends.engine.library import logger_of
from fuseline.serve.backends.engine.limits import check_computable
from fuseline.serve.backends.engine.target import Builder
from fuseline.serve.errors import BackendUnavailableError

TURING = Builder("tensorrt_rtx", "sm75", "SM75")


def parsed(trt, node, *, types, shapes, weights=()):
    """The network that TensorRT for RTX makes of one ONNX node; it lives as long as what comes with it."""
    inputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(("a", "b"), types, shapes, strict=False)
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", types[0], None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    builder = trt.Builder(logger_of(trt))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger_of(trt))
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    return network, parser, builder


F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
PRODUCT = helper.make_node("MatMul", ["a", "b"], ["y"], "head/MatMul")
EINSUM = helper.make_node("Einsum", ["a", "b"], ["y"], "head/Einsum", equation="ij,jk->ik")
SUM = helper.make_node("Add", ["a", "b"], ["y"], "sum")
MATRICES = ([2, 3], [3, 4])


@pytest.mark.parametrize(
    ("node", "types", "fault"),
    [
        (PRODUCT, (F32, F32), r"head/MatMul \(an FP32 matrix product\)"),
        (PRODUCT, (F16, F16), None),
        (EINSUM, (F32, F32), r"head/Einsum.* \(an FP32 matrix product\)"),
        (PRODUCT, (BF16, BF16), r"head/MatMul \(BF16\)"),
    ],
)
def test_matrix_products_on_sm75(trt, node, types, fault):
    network, *_ = parsed(trt, node, types=types, shapes=MATRICES)
    if fault is None:
        check_computable(network, TURING)
        return
    with pytest.raises(BackendUnavailableError, match=fault):
        check_computable(network, TURING)
    check_computable(network, Builder("tensorrt_rtx", "sm80", "SM80"))
    check_computable(network, Builder("tensorrt", "sm75"))


def test_fp32_beside_products_is_no_fault(trt):
    network, *_ = parsed(trt, SUM, types=(F32, F32), shapes=([2, 3], [2, 3]))
    check_computable(network, TURING)


@pytest.mark.parametrize(("spatial", "refused"), [(2, False), (3, True)])
def test_convolutions_on_sm75(trt, spatial, refused):
    weight = numpy_helper.from_array(np.ones((4, 3, *[3] * spatial), np.float16), "w")
    node = helper.make_node("Conv", ["a", "w"], ["y"], "stem/Conv")
    network, *_ = parsed(trt, node, types=(F16,), shapes=([1, 3, *[8] * spatial],), weights=[weight])
    if refused:
        with pytest.raises(BackendUnavailableError, match=r"stem/Conv \(a 3-D convolution\)"):
            check_computable(network, TURING)
    else:
        check_computable(network, TURING)
