"""Requests of the Open Inference Protocol, and what their answers hold."""

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse


def infer_request(pixels: NDArray[np.uint8], *, typed: bool = False, **fields: object) -> ModelInferRequest:
    """Ask for the logits of `pixels` (rows, height, width, channels), as raw bytes or in a typed list."""
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    request = ModelInferRequest(inputs=[tensor], **fields)
    if typed:
        request.inputs[0].contents.CopyFrom(InferTensorContents(uint_contents=pixels.ravel().tolist()))
    else:
        request.raw_input_contents.append(pixels.tobytes())
    return request


def logits_of(response: ModelInferResponse) -> NDArray[np.float32]:
    """The logits (rows, classes) of an answer, which must hold nothing else."""
    (output,), (raw,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype) == ("logits", "FP32")
    return np.frombuffer(raw, "<f4").reshape(output.shape)
