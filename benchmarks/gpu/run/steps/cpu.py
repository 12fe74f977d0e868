"""Step 7: what the cores do for the CPU backends: instances that share them out, and lanes of a server."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.run.job import Emit, Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row, failure_row
from fuseline.benchmarks.gpu.run.steps.serving import START_S, Load, lanes_flags, measured
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.harness.timing import timed_calls
from fuseline.benchmarks.harness.worker_process import Answerer, WorkerProcess, WorkFailedError
from fuseline.benchmarks.load.target import connect, expect_logits_of
from fuseline.serve.backends.base import Backend, OpenRequest
from fuseline.serve.backends.registry import REGISTRY, backend_entry, title_of
from fuseline.serve.errors import FuselineError
from fuseline.serve.model_package import ModelPackage, load_package
from fuseline.serve.reference import check_reference

TITLES = {entry.name: title_of(entry.name) for entry in REGISTRY if entry.device == "cpu"}
_BATCH = 8
_READY_S = 60.0
_SERVED = (("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "bf16"))
"""Backends and precisions of the servers."""
_CALLERS = 32


def run(job: Job, emit: Emit) -> None:
    """Measure every backend with each number of instances, and served with as many lanes, while there is time.

    A server that chooses its lanes comes after one instance.
    """
    if "package" not in job.found:
        raise NotHereError("the package step left no package")
    # A server with ONNX Runtime would compute on the GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cores = sorted(os.sched_getaffinity(0))
    single: dict[str, float] = {}
    for instances in _instances(len(cores)):
        for backend in TITLES:
            _bare(job, emit, backend, cores, instances, single)
        lanes = [None] if instances == 1 else []
        lanes += [instances] if instances in job.plan.lanes else []
        for number, (backend, precision) in itertools.product(lanes, _SERVED):
            _served(job, emit, backend, precision, number, single.get(backend))


def _bare(job: Job, emit: Emit, backend: str, cores: list[int], instances: int, single: dict[str, float]) -> None:
    """Measure so many instances that share `cores`; `single` keeps what one of a backend computes."""
    threads = len(cores) // instances
    what = f"{TITLES[backend]} FP32, batch {_BATCH}: {instances} x {threads} cores"
    if job.left_s < 2 * job.plan.seconds:
        emit(Row(what=what, status="dropped", reason="no time was left"))
        return
    try:
        images_per_s = _together(job, backend, [cores[n * threads : (n + 1) * threads] for n in range(instances)])
    except WorkFailedError as failure:
        status = "dropped" if failure.kind == "too slow" else failure.kind
        emit(Row(what=what, status=status, reason=str(failure)))
        return
    if instances == 1:
        single[backend] = images_per_s
    ratio = images_per_s / single[backend] if backend in single else None
    emit(Row(what=what, figures={"images/s": images_per_s, "x one instance": ratio}))


def _served(
    job: Job, emit: Emit, backend: str, precision: str, lanes: int | None, bare_images_per_s: float | None
) -> None:
    """Measure a server; `bare_images_per_s` is what one instance on all cores computes in FP32."""
    load = Load(_CALLERS)
    what = f"{TITLES[backend]} {precision.upper()}, --lanes {lanes or 'auto'}: {load.title}"
    subject = Subject("served", Path(job.found["package"]), None)
    request = OpenRequest("cpu", (1, _BATCH), precision)
    if (reason := backend_entry(backend, "cpu").load().why_unavailable(subject.package, request)) is not None:
        emit(Row(what=what, status="not here", reason=reason))
        return
    if job.left_s < START_S + job.plan.seconds:
        emit(Row(what=what, status="dropped", reason="no time was left"))
        return
    flags = ("--backend", backend, "--precision", precision, *lanes_flags(lanes))
    try:
        with started_server(subject.package_folder, *flags) as server:
            print(server.announcement)
            target = expect_logits_of(subject, connect(server.address, server.pid))
            emit(measured(what, target, load, job.plan.seconds, bare_images_per_s))
    except FuselineError as error:
        emit(failure_row(what, error))


def _instances(cores: int) -> Iterator[int]:
    """1, 2, 4 and so on, up to an instance for each core."""
    instances = 1
    while instances <= cores:
        yield instances
        instances *= 2


def _together(job: Job, backend: str, shares: list[list[int]]) -> float:
    """Images a second of an instance on each of `shares`, all at work at the same time."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(WorkerProcess(start_instance, backend, job.found["package"], share)) for share in shares
        ]
        for worker in workers:
            worker.ready(min(_READY_S, job.left_s))
        with ThreadPoolExecutor(len(workers)) as threads:
            timeout_s = job.left_s
            asked = [threads.submit(worker.ask, "measure", job.plan.seconds, timeout_s=timeout_s) for worker in workers]
            return sum(each.result() for each in asked)


def open_fp32_on_cpu(backend: str, package: ModelPackage, *, buckets: tuple[int, ...], threads: int = 0) -> Backend:
    """Open `backend` for the CPU, though a GPU may be here, which `open_backend` would take.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    return backend_entry(backend, "cpu").load().open(package, OpenRequest("cpu", buckets, "fp32", threads))


def start_instance(backend: str, package_folder: str, cores: list[int]) -> Answerer:
    """Open `backend` for the CPU on `cores` alone, held against the package's reference; answer `measure`."""
    # Before the runtime counts its cores and starts its threads.
    os.sched_setaffinity(0, cores)
    package = load_package(Path(package_folder))
    opened = open_fp32_on_cpu(backend, package, buckets=(1, _BATCH), threads=len(cores))
    check_reference(opened, package)
    pixels = generated_pictures(package.manifest.input.pixel_shape, _BATCH)

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        assert question == "measure"
        calls = timed_calls(lambda: opened.infer(pixels), *details)
        return _BATCH * len(calls) / sum(calls)

    return answer
