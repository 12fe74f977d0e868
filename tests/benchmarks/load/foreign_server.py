"""A server of the Open Inference Protocol that is not Fuseline: the colours model from float32 NCHW, no more."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np

from fuseline.protos import open_inference_pb2 as pb
from fuseline.protos.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from tests.benchmarks.load.little_servers import little_server
from tests.fakes.colours import BIASES, CHANNELS, HEIGHT, WEIGHTS, WIDTH


class Foreign(GRPCInferenceServiceServicer):
    """ModelMetadata and ModelInfer; everything else is unimplemented."""

    def __init__(self, mean: float, std: float, input_shape: tuple[int, ...], as_typed_contents: bool) -> None:
        self._mean, self._std = mean, std
        self._input_shape = input_shape
        self._as_typed_contents = as_typed_contents

    def ModelMetadata(self, request, context):
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=["7"],
            platform="abacus",
            inputs=[tensor(name="x", datatype="FP32", shape=self._input_shape)],
            outputs=[
                tensor(name="features", datatype="FP32", shape=[-1, CHANNELS]),
                tensor(name="y", datatype="FP32", shape=[-1, len(BIASES)]),
            ],
        )

    def ModelInfer(self, request, context):
        assert [tensor.name for tensor in request.inputs] == ["x"]
        assert [tensor.name for tensor in request.outputs] == ["y"]
        images = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(request.inputs[0].shape)
        assert images.shape[1:] == (CHANNELS, HEIGHT, WIDTH)
        logits = (images * self._std + self._mean).mean(axis=(2, 3)) @ WEIGHTS + BIASES
        output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=logits.shape)
        if self._as_typed_contents:
            output.contents.fp32_contents.extend(logits.ravel().tolist())
            return pb.ModelInferResponse(outputs=[output])
        return pb.ModelInferResponse(outputs=[output], raw_output_contents=[logits.astype("<f4").tobytes()])


@contextmanager
def foreign_server(
    *,
    mean: float = 0.0,
    std: float = 1.0,
    input_shape: tuple[int, ...] = (-1, CHANNELS, HEIGHT, WIDTH),
    as_typed_contents: bool = False,
) -> Iterator[str]:
    """Yield the address of one that undoes a normalisation by `mean` and `std` of pixels in 0..1."""

    def add(server: grpc.Server) -> None:
        add_GRPCInferenceServiceServicer_to_server(Foreign(mean, std, input_shape, as_typed_contents), server)

    with little_server(servicer=add) as address:
        yield address
