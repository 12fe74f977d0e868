"""The description of a served model that `GetModel` returns to a program."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from fuseline.protos.classify_pb2 import GetModelResponse
from fuseline.serve.model_package import Assumption


@dataclass(frozen=True, slots=True)
class ArtifactVerification:
    """How far one artifact, on one backend, was found to agree with eager PyTorch FP32 at the export."""

    artifact: str
    backend: str
    images: int
    agreement: float
    """Share of the images with the same top-1 class, or the same set of labels where the model is multi-label."""
    passed: bool
    accuracy: float | None
    """Share of the images whose top-1 class is the right one; None: their classes are not known."""
    eager_accuracy: float | None
    """That share for eager PyTorch FP32."""


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """The number of batches that are computed side by side, and the figures that it rests on."""

    lanes: int
    reason: str
    """Reason for the number, for people; empty for servers that had no lanes yet."""
    images_per_s: Mapping[int, float]
    """Images/s under load by number of lanes, measured when the server started; empty: not measured."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A served model and its server's limits."""

    name: str
    version: str
    architecture: str
    labels: tuple[str, ...]
    height: int
    width: int
    channels: int
    resize_shorter_side: int
    interpolation: str
    backend: str
    precision: str
    backend_reason: str
    batch_buckets: tuple[int, ...]
    max_images_per_request: int
    max_message_bytes: int
    verification_json: str
    task: str = "single-label"
    """`single-label`, by softmax over all labels, or `multi-label`, each label by its own sigmoid."""
    crop_offset: str = "rounded"
    assumptions: tuple[Assumption, ...] = ()
    """Everything that was assumed at the export; `is_open` where nothing has settled it."""
    verification: tuple[ArtifactVerification, ...] = ()
    lanes: LaneFigures = LaneFigures(1, "", MappingProxyType({}))
    half_share: float | None = None
    """Share of the convolutions and matrix products, 0 to 1, that the runtime itself says it computes in BF16; None
    where it wasn't asked to."""
    served_model: str = ""
    """Name of the model, where `name` is an alias."""


def description_from_response(response: GetModelResponse) -> ModelDescription:
    """Return the description in the response of a server of this version or an earlier one."""
    plain = {field.name: getattr(response, field.name) for field in fields(ModelDescription)}
    return ModelDescription(
        **plain
        | {
            "labels": tuple(response.labels),
            "half_share": response.half_share if response.HasField("half_share") else None,
            "batch_buckets": tuple(response.batch_buckets),
            # Servers of earlier versions leave these out, and have one of each.
            "task": response.task or "single-label",
            "crop_offset": response.crop_offset or "rounded",
            "assumptions": tuple(
                Assumption(
                    key=assumption.key,
                    value=assumption.value,
                    meaning=assumption.meaning,
                    alternatives=tuple(assumption.alternatives),
                    flag=assumption.flag,
                    settled_by=assumption.settled_by if assumption.HasField("settled_by") else None,
                )
                for assumption in response.assumptions
            ),
            "lanes": LaneFigures(
                response.lanes.lanes or 1, response.lanes.reason, MappingProxyType(dict(response.lanes.images_per_s))
            ),
            "verification": tuple(
                ArtifactVerification(
                    artifact=result.artifact,
                    backend=result.backend,
                    images=result.images,
                    agreement=result.agreement,
                    passed=result.passed,
                    accuracy=result.accuracy if result.HasField("accuracy") else None,
                    eager_accuracy=result.eager_accuracy if result.HasField("eager_accuracy") else None,
                )
                for result in response.verification
            ),
        }
    )
