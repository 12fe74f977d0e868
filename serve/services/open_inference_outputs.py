"""The output tensor of an Open Inference Protocol response: logits, or the classes of largest logits, as asked for.

    by default                       FP32 [images, classes], as raw bytes
    parameter `classification` = k   BYTES [images, k], each element `logit:index:label`, largest first

Either goes into shared memory where the request says so.
"""

import reprlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from fuseline.serve.errors import RequestError
from fuseline.serve.model import Model
from fuseline.serve.services.bytes_elements import raw_from_elements
from fuseline.serve.services.open_inference_parameters import integer_parameter, region_slice
from fuseline.serve.services.top_k import indices_of_largest
from fuseline.serve.shared_memory.region import RegionPart
from fuseline.serve.shared_memory.regions import SharedMemoryRegions

OUTPUT_DATATYPE = "FP32"
_LOGIT_BYTES = 4


class RequestedOutput(NamedTuple):
    """How a request wants its logits."""

    classification: int = 0
    """Number of classes of largest logits to return instead of all logits; 0: all logits."""
    region: RegionPart | None = None
    """Part of shared memory for the output; None: it is in the response."""
    where: tuple[str, int, int] = ("", 0, 0)
    """Name of that region, offset within it and size of the part, in bytes."""


WHOLE = RequestedOutput()
"""Every logit, in the response."""


def requested_output(
    request: ModelInferRequest, model: Model, regions: SharedMemoryRegions, images: int
) -> RequestedOutput:
    """Return how `request` wants the logits of its `images`.

    Raises:
        RequestError: another output than the model's, a parameter of a wrong type, or a part of shared memory that is
            too small.
        FuselineError: what the regions of shared memory raise.
    """
    name = model.manifest.output_name
    for output in request.outputs:
        if output.name != name:
            raise RequestError(f"the output {reprlib.repr(output.name)} was asked for; the model has {name!r} only")
    # Of an output that is asked for several times Triton heeds the last.
    parameters = request.outputs[-1].parameters
    if not parameters:
        return WHOLE
    what = f"the output {name!r}"
    classification = min(integer_parameter(parameters, "classification", what, least=1) or 0, model.classes)
    where = region_slice(parameters, what)
    if where is None:
        return RequestedOutput(classification)
    if classification:
        raise RequestError(f"{what} can't have both 'classification' and 'shared_memory_region'; leave out one of them")
    size = images * model.classes * _LOGIT_BYTES
    if where.byte_size < size:
        raise RequestError(
            f"{what} has {size} bytes, {images} x {model.classes} of FP32; 'shared_memory_byte_size' is "
            f"{where.byte_size}"
        )
    return RequestedOutput(0, regions.writable(*where), where)


def add_output(
    response: ModelInferResponse, model: Model, logits: NDArray[np.float32], requested: RequestedOutput
) -> None:
    """Add the `logits` (images, classes), finite, to `response` as they were requested."""
    output = response.outputs.add()
    output.name = model.manifest.output_name
    if requested.classification:
        output.datatype = "BYTES"
        output.shape.extend((len(logits), requested.classification))
        response.raw_output_contents.append(_classes(logits, requested.classification, model.manifest.labels))
        return
    output.datatype = OUTPUT_DATATYPE
    output.shape.extend(logits.shape)
    data = logits.astype("<f4", copy=False).tobytes()
    if requested.region is None:
        response.raw_output_contents.append(data)
        return
    requested.region.write(data)
    # The contents stay one for each output, in their order.
    response.raw_output_contents.append(b"")
    region, offset, _ = requested.where
    parameters = output.parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = len(data)
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def _classes(logits: NDArray[np.float32], count: int, labels: tuple[str, ...]) -> bytes:
    """Return the raw contents of BYTES elements `logit:index:label`, as Triton writes them."""
    indices = indices_of_largest(logits, count).tolist()
    return raw_from_elements(
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, best in zip(logits, indices, strict=True)
        for index in best
    )
