"""Validates the Open Inference Protocol's inference requests, and encodes their answers."""

import reprlib

from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.errors import UnknownModelError
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.services.inference import Codec
from fuseline.serve.services.open_inference_tensors import pixels_from_request, response_from_logits
from fuseline.serve.services.statuses import Status

_FINAL = "triton_final_response"


class OpenInferenceCodec(Codec[ModelInferRequest, ModelInferResponse]):
    """From raw pixels to logits. Only the parameter `timeout` of a request has an effect."""

    def __init__(self, repository: Repository, max_images: int) -> None:
        self._repository = repository
        self._max_images = max_images

    def timeout_s(self, request: ModelInferRequest) -> float | None:
        """Return the parameter `timeout`, microseconds as Triton has it, in seconds; None where it is absent or 0."""
        timeout_us = request.parameters["timeout"].int64_param if "timeout" in request.parameters else 0
        return timeout_us / 1e6 if timeout_us > 0 else None

    def find(self, request: ModelInferRequest) -> Model:
        """Return the model that the request names, by `find_version`."""
        return find_version(self._repository, request.model_name, request.model_version)

    def rows(self, request: ModelInferRequest, model: Model) -> list[Row]:
        """Check the tensors, and return their rows. Raises `RequestError`."""
        return list(pixels_from_request(request, model, max_images=self._max_images))

    def answer(
        self, request: ModelInferRequest, model: Model, batched: BatchedRows, _preprocess_s: float
    ) -> ModelInferResponse:
        """Return the answer with the logits. Raises `BackendError` if they are not finite."""
        return response_from_logits(request, model, batched.logits)


def find_version(repository: Repository, name: str, version: str) -> Model:
    """Return the model of that name and version; if empty, they stand for the only model and the served version.

    Raises `UnknownModelError`.
    """
    model = repository.get(name)
    if version not in {"", model.manifest.version}:
        raise UnknownModelError(
            f"there is no version {reprlib.repr(version)} of {model.name} here; served: {model.manifest.version!r}"
        )
    return model


def stream_message(request: ModelInferRequest, answer: ModelInferResponse | Status) -> ModelStreamInferResponse:
    """Return the message by which ModelStreamInfer answers `request`.

    An answer says in its parameter `triton_final_response` that no other follows for its request. So does Triton's of a
    model that is not decoupled, whether or not `triton_enable_empty_final_response` asks for it, and on streams alone.
    """
    if isinstance(answer, ModelInferResponse):
        answer.parameters[_FINAL].bool_param = True
        return ModelStreamInferResponse(infer_response=answer)
    return ModelStreamInferResponse(
        error_message=f"{answer.code.name}: {answer.message}", infer_response=ModelInferResponse(id=request.id)
    )
