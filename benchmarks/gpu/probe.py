"""Which engines TensorRT for RTX builds and runs on the GPU at hand: `fuseline bench gpu --probe`.

Its list of compute capabilities is what it can build for ahead of time. Whether a GPU that is not in it (the H100's
9.0) is served when no capability is set, its documentation doesn't say; so every way is tried.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from fuseline.benchmarks.gpu.device import gpu_facts
from fuseline.benchmarks.gpu.subject import GpuSubject, open_gpu_subject
from fuseline.benchmarks.harness.subject import SMALL_ARCHITECTURE
from fuseline.benchmarks.harness.worker_process import Answerer, WorkerProcess, WorkFailedError
from fuseline.serve.backends.engine.graph import graph_for_tensorrt
from fuseline.serve.backends.engine.library import check, engine_from_plan, import_library, logger_of, recent_errors
from fuseline.serve.backends.gpu.cuda import open_cuda
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend
from fuseline.serve.errors import BackendError, BackendUnavailableError, FuselineError
from fuseline.serve.model_package import INPUT_NAME
from fuseline.serve.reference import check_reference

UNSET = "unset"
"""A build whose configuration is left as the library makes it."""
_ROWS = (1, 8)
_TIMEOUT_S = 300.0


def probe_rtx(on_attempt: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """What happened, ready for JSON: the GPU, the library, and of every capability that can be set what came of it.

    `on_attempt` is called with each as soon as it is known.
    """
    found: dict[str, Any] = {"gpu": gpu_facts(), "capability": None, "library_version": None, "attempts": []}
    try:
        found["capability"] = open_cuda().gpu().capability
    except (BackendUnavailableError, BackendError) as error:
        found["why_no_gpu"] = str(error)
    try:
        trt = import_library("tensorrt_rtx")
    except BackendUnavailableError as error:
        return found | {"answer": f"not tried: {error}"}
    found["library_version"] = trt.__version__
    with open_gpu_subject(SMALL_ARCHITECTURE, input_side=None, rows=_ROWS[-1]) as (subject, _, _):
        capabilities = (UNSET, *trt.ComputeCapability.__members__)
        found["attempts"] = _attempts(capabilities, subject, found["capability"] is not None, on_attempt)
    return found | {"answer": answer_of(found)}


def answer_of(found: dict[str, Any]) -> str:
    """One sentence: which engines run here."""
    running = [attempt["asked"] for attempt in found["attempts"] if attempt.get("ran")]
    built = [attempt["asked"] for attempt in found["attempts"] if attempt.get("built")]
    if found["capability"] is None:
        return f"not known: {found['why_no_gpu']}; built ahead of time, and not run: {', '.join(built) or 'none'}"
    if running:
        return f"on {found['capability']} these engines run and answer rightly: {', '.join(running)}"
    return f"no engine of TensorRT for RTX runs on {found['capability']}; built: {', '.join(built) or 'none'}"


def _attempts(
    capabilities: Sequence[str], subject: GpuSubject, run: bool, on_attempt: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """What came of each; one that fails or crashes costs its process, and the next gets a fresh one."""
    records = []
    worker: WorkerProcess | None = None
    try:
        for asked in capabilities:
            record: dict[str, Any] = {"asked": asked, "built": False}
            records.append(record)
            try:
                if worker is None:
                    worker = WorkerProcess(start_attempts)
                    worker.ready(_TIMEOUT_S)
                plan, seconds = worker.ask("build", asked, subject, timeout_s=_TIMEOUT_S)
                record |= {"built": True, "seconds": seconds, "plan_bytes": len(plan)}
                if run:
                    record |= worker.ask("run", plan, subject, timeout_s=_TIMEOUT_S)
            except WorkFailedError as failure:
                record["error"] = str(failure)
                if worker is not None:
                    worker.close()
                worker = None
            on_attempt(record)
    finally:
        if worker is not None:
            worker.close()
    return records


def start_attempts() -> Answerer:
    """Answer `build` with a plan and `run` with what came of running it."""

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        return _build(*details) if question == "build" else _run(*details)

    return answer


def _build(asked: str, subject: GpuSubject) -> tuple[bytes, float]:
    """The FP16 graph as an engine for the capability `asked`, by the library's own calls: nothing of ours decides."""
    trt = import_library("tensorrt_rtx")
    started = time.monotonic()
    logger = logger_of(trt)
    logger.recent_errors.clear()
    artifact = subject.package.find("onnx", "fp16")
    assert artifact is not None
    try:
        builder = trt.Builder(logger)
    except TypeError as error:
        raise BackendError(f"no builder: {recent_errors(trt) or error}") from error
    network = check(builder.create_network(0), "create a network", trt)
    parser = trt.OnnxParser(network, logger)
    check(parser.parse(graph_for_tensorrt(subject.package.read(artifact))), "parse the graph", trt)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    row_shape = subject.package.manifest.input.row_shape
    profile.set_shape(INPUT_NAME, *((rows, *row_shape) for rows in (_ROWS[0], _ROWS[-1], _ROWS[-1])))
    config.add_optimization_profile(profile)
    if asked != UNSET:
        config.num_compute_capabilities = 1
        check(config.set_compute_capability(trt.ComputeCapability.__members__[asked], 0), f"target {asked}", trt)
    plan = check(builder.build_serialized_network(network, config), "build the engine", trt)
    return bytes(plan), round(time.monotonic() - started, 2)


def _run(plan: bytes, subject: GpuSubject) -> dict[str, Any]:
    """Deserialise, run through the backend that serves, compare with eager PyTorch; what fails is told."""
    trt = import_library("tensorrt_rtx")
    record: dict[str, Any] = {"loaded": False, "ran": False, "invalid_because": _invalid_because(trt, plan)}
    try:
        engine = engine_from_plan(trt, plan)
        record["loaded"] = True
        cuda = open_cuda()
        backend = TensorRTBackend(
            engine,
            trt,
            cuda,
            row_shape=subject.package.manifest.input.row_shape,
            classes=subject.package.manifest.classes,
            precision="fp16",
            device=cuda.gpu().name,
            buckets=_ROWS,
        )
        try:
            record["difference"] = check_reference(backend, subject.package)
            record["ran"] = True
        finally:
            backend.close()
    except FuselineError as error:
        record["error"] = str(error)
    return record


def _invalid_because(trt: Any, plan: bytes) -> list[str]:
    """What the library reads from the plan's header against running it here."""
    _, flags = trt.Runtime(logger_of(trt)).get_engine_validity(plan)
    return [name for name, flag in trt.EngineInvalidityDiagnostics.__members__.items() if int(flags) & int(flag)]
