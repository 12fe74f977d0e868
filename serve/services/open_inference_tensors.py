"""The tensors of the Open Inference Protocol: `image` UINT8 [-1, height, width, channels], `logits` FP32 [-1, classes].

The elements of a tensor come either as raw bytes or in a typed list, and both are read; logits go out as raw bytes.
"""

import math
import reprlib

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from fuseline.serve.errors import BackendError, RequestError
from fuseline.serve.model import Model
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

INPUT_DATATYPE = "UINT8"
OUTPUT_DATATYPE = "FP32"


def pixels_from_request(request: ModelInferRequest, model: Model, *, max_images: int) -> NDArray[np.uint8]:
    """Return the images of a request: uint8 (rows, height, width, channels), with 1 to `max_images` rows.

    Raw pixels are viewed in the bytes that protobuf hands out, not copied again.

    Raises:
        RequestError: another input or output than the model's, another datatype or shape, too many images, a number of
            elements that is not the shape's, or a parameter of a tensor.
    """
    if request.outputs:
        _check_outputs(request)
    tensor = _only_input(request)
    shape = _checked_shape(tensor, model, max_images)
    elements = _elements(request, tensor)
    size = math.prod(shape)
    if len(elements) != size:
        raise RequestError(
            f"the input {INPUT_NAME!r} has {len(elements)} bytes; shape {list(shape)} of {INPUT_DATATYPE} has {size}"
        )
    return np.ndarray(shape, np.uint8, elements)


def response_from_logits(request: ModelInferRequest, model: Model, logits: NDArray[np.float32]) -> ModelInferResponse:
    """Return the answer to `request`. Raises `BackendError` if the logits (rows, classes) are not finite."""
    if not np.isfinite(logits).all():
        raise BackendError(f"{model.name} on {model.backend.name} answered logits that are not finite")
    return ModelInferResponse(
        model_name=model.name,
        model_version=model.manifest.version,
        id=request.id,
        outputs=[ModelInferResponse.InferOutputTensor(name=OUTPUT_NAME, datatype=OUTPUT_DATATYPE, shape=logits.shape)],
        raw_output_contents=[logits.astype("<f4", copy=False).tobytes()],
    )


def _check_outputs(request: ModelInferRequest) -> None:
    for output in request.outputs:
        if output.name != OUTPUT_NAME:
            raise RequestError(f"the output {_short(output.name)} was asked for; the model has {OUTPUT_NAME!r} only")
        if output.parameters:
            raise RequestError(
                f"the output {OUTPUT_NAME!r} was asked for with the parameters {_short(sorted(output.parameters))}; "
                "none is supported: logits come in the response, labels from fuseline.v1.Classifier"
            )


def _only_input(request: ModelInferRequest) -> ModelInferRequest.InferInputTensor:
    inputs = request.inputs
    if len(inputs) != 1 or inputs[0].name != INPUT_NAME:
        came = _short([tensor.name for tensor in inputs[:8]]) if inputs else "none"
        raise RequestError(f"the request's {len(inputs)} inputs are {came}; the model takes {INPUT_NAME!r}, once")
    tensor = inputs[0]
    if tensor.datatype != INPUT_DATATYPE:
        raise RequestError(f"the input {INPUT_NAME!r} is {_short(tensor.datatype)}, expected {INPUT_DATATYPE!r}")
    if tensor.parameters:
        raise RequestError(
            f"the input {INPUT_NAME!r} has the parameters {_short(sorted(tensor.parameters))}; none is supported: send "
            "the elements in the request"
        )
    return tensor


def _checked_shape(tensor: ModelInferRequest.InferInputTensor, model: Model, max_images: int) -> tuple[int, ...]:
    row_shape = model.manifest.input.row_shape
    # A hostile request may have very many dimensions, of which a message needs only a few.
    shape = tuple(tensor.shape[:8])
    if shape[1:] != row_shape or shape[0] < 1:
        height, width, channels = row_shape
        raise RequestError(
            f"the input {INPUT_NAME!r} has shape {_short(list(shape))}, expected "
            f"[images, {height}, {width}, {channels}] (height, width, channels) with at least one image"
        )
    if shape[0] > max_images:
        raise RequestError(
            f"the request has {shape[0]} images, at most {max_images} are taken; send several requests, or start the "
            "server with a larger --max-images-per-request"
        )
    return shape


def _elements(request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor) -> bytes:
    raw = request.raw_input_contents
    if not tensor.HasField("contents"):
        if len(raw) != 1:
            raise RequestError(
                f"the request has {len(raw)} raw_input_contents for 1 input; send one for each input, or every input's "
                "elements in its contents"
            )
        return raw[0]
    if raw:
        raise RequestError("the request has both contents and raw_input_contents; send one of them")
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if fields != ["uint_contents"]:
        raise RequestError(
            f"the input {INPUT_NAME!r} has its elements in {', '.join(fields) or 'no field of contents'}; those of "
            f"{INPUT_DATATYPE} belong in uint_contents"
        )
    values = np.array(tensor.contents.uint_contents, np.uint32)
    if (largest := values.max()) > 255:
        raise RequestError(f"the input {INPUT_NAME!r} has an element {largest}; {INPUT_DATATYPE} ends at 255")
    return values.astype(np.uint8).tobytes()


def _short(value: object) -> str:
    """Return a client's words shortened: an error's message has to fit into a header."""
    return reprlib.repr(value)
