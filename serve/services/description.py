"""The answer to `GetModel`: a served model, and its server's limits."""

import json

from fuseline.protos.classify_pb2 import Assumption, GetModelResponse, Lanes, Verification
from fuseline.serve.model import Model
from fuseline.serve.settings import Settings


def response_from_model(model: Model, settings: Settings) -> GetModelResponse:
    """Return the answer to `GetModel` for `model` on a server with `settings`."""
    manifest = model.manifest
    spec = manifest.input
    return GetModelResponse(
        name=manifest.name,
        version=model.version,
        architecture=manifest.architecture,
        labels=manifest.labels,
        height=spec.height,
        width=spec.width,
        channels=spec.channels,
        resize_shorter_side=spec.preprocessing.resize_shorter_side,
        interpolation=spec.preprocessing.interpolation,
        crop_offset=spec.preprocessing.crop_offset,
        task=manifest.task,
        backend=model.backend.name,
        precision=model.backend.precision,
        half_share=model.backend.half_share,
        backend_reason=model.backend_reason,
        lanes=Lanes(**model.lanes.model_dump()),
        batch_buckets=model.backend.buckets,
        max_images_per_request=settings.max_images_per_request,
        max_message_bytes=settings.max_message_bytes,
        verification_json=json.dumps([result.model_dump(mode="json") for result in manifest.verification]),
        assumptions=[Assumption(**assumption.model_dump()) for assumption in manifest.assumptions],
        verification=[
            Verification(
                artifact=result.artifact,
                backend=result.backend,
                images=result.images,
                agreement=result.agreement,
                passed=result.passed,
                accuracy=result.accuracy,
                eager_accuracy=result.eager_accuracy,
            )
            for result in manifest.verification
        ],
    )
