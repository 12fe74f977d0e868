"""What a Python program calls: `from fuseline import Client`.

with Client("127.0.0.1:8001") as client:
    answer = client.classify("cat.jpg", top_k=5)
    print(answer.results[0].predictions[0].label)
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.errors import DeadlineError, FuselineError, ImageError, InputError, RequestError, ShuttingDownError
from fuseline.serve.model_description import ModelDescription, description_from_response
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, error_from_status, retry_after_from_metadata

DEFAULT_ADDRESS = "127.0.0.1:8001"

ImageLike = str | Path | bytes | NDArray[np.uint8]
"""A path of a JPEG, PNG or WebP file; the bytes of one; or raw uint8 pixels (height, width, channels), RGB."""

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

_SMALLEST_LIMIT_BYTES = 2**20
"""A server's message limit is 1 MiB or more, so smaller messages are sent without asking for it."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its probability; of a multi-label model, one label and its own."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The answer for one image."""

    predictions: tuple[Prediction, ...]
    """Most probable first. Of a multi-label model those of probability 0.5 or more are customarily taken to hold."""

    logits: NDArray[np.float32] | None = None
    """(classes,); only when asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request."""

    model: str
    model_version: str
    results: tuple[ImageAnswer, ...]
    """In the order of the request's images."""

    preprocess_ms: float
    queue_ms: float
    compute_ms: float
    batch_rows: int


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """What became of one image of a stream: `answer` or `error` is set."""

    position: int
    """Of the image in the iterable, from 0."""

    answer: Answer | None
    error: FuselineError | None


class Client:
    """A connection to a Fuseline server; threads may share it.

    Methods raise the error of `fuseline.serve.errors` that the server raised, and `InputError` where no server answers.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        """Connects with the first call."""
        self.address = address
        self._channel = grpc.insecure_channel(address, _channel_options(address))
        self._stub = ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._known_models: dict[str, ModelDescription] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        self._channel.close()

    def model(self, name: str = "", *, timeout_s: float | None = 10.0) -> ModelDescription:
        """Describe the model called `name`; empty: the server's only one."""
        with self._errors_of_the_tree(timeout_s):
            described = self._stub.GetModel(GetModelRequest(model=name), timeout=timeout_s)
        description = description_from_response(described)
        self._known_models[name] = description
        return description

    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        top_k: int = 1,
        model: str = "",
        return_logits: bool = False,
        timeout_s: float | None = 30.0,
    ) -> Answer:
        """Classify one image or several in one request; the results have their order.

        Args:
            images: see `ImageLike`. Encoded ones are resized and cropped by the server; raw pixels must already have
                the shape of the model's input.
            top_k: how many classes to return for each image, the most probable ones.
            model: may be empty when the server has only one.
            return_logits: return the logits of every class as well.
            timeout_s: the request's deadline; the server refuses at once what it can't answer by then.

        Raises:
            RequestError, ImageError: something is wrong with the request or an image, a file that can't be read and a
                message over the server's limit among it.
        """
        several = [images] if isinstance(images, str | Path | bytes | np.ndarray) else images
        with self._errors_of_the_tree(timeout_s):
            request = ClassifyRequest(
                model=model, images=[self._message(image, model) for image in several], return_logits=return_logits
            )
            _set_top_k(request, top_k)
            self._check_size(request)
            response = self._stub.Classify(request, timeout=timeout_s)
        return _answer(response)

    def classify_stream(
        self, images: Iterable[ImageLike], *, top_k: int = 1, model: str = "", timeout_s: float | None = None
    ) -> Iterator[StreamAnswer]:
        """Classify images as the iterable gives them, each a request of its own; yield answers as they come.

        Images are taken from `images`, in another thread, only as fast as the server takes them. One that is refused
        gives a `StreamAnswer` with its error, and the stream goes on; `timeout_s` bounds the stream as a whole.

        Raises:
            FuselineError: the stream as a whole failed. What `images` itself raises comes through too, after the
                answers to what it gave before.
        """
        refused: deque[StreamAnswer] = deque()
        broken: list[BaseException] = []

        def requests() -> Iterator[ClassifyRequest]:
            try:
                for position, image in enumerate(images):
                    try:
                        request = ClassifyRequest(model=model, id=str(position), images=[self._message(image, model)])
                        _set_top_k(request, top_k)
                        self._check_size(request)
                    except FuselineError as error:
                        refused.append(StreamAnswer(position, None, error))
                    else:
                        yield request
            except BaseException as error:  # noqa: BLE001 gRPC would only log it, in its own thread
                broken.append(error)

        with self._errors_of_the_tree(timeout_s):
            call = self._stub.ClassifyStream(requests(), timeout=timeout_s)
            try:
                for response in call:
                    while refused:
                        yield refused.popleft()
                    yield _stream_answer(response)
            finally:
                call.cancel()
        yield from refused
        if broken:
            raise broken[0]

    def _message(self, image: ImageLike, model: str) -> Image:
        if isinstance(image, bytes):
            return Image(encoded=image)
        if isinstance(image, str | Path):
            try:
                return Image(encoded=Path(image).read_bytes())
            except OSError as error:
                raise ImageError(f"{image} can't be read: {error.strerror}") from error
        description = self._known_models.get(model) or self.model(model)
        shape = description.height, description.width, description.channels
        if image.dtype != np.uint8 or image.shape != shape:
            raise RequestError(
                f"raw pixels came as {image.dtype} {image.shape}; {description.name} takes uint8 {shape} (height, "
                "width, channels). A path or encoded bytes would be resized and cropped by the server"
            )
        return Image(raw=image.tobytes())

    def _check_size(self, request: ClassifyRequest) -> None:
        size = request.ByteSize()
        if size <= _SMALLEST_LIMIT_BYTES:
            return
        limit = (self._known_models.get(request.model) or self.model(request.model)).max_message_bytes
        if size > limit:
            raise RequestError(
                f"the message has {size} bytes, the server at {self.address} takes at most {limit}; send fewer or "
                "smaller images at a time, or start the server with a larger --max-message-mb"
            )

    @contextmanager
    def _errors_of_the_tree(self, timeout_s: float | None) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._error_from_rpc(error, timeout_s) from error
        except UnicodeEncodeError as error:
            raise RequestError(f"{error.object!r} can't be sent: it is no UTF-8 text") from error

    def _error_from_rpc(self, error: grpc.RpcError, timeout_s: float | None) -> FuselineError:
        # Every error of a synchronous call is the call itself; the stubs don't say so.
        call = cast(grpc.Call, error)
        code, details = call.code(), call.details() or ""
        metadata = call.trailing_metadata() or ()
        name = next((str(value) for key, value in metadata if key == ERROR_METADATA_KEY), None)
        if name is None and code is grpc.StatusCode.UNAVAILABLE:
            return InputError(f"no server answers at {self.address} ({details}); is `fuseline serve` running there?")
        if name is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"no answer from {self.address} within {timeout_s:g} s; allow more time")
        if name is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RequestError(f"gRPC refused the message: {details}")
        if name is None and code is grpc.StatusCode.CANCELLED:
            return ShuttingDownError(
                f"{self.address} dropped the call before taking it up, as a server that stops does"
            )
        return error_from_status(code, details, name, retry_after_from_metadata(metadata))


def _channel_options(address: str) -> list[tuple[str, int]]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    if address.rpartition(":")[0] in _LOOPBACK_HOSTS:
        # Else gRPC sends even these through the proxy of `http_proxy`, which looks for them on its own machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _set_top_k(request: ClassifyRequest, top_k: int) -> None:
    try:
        request.top_k = top_k
    except ValueError as error:
        raise RequestError(f"top_k is {top_k}; it must be from 1 to the number of the model's classes") from error


def _answer(response: ClassifyResponse) -> Answer:
    return Answer(
        model=response.model,
        model_version=response.model_version,
        results=tuple(
            ImageAnswer(
                predictions=tuple(Prediction(p.index, p.label, p.probability) for p in result.predictions),
                logits=np.frombuffer(result.logits, "<f4") if result.logits else None,
            )
            for result in response.results
        ),
        preprocess_ms=response.timing.preprocess_ms,
        queue_ms=response.timing.queue_ms,
        compute_ms=response.timing.compute_ms,
        batch_rows=response.timing.batch_rows,
    )


def _stream_answer(response: ClassifyResponse) -> StreamAnswer:
    position = int(response.id)
    if not response.HasField("error"):
        return StreamAnswer(position, _answer(response), None)
    code = next(code for code in grpc.StatusCode if code.value[0] == response.error.code)
    told = response.error
    retry_after_s = told.retry_after_ms / 1000 or None
    return StreamAnswer(position, None, error_from_status(code, told.message, told.error_name, retry_after_s))
