"""The input tensor of an Open Inference Protocol request: elements as the network takes them, or encoded pictures.

    the model's own datatype    [images, *row_shape], such as UINT8 [images, height, width, channels]
    BYTES                       [images] or [images, 1]: each element a JPEG, PNG or WebP file

Elements come as raw bytes, in the typed list of their datatype, or in shared memory.
"""

import math
import reprlib

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import ModelInferRequest
from fuseline.serve.errors import RequestError
from fuseline.serve.input_rows import check_finite
from fuseline.serve.model import Model
from fuseline.serve.services.bytes_elements import LENGTH_BYTES, elements_from_raw
from fuseline.serve.services.open_inference_parameters import RegionSlice, region_slice
from fuseline.serve.shared_memory.regions import SharedMemoryRegions

_CONTENTS_OF = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
"""Field of the typed list of each datatype; FP16 has none."""


class OpenInferenceInputs:
    """Reads the input tensor of requests, all of which is checked before anything is computed."""

    def __init__(self, regions: SharedMemoryRegions, *, max_images: int, max_bytes: int) -> None:
        """Take at most `max_images` images of a request, and `max_bytes` of encoded pictures in shared memory."""
        self._regions = regions
        self._max_images = max_images
        self._max_bytes = max_bytes

    def rows_or_pictures(self, request: ModelInferRequest, model: Model) -> NDArray[np.generic] | list[bytes]:
        """Return the images of a request, 1 or more: rows (images, *row_shape) of the model's dtype, or picture files.

        Raw elements are viewed in the bytes that protobuf hands out, not copied again.

        Raises:
            RequestError: another input than the model's, another datatype or shape, too many images, a number of
                elements that is not the shape's, or elements that are not finite.
            FuselineError: what the regions of shared memory raise.
        """
        tensor = _only_input(request, model)
        if tensor.datatype == "BYTES":
            return self._pictures(request, tensor)
        if tensor.datatype != model.datatype:
            raise RequestError(
                f"the input {tensor.name!r} is {_short(tensor.datatype)}, expected {model.datatype!r}, or 'BYTES' for "
                "JPEG, PNG or WebP files"
            )
        shape, dtype = self._checked_shape(tensor, model), model.row_dtype
        rows = np.ndarray(shape, dtype, self._elements(request, tensor, math.prod(shape) * dtype.itemsize))
        check_finite(rows)
        return rows

    def _checked_shape(self, tensor: ModelInferRequest.InferInputTensor, model: Model) -> tuple[int, ...]:
        # A hostile request may have very many dimensions, of which a message needs only a few.
        shape = tuple(tensor.shape[:8])
        if shape[1:] != model.row_shape or shape[0] < 1:
            raise RequestError(
                f"the input {tensor.name!r} has shape {_short(list(shape))}, expected {_described_shape(model)} "
                "with at least one image"
            )
        self._check_count(shape[0])
        return shape

    def _check_count(self, images: int) -> None:
        if images > self._max_images:
            raise RequestError(
                f"the request has {images} images, at most {self._max_images} are taken; send several requests, or "
                "start the server with a larger --max-images-per-request"
            )

    def _elements(
        self, request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor, size: int
    ) -> bytes | NDArray[np.uint8]:
        """Return the `size` bytes of a tensor of numbers."""
        where = region_slice(tensor.parameters, f"the input {tensor.name!r}") if tensor.parameters else None
        if where is not None:
            if where.byte_size != size:
                raise _wrong_size(tensor, where.byte_size, size)
            return self._from_region(request, tensor, where)
        if tensor.HasField("contents"):
            values = _typed_contents(request, tensor)
            if len(values) != size:
                raise _wrong_size(tensor, len(values), size)
            return values
        raw = _raw_contents(request)
        if len(raw) != size:
            raise _wrong_size(tensor, len(raw), size)
        return raw

    def _from_region(
        self, request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor, where: RegionSlice
    ) -> NDArray[np.uint8]:
        """Return the bytes that lie in shared memory, copied: its other users may change them meanwhile."""
        if tensor.HasField("contents") or request.raw_input_contents:
            raise RequestError(
                f"the input {tensor.name!r} lies in shared memory, and the request has its elements too; send one of "
                "them"
            )
        data = np.empty(where.byte_size, np.uint8)
        self._regions.read(where.region, where.offset, where.byte_size, data)
        return data

    def _pictures(self, request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor) -> list[bytes]:
        shape = tuple(tensor.shape[:8])
        if len(shape) not in {1, 2} or shape[0] < 1 or shape[1:] not in {(), (1,)}:
            raise RequestError(
                f"the input {tensor.name!r} of BYTES has shape {_short(list(shape))}, expected [images] or [images, 1] "
                "with at least one image"
            )
        images = shape[0]
        self._check_count(images)
        where = region_slice(tensor.parameters, f"the input {tensor.name!r}") if tensor.parameters else None
        if where is not None:
            if where.byte_size > self._max_bytes:
                raise RequestError(
                    f"the input {tensor.name!r} has {where.byte_size} bytes in shared memory; at most "
                    f"{self._max_bytes} are taken: send several requests"
                )
            pictures = _split(tensor, self._from_region(request, tensor, where).tobytes(), images)
        elif tensor.HasField("contents"):
            pictures = list(_contents(request, tensor, "bytes_contents"))
        else:
            pictures = _split(tensor, _raw_contents(request), images)
        if len(pictures) != images:
            raise RequestError(
                f"the input {tensor.name!r} has {len(pictures)} elements; shape {list(shape)} has {images}"
            )
        return pictures


def _only_input(request: ModelInferRequest, model: Model) -> ModelInferRequest.InferInputTensor:
    inputs, name = request.inputs, model.manifest.input.name
    if len(inputs) != 1 or inputs[0].name != name:
        came = _short([tensor.name for tensor in inputs[:8]]) if inputs else "none"
        raise RequestError(f"the request's {len(inputs)} inputs are {came}; the model takes {name!r}, once")
    return inputs[0]


def _raw_contents(request: ModelInferRequest) -> bytes:
    raw = request.raw_input_contents
    if len(raw) != 1:
        raise RequestError(
            f"the request has {len(raw)} raw_input_contents for 1 input; send one for each input, or every input's "
            "elements in its contents"
        )
    return raw[0]


def _contents(request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor, field: str | None) -> list[bytes]:
    """Return the typed list `field` of a tensor; None: its datatype has none."""
    if request.raw_input_contents:
        raise RequestError("the request has both contents and raw_input_contents; send one of them")
    fields = [present.name for present, _ in tensor.contents.ListFields()]
    if field is None or fields != [field]:
        belongs = "raw_input_contents" if field is None else field
        raise RequestError(
            f"the input {tensor.name!r} has its elements in {', '.join(fields) or 'no field of contents'}; those of "
            f"{tensor.datatype} belong in {belongs}"
        )
    contents: list[bytes] = getattr(tensor.contents, field)
    return contents


def _typed_contents(request: ModelInferRequest, tensor: ModelInferRequest.InferInputTensor) -> bytes:
    listed = _contents(request, tensor, _CONTENTS_OF.get(tensor.datatype))
    if tensor.datatype == "FP32":
        return np.array(listed, "<f4").tobytes()
    values = np.array(listed, np.uint32)
    if (largest := values.max()) > 255:
        raise RequestError(f"the input {tensor.name!r} has an element {largest}; UINT8 ends at 255")
    return values.astype(np.uint8).tobytes()


def _split(tensor: ModelInferRequest.InferInputTensor, data: bytes, count: int) -> list[bytes]:
    """Return the elements of BYTES in `data`, at most `count`. Raises `RequestError` for more, or lengths that lie."""
    elements: list[bytes] = []
    try:
        for element in elements_from_raw(data):
            if len(elements) == count:
                raise RequestError(f"the input {tensor.name!r} has more than the {count} elements of its shape")
            elements.append(element)
    except ValueError as error:
        raise RequestError(
            f"element {len(elements) + 1} of the input {tensor.name!r} {error}; send before each element its length in "
            f"{LENGTH_BYTES} bytes, little-endian"
        ) from error
    return elements


def _wrong_size(tensor: ModelInferRequest.InferInputTensor, came: int, expected: int) -> RequestError:
    return RequestError(
        f"the input {tensor.name!r} has {came} bytes; shape {list(tensor.shape)} of {tensor.datatype} has {expected}"
    )


def _described_shape(model: Model) -> str:
    sizes = ", ".join(map(str, model.row_shape))
    order = "height, width, channels" if model.manifest.input.layout == "NHWC" else "channels, height, width"
    return f"[images, {sizes}] ({order})"


def _short(value: object) -> str:
    """Return a client's words shortened: an error's message has to fit into a header."""
    return reprlib.repr(value)
