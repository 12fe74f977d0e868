"""What is asked of a server and how its answers are read, in each protocol that the load generator speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.answers import check_logits, check_response
from fuseline.benchmarks.load.calls import CLASSIFY, CLASSIFY_STREAM
from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from fuseline.serve.errors import InputError, VerificationError

PROTOCOLS = ("classify", "stream", "open-inference")
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_DTYPES = {"UINT8": "u1", "FP16": "<f2", "FP32": "<f4"}

Pictures = NDArray[np.uint8] | Sequence[bytes]
"""Pixels (images, height, width, channels), or encoded files."""


class WireProtocol(Protocol):
    """Pictures to a serialised request, a serialised answer to logits or to an error."""

    @property
    def name(self) -> str:
        """One of `PROTOCOLS`, or `raw`."""
        ...

    @property
    def method(self) -> str:
        """Path of the gRPC method."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the method is a bidirectional stream."""
        ...

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        """Ask for `pictures`; without logits for as little as the protocol can ask for."""
        ...

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        """(images, classes) of an answer with logits. Raises `VerificationError` if it has none that can be read."""
        ...

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        """Raise `VerificationError` unless `answer` says what logits `expected` (images, classes) mean."""
        ...


@dataclass(frozen=True, slots=True)
class Classify:
    """fuseline.v1.Classifier with raw pixels or files: `Classify`, or `ClassifyStream` with `is_stream`."""

    is_stream: bool = False
    timeout_ms: int = 0
    """Deadline of each request, sent in its message; 0: none."""
    task: str = "single-label"
    """What the model's logits mean: `GetModelResponse.task`."""

    @property
    def name(self) -> str:
        return "stream" if self.is_stream else "classify"

    @property
    def method(self) -> str:
        return CLASSIFY_STREAM if self.is_stream else CLASSIFY

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        images = [
            Image(encoded=picture) if isinstance(picture, bytes) else Image(raw=picture.tobytes())
            for picture in pictures
        ]
        request = ClassifyRequest(images=images, return_logits=with_logits, timeout_ms=self.timeout_ms)
        return request.SerializeToString()

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        response = ClassifyResponse.FromString(answer)
        return np.stack([np.frombuffer(result.logits, "<f4") for result in response.results])

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        check_response(who, precision, ClassifyResponse.FromString(answer), expected, self.task)


@dataclass(frozen=True, slots=True)
class OpenInference:
    """inference.GRPCInferenceService/ModelInfer with `raw_input_contents`, to any server that speaks it.

    A float input gets `(pixels / 255 - mean) / std`, one of BYTES gets files.
    """

    model: str
    input_name: str
    datatype: str
    """`UINT8`, `FP16`, `FP32` or `BYTES`."""
    row_shape: tuple[int, int, int]
    """Height, width, channels."""
    channels_first: bool
    output_name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    queue_timeout_us: int = 0
    """Triton's parameter `timeout`, how long a request may wait in its queue; 0: none is sent."""
    name = "open-inference"
    method = MODEL_INFER
    is_stream = False

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        del with_logits  # the logits are all that there is to ask for
        shape, content = self._tensor(pictures)
        request = ModelInferRequest(
            model_name=self.model,
            inputs=[ModelInferRequest.InferInputTensor(name=self.input_name, datatype=self.datatype, shape=shape)],
            outputs=[ModelInferRequest.InferRequestedOutputTensor(name=self.output_name)],
            raw_input_contents=[content],
        )
        if self.queue_timeout_us:
            request.parameters["timeout"].int64_param = self.queue_timeout_us
        return request.SerializeToString()

    def _tensor(self, pictures: Pictures) -> tuple[tuple[int, ...], bytes]:
        """Return its shape and its content."""
        if self.datatype == "BYTES":
            # https://github.com/kserve/open-inference-protocol: an element is its length in 4 bytes and its content.
            return (len(pictures), 1), b"".join(len(file).to_bytes(4, "little") + bytes(file) for file in pictures)
        pixels = np.asarray(pictures)
        tensor = pixels if self.datatype == "UINT8" else (pixels / np.float32(255) - self.mean) / self.std
        if self.channels_first:
            tensor = tensor.transpose(0, 3, 1, 2)
        return tensor.shape, tensor.astype(_DTYPES[self.datatype]).tobytes()

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        response = ModelInferResponse.FromString(answer)
        if len(response.outputs) != 1 or response.outputs[0].datatype not in ("FP16", "FP32"):
            given = ", ".join(f"{output.name} {output.datatype}" for output in response.outputs) or "no outputs"
            raise VerificationError(f"{self.output_name} was asked for as FP32 or FP16, the server gave {given}")
        output = response.outputs[0]
        if response.raw_output_contents:
            values = np.frombuffer(response.raw_output_contents[0], _DTYPES[output.datatype])
        else:
            values = np.array(output.contents.fp32_contents, "<f4")
        return values.astype(np.float32).reshape(output.shape)

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        check_logits(who, precision, self.logits(answer), expected)


@dataclass(frozen=True, slots=True)
class RawBytes:
    """Pixels or a file alone as the body of an HTTP POST to `method`; little-endian float32 logits as its answer."""

    method: str
    classes: int
    name = "raw"
    is_stream = False

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        del with_logits  # the logits are all that there is to ask for
        return b"".join(map(bytes, pictures))

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        if not answer or len(answer) % (4 * self.classes):
            raise VerificationError(
                f"logits of {self.classes} classes take 4 bytes each, the server gave {len(answer)}"
            )
        return np.frombuffer(answer, "<f4").reshape(-1, self.classes)

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        check_logits(who, precision, self.logits(answer), expected)


def open_inference_from_metadata(
    metadata: ModelMetadataResponse,
    *,
    input_name: str | None = None,
    output_name: str | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> OpenInference:
    """How to ask the model that `metadata` describes for logits of pictures.

    `input_name` and `output_name` need be given only where it has several.

    Raises:
        InputError: it takes no pictures; the message says what it takes.
    """
    source = _tensor("input", metadata, metadata.inputs, input_name)
    layout = _layout(source.shape)
    if layout is None or source.datatype not in _DTYPES:
        raise InputError(
            f"input {source.name} of {metadata.name} is {source.datatype} {list(source.shape)}; pictures go into "
            f"{', '.join(_DTYPES)} of [batch, height, width, channels] or [batch, channels, height, width] with 1 or 3 "
            "channels and a fixed size"
        )
    row_shape, channels_first = layout
    return OpenInference(
        model=metadata.name,
        input_name=source.name,
        datatype=source.datatype,
        row_shape=row_shape,
        channels_first=channels_first,
        output_name=_tensor("output", metadata, metadata.outputs, output_name).name,
        mean=mean,
        std=std,
    )


def _tensor(
    what: str,
    metadata: ModelMetadataResponse,
    tensors: Sequence[ModelMetadataResponse.TensorMetadata],
    name: str | None,
) -> ModelMetadataResponse.TensorMetadata:
    chosen = [tensor for tensor in tensors if name is None or tensor.name == name]
    if len(chosen) != 1:
        names = ", ".join(tensor.name for tensor in tensors) or "none"
        asked = "it has more than one or none" if name is None else f"none is called {name}"
        raise InputError(f"{metadata.name} has the {what}s {names}: {asked}; name one with --{what}-name")
    return chosen[0]


def _layout(shape: Sequence[int]) -> tuple[tuple[int, int, int], bool] | None:
    """((height, width, channels), whether channels come first) of a batched tensor; None if it is no picture."""
    if len(shape) != 4 or min(shape[1:]) < 1:
        return None
    _, first, middle, last = map(int, shape)
    if last in (1, 3):
        return (first, middle, last), False
    return ((middle, last, first), True) if first in (1, 3) else None
