"""Validates fuseline.v1.Classifier's requests, and encodes their answers."""

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, StreamError
from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.errors import BackendError, RequestError
from fuseline.serve.model import Model
from fuseline.serve.routing.routes import Finder
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.inference import Codec, Decode
from fuseline.serve.services.priority import priority_from_text
from fuseline.serve.services.statuses import Status
from fuseline.serve.services.top_k import RankedBatch


class ClassifyCodec(Codec[ClassifyRequest, ClassifyResponse]):
    """From images to classes and their probabilities."""

    parse = staticmethod(ClassifyRequest.FromString)

    def __init__(self, models: Finder, image_rows: ImageRows) -> None:
        self._models = models
        self._image_rows = image_rows
        self._ranked: RankedBatch | None = None

    def timeout_s(self, request: ClassifyRequest) -> float | None:
        """Return the request's `timeout_ms` in seconds; None where it is absent or 0."""
        return request.timeout_ms / 1000 or None

    def model_name(self, request: ClassifyRequest) -> str:
        """See `Codec.model_name`."""
        return request.model

    def priority(self, request: ClassifyRequest) -> int:
        """Return the level that the request's `priority` names; 0 where it is absent. Raises `RequestError`."""
        return priority_from_text(request.priority) if request.priority else 0

    def find(self, request: ClassifyRequest) -> Model:
        """Return the model that the request names, or the only one, by `Finder.find`."""
        return self._models.find(request.model, request.model_version)

    def rows(self, request: ClassifyRequest, model: Model) -> list[Row] | Decode:
        """Check `top_k` and the images, and return the rows or what decodes them. Raises `RequestError`."""
        top_k, classes = request.top_k if request.HasField("top_k") else 1, model.classes
        if not 1 <= top_k <= classes:
            raise RequestError(
                f"top_k is {top_k}; {model.name} has {classes} classes, so it must be from 1 to {classes}"
            )
        return self._image_rows.rows(request.images, model)

    def answer(
        self, request: ClassifyRequest, model: Model, batched: BatchedRows, preprocess_s: float, _outputs: None
    ) -> ClassifyResponse:
        """Return the `top_k` classes of each image. Raises `BackendError` if logits are not finite."""
        # Requests of a batch are answered one right after the other, so the last batch is the only one needed.
        if self._ranked is None or self._ranked.logits is not batched.shared_logits:
            self._ranked = RankedBatch(batched.shared_logits, model.manifest.task)
        ranked, first_row, rows = self._ranked, batched.first_row, len(batched.logits)
        if not ranked.is_finite(first_row, rows):
            raise BackendError(f"{model.name} on {model.backend.name} answered logits that are not finite")
        manifest = model.manifest
        name = request.model or model.name
        response = ClassifyResponse(model=name, model_version=model.version, id=request.id)
        if name != model.name:
            response.served_model = model.name
        timing = response.timing
        timing.preprocess_ms = preprocess_s * 1000
        timing.queue_ms = batched.queue_ms
        timing.compute_ms = batched.compute_ms
        timing.batch_rows = batched.batch_rows
        labels, results = manifest.labels, response.results
        for predictions in ranked.top(request.top_k or 1)[first_row : first_row + rows]:
            add_prediction = results.add().predictions.add
            for index, probability in predictions:
                add_prediction(index=index, label=labels[index], probability=probability)
        if request.return_logits:
            for result, logits in zip(results, batched.logits, strict=True):
                result.logits = logits.astype("<f4", copy=False).tobytes()
        return response


def stream_message(request: ClassifyRequest, answer: ClassifyResponse | Status) -> ClassifyResponse:
    """Return the message by which ClassifyStream answers `request`."""
    if isinstance(answer, ClassifyResponse):
        return answer
    return ClassifyResponse(
        model=request.model,
        model_version=request.model_version,
        id=request.id,
        error=StreamError(
            code=answer.code.value[0],
            message=answer.message,
            error_name=answer.error_name,
            retry_after_ms=answer.retry_after_ms,
        ),
    )
