"""Validates the Open Inference Protocol's inference requests, and encodes their answers."""

import numpy as np

from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.errors import BackendError, RequestError
from fuseline.serve.model import Model
from fuseline.serve.routing.routes import Finder
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.inference import Codec, Decode
from fuseline.serve.services.open_inference_inputs import OpenInferenceInputs
from fuseline.serve.services.open_inference_outputs import WHOLE, RequestedOutput, add_output, requested_output
from fuseline.serve.services.open_inference_parameters import check_request_parameters, timeout_s
from fuseline.serve.services.priority import priority_parameter
from fuseline.serve.services.statuses import Status
from fuseline.serve.settings import Settings
from fuseline.serve.shared_memory.regions import SharedMemoryRegions

SERVED_MODEL = "served_model"
"""Parameter of a response to a request for an alias: the name of the model that answered."""

_FINAL = "triton_final_response"


class OpenInferenceCodec(Codec[ModelInferRequest, ModelInferResponse]):
    """From rows or pictures to logits or classes.

    Of a request's parameters `timeout` and `priority` have an effect.
    """

    parse = staticmethod(ModelInferRequest.FromString)

    def __init__(self, models: Finder, image_rows: ImageRows, regions: SharedMemoryRegions, settings: Settings) -> None:
        self._models = models
        self._image_rows = image_rows
        self._regions = regions
        self._inputs = OpenInferenceInputs(
            regions, max_images=settings.max_images_per_request, max_bytes=settings.max_message_bytes
        )

    def timeout_s(self, request: ModelInferRequest) -> float | None:
        """Return the parameter `timeout`, microseconds as Triton has it, in seconds; None where it is absent or 0."""
        return timeout_s(request)

    def model_name(self, request: ModelInferRequest) -> str:
        """See `Codec.model_name`."""
        return request.model_name

    def priority(self, request: ModelInferRequest) -> int:
        """Return the level of the parameter `priority`; 0 where it is absent."""
        return priority_parameter(request) if request.parameters else 0

    def find(self, request: ModelInferRequest) -> Model:
        """Return the model that the request names, by `Finder.find`."""
        return self._models.find(request.model_name, request.model_version)

    def rows(self, request: ModelInferRequest, model: Model) -> list[Row] | Decode:
        """Check the parameters and the input, and return the rows or what decodes them. Raises `RequestError`."""
        if request.parameters:
            check_request_parameters(request)
        read = self._inputs.rows_or_pictures(request, model)
        return self._image_rows.decode(model, [], dict(enumerate(read))) if isinstance(read, list) else list(read)

    def outputs(self, request: ModelInferRequest, model: Model) -> RequestedOutput:
        """Return how the request wants its logits. Raises `RequestError`."""
        if not request.outputs:
            return WHOLE
        return requested_output(request, model, self._regions, request.inputs[0].shape[0])

    def answer(
        self,
        request: ModelInferRequest,
        model: Model,
        batched: BatchedRows,
        preprocess_s: float,
        outputs: RequestedOutput,
    ) -> ModelInferResponse:
        """Return the answer, whose parameters tell where the time went.

        Raises:
            RequestError: floats that the client sent are so large that their logits are not finite.
            BackendError: the logits of pixels are not finite.
        """
        logits = batched.logits
        if not np.isfinite(logits).all():
            if not model.takes_pixels and request.inputs[0].datatype != "BYTES":
                raise RequestError(
                    f"the logits of this input are not finite: its numbers are too large for {model.name} in "
                    f"{model.backend.precision}; send normalised pixels, (pixel / 255 - mean) / std"
                )
            raise BackendError(f"{model.name} on {model.backend.name} answered logits that are not finite")
        name = request.model_name or model.name
        response = ModelInferResponse(model_name=name, model_version=model.version, id=request.id)
        parameters = response.parameters
        if name != model.name:
            parameters[SERVED_MODEL].string_param = model.name
        parameters["preprocess_ms"].double_param = preprocess_s * 1000
        parameters["queue_ms"].double_param = batched.queue_ms
        parameters["compute_ms"].double_param = batched.compute_ms
        parameters["batch_rows"].int64_param = batched.batch_rows
        add_output(response, model, logits, outputs)
        return response


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
