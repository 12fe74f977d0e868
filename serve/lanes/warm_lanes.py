"""Prepares a backend's lanes for serving: opened, warmed, proven on the reference, and with a policy that fits them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from fuseline.serve.backends.base import Backend, BackendLane, Infer
from fuseline.serve.batching.policy import BatchPolicy, CpuBatching
from fuseline.serve.lanes.lane_choice import LaneChoice, open_cpu_lanes, open_gpu_lanes
from fuseline.serve.lanes.warm_up import side_by_side, warm_up
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.process.cpu import usable_cpus
from fuseline.serve.reference import check_reference
from fuseline.serve.settings import Settings

ALONE_SHARE = 0.97
"""Share of the lanes' time that a batch with all cores may take to be worth it."""

REST = 12.0
"""Seconds that the cores are left to who is served for each second that a model computes while it is loaded beside."""


@dataclass(frozen=True, slots=True)
class WarmLanes:
    """What a batcher needs to know of a backend that is warm."""

    choice: LaneChoice
    lanes: tuple[Infer, ...]
    """Functions that compute side by side; none: the backend's `infer` is the only lane."""
    policy: BatchPolicy
    seconds_per_bucket: Mapping[int, float]
    """Seconds of a lane's batch while all lanes work, by bucket."""
    alone_seconds_per_bucket: Mapping[int, float]
    """Seconds of a batch that has all cores, by bucket."""


def warm_lanes(
    backend: Backend,
    package: ModelPackage,
    settings: Settings,
    cpu: CpuBatching,
    *,
    beside: LaneChoice | None = None,
) -> WarmLanes:
    """Open the lanes of `backend`, run every bucket of theirs and compare them with the package's reference.

    `cpu` says what makes batches good if the backend computes on the CPU. `beside` is the choice of a model that is
    served on that CPU meanwhile and is to be replaced; None: nothing is. Its number of lanes is taken, as measuring
    would find what the other one leaves, and between calls the cores are left to it for a while.

    Raises:
        PackageError: the model doesn't do what the manifest says, or its reference is damaged.
        VerificationError: answers on the package's reference images are not PyTorch's.
        BackendError: the runtime failed, or has no memory for the lanes that were asked for.
    """
    spec = package.manifest.input
    row_pixels, threads = spec.height * spec.width, settings.threads or usable_cpus()
    on_cpu, buckets = backend.device == "CPU", backend.buckets
    if on_cpu:
        # A larger --max-batch tells no more about lanes, and its calls would take longer than measuring may.
        lane_rows = cpu.lane_buckets(row_pixels, 1)[-1]
        max_rows = min(lane_rows, settings.max_batch or lane_rows)
        if beside is not None and settings.lanes is None:
            lanes = backend.open_lanes(beside.lanes) if beside.lanes > 1 else ()
            choice = LaneChoice(lanes=beside.lanes, reason="as many as the version before")
        else:
            choice, lanes = open_cpu_lanes(backend, package, settings.lanes, threads=threads, max_rows=max_rows)
        if lanes:
            buckets = cpu.lane_buckets(row_pixels, threads / len(lanes), settings.max_batch)
    else:
        choice, lanes = open_gpu_lanes(backend, settings.lanes)
    instance = partial(BackendLane, backend.name, backend.precision, backend.device)
    instances = [instance(buckets, infer) for infer in lanes or (backend.infer,)]
    resting = {"rest": REST} if on_cpu and beside is not None else {}
    seconds = warm_up(instances, package, **resting)
    checks = [partial(check_reference, each, package) for each in instances]
    if resting:
        for check in checks:
            began = time.monotonic()
            check()
            time.sleep(REST * (time.monotonic() - began))
    else:
        side_by_side(checks)
    policy = BatchPolicy(
        buckets,
        max_queue_rows=settings.max_queue_rows,
        max_queue_ms=settings.max_queue_ms,
        max_delay_ms=settings.max_delay_ms,
        latency_target_ms=settings.latency_target,
        lanes=choice.lanes,
        lanes_share_device=not on_cpu,
    )
    if not on_cpu:
        return WarmLanes(choice, lanes, policy, seconds, {})
    cores = max(1, threads // choice.lanes)
    policy = cpu.refined(policy, row_pixels=row_pixels, cores=cores, seconds_per_bucket=seconds)
    if not lanes or not (few := tuple(bucket for bucket in buckets if bucket < 2 * len(lanes))):
        return WarmLanes(choice, lanes, policy, seconds, {})
    with_all_cores = instance(few, backend.infer)
    alone_seconds = warm_up([with_all_cores], package, **resting)
    policy = replace(policy, alone_rows=_alone_rows(policy, seconds, alone_seconds))
    if policy.alone_rows:
        check_reference(instance(policy.alone_buckets, backend.infer), package)
    return WarmLanes(choice, lanes, policy, seconds, alone_seconds)


def _alone_rows(policy: BatchPolicy, seconds: Mapping[int, float], alone_seconds: Mapping[int, float]) -> int:
    """Return the largest number of rows that are computed sooner with all cores than spread over the lanes."""

    def on_lanes(rows: int) -> float:
        share = -(-rows // policy.lanes)
        return seconds[min(bucket for bucket in policy.buckets if bucket >= share)]

    sooner = (rows for rows, took_s in alone_seconds.items() if took_s <= ALONE_SHARE * on_lanes(rows))
    return max(sooner, default=0)
