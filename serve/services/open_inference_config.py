"""A model in the Open Inference Protocol: its metadata, its configuration as Triton has it, its statistics, aliases."""

from collections.abc import Iterable, Sequence

from fuseline.protos.open_inference_pb2 import (
    TYPE_FP32,
    InferBatchStatistics,
    InferStatistics,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelMetadataResponse,
    ModelOutput,
    ModelParameter,
    ModelQueuePolicy,
    ModelStatistics,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    RepositoryIndexResponse,
    StatisticDuration,
)
from fuseline.serve.backends.registry import backend_entry
from fuseline.serve.batching.requests import INTERACTIVE
from fuseline.serve.metrics.inference_statistics import DurationSum, InferenceStatistics
from fuseline.serve.model import Model
from fuseline.serve.model_package import MANIFEST_NAME
from fuseline.serve.model_settings import settings_of_model
from fuseline.serve.routing.routes import AliasEntry
from fuseline.serve.services.open_inference_outputs import OUTPUT_DATATYPE
from fuseline.serve.services.priority import PRIORITY_LEVELS
from fuseline.serve.settings import Settings
from fuseline.serve.version_policy import VersionPolicy

_LARGEST_UINT32 = 2**32 - 1
_LARGEST_INT64 = 2**63 - 1
_INT64_DIGITS = len(str(_LARGEST_INT64))


def metadata_of(model: Model, versions: Sequence[str]) -> ModelMetadataResponse:
    """Return the tensors of `model`, and the served `versions`; in shapes -1 stands for the number of images."""
    manifest = model.manifest
    tensor = ModelMetadataResponse.TensorMetadata
    return ModelMetadataResponse(
        name=manifest.name,
        versions=versions,
        platform=_platform(model),
        inputs=[tensor(name=manifest.input.name, datatype=manifest.input.datatype, shape=(-1, *model.row_shape))],
        outputs=[tensor(name=manifest.output_name, datatype=OUTPUT_DATATYPE, shape=(-1, manifest.classes))],
    )


def config_of(model: Model, versions: Sequence[str], settings: Settings) -> ModelConfig:
    """Return the configuration of `model`, whose name has the served `versions`.

    `max_batch_size` is the number of images that a client may send at once; the preferred sizes are those of the
    batches that are formed. The instances are the model's lanes.
    """
    manifest = model.manifest
    settings = settings_of_model(settings, manifest)
    # Of packages that the command line names, all are served.
    version_policy = model.version_policy or VersionPolicy(len(versions))
    parameters = {}
    # Softmax is what clients do with logits unless told otherwise.
    if manifest.task != "single-label":
        parameters["task"] = ModelParameter(string_value=manifest.task)
    if any(_integer(version) is None for version in version_policy.given or ()):
        parameters["version_policy"] = ModelParameter(string_value=str(version_policy))
    return ModelConfig(
        name=manifest.name,
        platform=_platform(model),
        backend=model.backend.name,
        version_policy=_version_policy(version_policy),
        max_batch_size=settings.max_images_per_request,
        input=[
            ModelInput(
                name=manifest.input.name,
                data_type=f"TYPE_{manifest.input.datatype}",
                format=f"FORMAT_{manifest.input.layout}",
                dims=manifest.input.row_shape,
            )
        ],
        output=[
            ModelOutput(
                name=manifest.output_name, data_type=TYPE_FP32, dims=[manifest.classes], label_filename=MANIFEST_NAME
            )
        ],
        instance_group=[_instances(model)],
        dynamic_batching=ModelDynamicBatching(
            priority_levels=PRIORITY_LEVELS,
            default_priority_level=INTERACTIVE,
            preferred_batch_size=model.backend.buckets,
            max_queue_delay_microseconds=round(1000 * settings.max_delay_ms),
            default_queue_policy=ModelQueuePolicy(
                timeout_action=ModelQueuePolicy.REJECT,
                default_timeout_microseconds=max(1, round(1000 * settings.max_queue_ms)),
                allow_timeout_override=True,
                # Each request has at least one of the rows that may wait.
                max_queue_size=min(settings.max_queue_rows, _LARGEST_UINT32),
            ),
        ),
        model_transaction_policy=ModelTransactionPolicy(decoupled=False),
        parameters=parameters,
    )


def statistics_of(model: Model, statistics: InferenceStatistics) -> ModelStatistics:
    """Return the statistics of `model` in the protocol's form.

    The input and output of tensors is counted, because perf_analyzer ends where the three compute counts differ, but
    not timed: its time is part of `success` alone.
    """
    return ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.rows,
        execution_count=statistics.batches,
        inference_stats=InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=StatisticDuration(count=statistics.compute.count),
            compute_infer=_duration(statistics.compute),
            compute_output=StatisticDuration(count=statistics.compute.count),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=rows,
                compute_input=StatisticDuration(count=compute.count),
                compute_infer=_duration(compute),
                compute_output=StatisticDuration(count=compute.count),
            )
            for rows, compute in sorted(statistics.compute_by_batch_rows.items())
        ],
    )


def alias_index(entries: Iterable[AliasEntry], *, is_ready: bool) -> list[RepositoryIndexResponse.ModelIndex]:
    """Return a row for each target of each alias; `is_ready` says whether the server takes requests."""
    rows = []
    for alias, target, weight, model in entries:
        share = "" if weight == 1 else f", {weight:.4g} of the requests"
        rows.append(
            RepositoryIndexResponse.ModelIndex(
                name=alias,
                version=target.version if model is None else model.version,
                state="READY" if is_ready and model is not None else "UNAVAILABLE",
                reason=f"alias of {target}{share}{'' if model is not None else '; it takes no requests now'}",
            )
        )
    return rows


def _version_policy(policy: VersionPolicy) -> ModelVersionPolicy:
    if policy.given is not None:
        versions = [number for version in policy.given if (number := _integer(version)) is not None]
        return ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=versions))
    if policy.count is None:
        return ModelVersionPolicy(all=ModelVersionPolicy.All())
    return ModelVersionPolicy(latest=ModelVersionPolicy.Latest(num_versions=policy.count))


def _integer(version: str) -> int | None:
    """Return `version` as Triton's versions are, integers of 64 bits; None: it is none."""
    if not (version.isascii() and version.isdecimal() and len(version) <= _INT64_DIGITS):
        return None
    number = int(version)
    return number if str(number) == version and number <= _LARGEST_INT64 else None


def _instances(model: Model) -> ModelInstanceGroup:
    # Triton names a group that its user has not named so. The GPU has its number among those that this process sees.
    on_gpu = model.backend.device != "CPU"
    return ModelInstanceGroup(
        name=f"{model.name}_0",
        count=model.lanes.lanes,
        kind=ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU,
        gpus=[0] if on_gpu else [],
    )


def _platform(model: Model) -> str:
    """Return the platform as Triton names it: the runtime and the format that it runs."""
    entry = backend_entry(model.backend.name)
    return f"{entry.name}_onnx" if "onnx" in entry.formats else f"{entry.name}_plan"


def _duration(total: DurationSum) -> StatisticDuration:
    return StatisticDuration(count=total.count, ns=total.ns)
