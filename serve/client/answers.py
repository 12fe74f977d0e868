"""Answers of a server, made of its messages."""

from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyResponse
from fuseline.serve.errors import FuselineError, UnknownModelError
from fuseline.serve.services.statuses import error_from_status


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
    """Name that was asked for, an alias included; the model's own if none was."""
    model_version: str
    """Version of the model that answered."""
    results: tuple[ImageAnswer, ...]
    """In the order of the request's images."""

    preprocess_ms: float
    """Time of decoding, resizing and cropping encoded images; 0 for raw pixels."""
    queue_ms: float
    """Time from admission to the start of the batch that held the request's last image."""
    compute_ms: float
    """Time of the backend's calls for the batches that held the request's images."""
    batch_rows: int
    """Number of images, of all requests, in the largest of those batches."""
    served_model: str = ""
    """Name of the model that answered, where an alias was asked for."""


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """What became of one image of a stream: `answer` or `error` is set."""

    position: int
    """Of the image in the iterable, from 0."""

    answer: Answer | None
    error: FuselineError | None


def answer_from_response(response: ClassifyResponse, version: str = "") -> Answer:
    """Return what the server answered to one request, which asked for `version`.

    Raises `UnknownModelError` if another version answered: servers before versions could be asked for ignore them.
    """
    if version and response.model_version != version:
        raise UnknownModelError(
            f"version {version} of {response.model} was asked for and {response.model_version} answered; this server "
            "can't be asked for versions, so leave it out, or use a newer server"
        )
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
        served_model=response.served_model,
    )


def stream_answer_from_response(
    response: ClassifyResponse, version: str, refused: dict[int, FuselineError]
) -> StreamAnswer:
    """Return what the server answered to the request of a stream whose `id` is the image's position.

    The request asked for `version`; that another one answered is its error. `refused` has the errors of images that
    were refused before they were sent, by position; the one that is told is taken out.
    """
    position = int(response.id)
    if (error := refused.pop(position, None)) is not None:
        return StreamAnswer(position, None, error)
    if response.HasField("error"):
        return StreamAnswer(position, None, error_from_response(response))
    try:
        return StreamAnswer(position, answer_from_response(response, version), None)
    except UnknownModelError as error:
        return StreamAnswer(position, None, error)


def error_from_response(response: ClassifyResponse) -> FuselineError:
    """Return the error by which the server answered one request of a stream."""
    told = response.error
    code = next(code for code in grpc.StatusCode if code.value[0] == told.code)
    return error_from_status(code, told.message, told.error_name, told.retry_after_ms / 1000 or None)
