"""The backend against a fake GPU, and against the real libraries as far as they go without one."""

import logging
import re
import threading

import numpy as np
import pytest

from fuseline.serve.backends.engine.library import engine_from_plan, logger_of
from fuseline.serve.backends.gpu.cuda import Cuda, open_cuda
from fuseline.serve.backends.tensorrt_backend import SLOTS, TensorRTBackend
from fuseline.serve.errors import BackendError, BackendUnavailableError, PackageError
from fuseline.serve.model_package import ModelPackage
from tests.export.small_graph import ROW_SHAPE, small_graph
from tests.fakes.gpu import Error, FakeCudart, FakeEngine, FakeTensorRT, expected_logits
from tests.serve.backends.engine_packages import (
    GRAPHS,
    details_of,
    open_tensorrt,
    package_of,
    put_gpu_in,
    why_unavailable,
)

BUCKETS = (1, 2, 8)
BATCH = [
    *("cudaMemcpyAsync", "cudaEventRecord", "cudaStreamWaitEvent"),
    *("cudaMemcpyAsync", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize"),
]
"""The calls of one batch."""


def gpu_is_here() -> bool:
    try:
        open_cuda()
    except BackendUnavailableError:
        return False
    return True


without_gpu = pytest.mark.skipif(gpu_is_here(), reason="tells what happens on a machine without a GPU")


@pytest.fixture
def cudart():
    return FakeCudart()


@pytest.fixture
def engine(cudart):
    return FakeEngine(cudart)


def open_backend(engine, *, trt=None, buckets=BUCKETS, classes=None):
    return TensorRTBackend(
        engine,
        trt or FakeTensorRT(),
        Cuda(engine.cudart),
        row_shape=(4, 4, 3),
        classes=classes or engine.classes,
        precision="fp16",
        device="Fake RTX 4090",
        buckets=buckets,
    )


def pixels_of(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4, 3), np.uint8)


# Running


def test_every_bucket_gives_the_engines_logits_for_the_pixels_it_was_given(engine):
    backend = open_backend(engine)
    for seed, rows in enumerate((8, 1, 2, 8, 2, 1)):
        pixels = pixels_of(rows, seed)
        logits = backend.infer(pixels)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected_logits(pixels, 3), rtol=1e-6)


def test_logits_belong_to_the_caller(engine):
    backend = open_backend(engine)
    first = backend.infer(pixels_of(8, 1))
    kept = first.copy()
    backend.infer(pixels_of(8, 2))
    backend.close()
    np.testing.assert_array_equal(first, kept)


def test_pixels_that_are_a_view_are_copied_as_they_look(engine):
    pixels = pixels_of(8)[::-1, :, ::-1]
    np.testing.assert_allclose(open_backend(engine).infer(pixels), expected_logits(pixels, 3), rtol=1e-6)


def test_a_batch_crosses_on_one_stream_is_one_graph_launch_on_another_and_one_wait(engine, cudart):
    backend = open_backend(engine)
    del cudart.calls[:]
    backend.infer(pixels_of(2))
    assert cudart.calls == BATCH


def test_each_bucket_has_a_context_that_ran_once_before_it_was_captured(engine):
    open_backend(engine)
    assert [context.shape[0] for context in engine.contexts] == list(BUCKETS)
    assert all(context.runs == ["run", "captured"] for context in engine.contexts)


def test_contexts_share_buffers_and_activation_memory(engine, cudart):
    open_backend(engine)
    assert len({tuple(context.addresses.items()) for context in engine.contexts}) == 1
    assert len({context.scratch for context in engine.contexts}) == 1
    assert {context.how.name for context in engine.contexts} == {"USER_MANAGED"}
    assert cudart.calls.count("cudaMalloc") == 3 + 2
    assert cudart.calls.count("cudaMallocHost") == 2 * 2


def test_an_engine_without_activation_memory_opens(cudart):
    backend = open_backend(FakeEngine(cudart, scratch_bytes=0))
    assert backend.infer(pixels_of(1)).shape == (1, 3)


def test_tensorrt_for_rtx_compiles_kernels_before_they_are_captured(engine):
    trt = FakeTensorRT(rtx=True)
    open_backend(engine, trt=trt)
    for context in engine.contexts:
        assert context.how.strategy.name == "USER_MANAGED"
        strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert context.how.dynamic_shapes_kernel_specialization_strategy == strategy


def test_another_thread_may_infer_and_close(engine, cudart):
    backend = open_backend(engine)
    results = []

    def work():
        results.append(backend.infer(pixels_of(2)))
        backend.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_allclose(results[0], expected_logits(pixels_of(2), 3), rtol=1e-6)
    assert not cudart.live


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((16, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 5, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
    ],
    ids=["no bucket", "above the largest bucket", "no rows", "other shape", "other type"],
)
def test_a_batch_it_was_not_prepared_for_is_refused_and_the_next_runs(pixels, engine):
    backend = open_backend(engine)
    with pytest.raises(BackendError, match=r"it takes uint8 of shape \(rows, 4, 4, 3\) with rows one of 1, 2, 8"):
        backend.infer(pixels)
    assert backend.infer(pixels_of(2)).shape == (2, 3)


@pytest.mark.parametrize(("number", "function"), list(enumerate(BATCH)))
def test_whichever_call_of_a_batch_fails_it_raises_cudas_words_and_the_next_batches_run(
    number, function, engine, cudart
):
    backend = open_backend(engine)
    cudart.failures[len(cudart.calls) + number] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match=rf"{function} failed: words for cudaErrorIllegalAddress \(cudaError 700\)"):
        backend.infer(pixels_of(2))
    for seed in range(5, 5 + 2 * SLOTS):
        np.testing.assert_allclose(backend.infer(pixels_of(2, seed)), expected_logits(pixels_of(2, seed), 3), rtol=1e-6)


def test_the_pixels_of_a_batch_cross_while_the_one_before_is_computed(engine, cudart):
    backend = open_backend(engine)
    del cudart.calls[:]
    first_waits, go_on = threading.Event(), threading.Event()
    answers = {}

    def hold_the_first():
        if not first_waits.is_set():
            first_waits.set()
            assert go_on.wait(30)

    cudart.before_event_wait = hold_the_first
    first = threading.Thread(target=lambda: answers.update(first=backend.infer(pixels_of(8, 1))))
    first.start()
    assert first_waits.wait(30)
    answers["second"] = backend.infer(pixels_of(2, 2))
    # The second was sent and answered though the first one's thread hasn't come back.
    assert cudart.calls == [*BATCH[:-1], *BATCH]
    go_on.set()
    first.join(30)
    for name, rows, seed in (("first", 8, 1), ("second", 2, 2)):
        np.testing.assert_allclose(answers[name], expected_logits(pixels_of(rows, seed), 3), rtol=1e-6)


def test_pixels_never_wait_behind_a_network_and_a_network_always_for_its_pixels(engine, cudart):
    streams = []
    copy, wait = cudart.cudaMemcpyAsync, cudart.cudaStreamWaitEvent

    def copying(target, source, bytes, kind, stream):
        streams.append((kind.name, stream))
        return copy(target, source, bytes, kind, stream)

    def waiting(stream, event, flags):
        streams.append(("wait", stream))
        return wait(stream, event, flags)

    backend = open_backend(engine)
    cudart.cudaMemcpyAsync, cudart.cudaStreamWaitEvent = copying, waiting
    backend.infer(pixels_of(2))
    (_, copies), *others = streams
    assert streams[0][0] == "cudaMemcpyHostToDevice"
    assert [name for name, _ in others] == ["wait", "cudaMemcpyDeviceToDevice", "cudaMemcpyDeviceToHost"]
    assert {stream for _, stream in others}.isdisjoint({copies})


def test_many_threads_get_their_own_answers(engine, cudart):
    backend = open_backend(engine)
    answers = {}

    def work(number):
        for seed in range(number, 40, 4):
            answers[seed] = backend.infer(pixels_of((1, 2, 8)[seed % 3], seed))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == list(range(40))
    for seed, logits in answers.items():
        np.testing.assert_allclose(logits, expected_logits(pixels_of((1, 2, 8)[seed % 3], seed), 3), rtol=1e-6)


# Opening and closing


def test_close_releases_everything_and_can_be_called_again(engine, cudart):
    backend = open_backend(engine)
    assert cudart.live
    backend.close()
    assert not cudart.live
    calls = len(cudart.calls)
    backend.close()
    assert len(cudart.calls) == calls
    with pytest.raises(BackendError, match="was closed"):
        backend.infer(pixels_of(1))


def test_graphs_go_before_the_memory_they_use_and_the_streams_go_last(engine, cudart):
    backend = open_backend(engine)
    del cudart.calls[:]
    backend.close()
    assert cudart.calls == [
        *["cudaGraphExecDestroy"] * 3,
        *["cudaFree"] * 3,
        *["cudaEventDestroy", "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaFreeHost"] * SLOTS,
        *["cudaStreamDestroy"] * 2,
    ]


def calls_while_opening():
    cudart = FakeCudart()
    backend = open_backend(FakeEngine(cudart))
    calls = list(enumerate(cudart.calls))
    backend.close()
    return calls


@pytest.mark.parametrize(("number", "function"), calls_while_opening())
def test_whichever_cuda_call_fails_while_opening_nothing_is_left(number, function, engine, cudart, caplog):
    cudart.failures[number] = Error.cudaErrorMemoryAllocation
    if function == "cudaGraphDestroy":
        # Releasing what is no longer needed: logged, and the backend opens.
        open_backend(engine).close()
        assert "cudaGraphDestroy failed: words for cudaErrorMemoryAllocation" in caplog.text
    else:
        with pytest.raises(BackendError, match=rf"{function} failed: words for cudaErrorMemoryAllocation"):
            open_backend(engine)
    assert not cudart.live
    assert cudart.capturing is None


@pytest.mark.parametrize(
    "refused",
    [
        "create_execution_context",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3 when run",
        "execute_async_v3 when captured",
    ],
)
def test_whatever_tensorrt_refuses_while_opening_nothing_is_left(refused, engine, cudart):
    engine.refused = refused
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.0 could not"):
        open_backend(engine)
    assert not cudart.live
    assert cudart.capturing is None


def test_tensorrts_own_words_are_in_the_error(engine):
    trt = FakeTensorRT()
    engine.refused = "set_input_shape"
    original = engine.create_execution_context

    def complain(how):
        logger_of(trt).log(trt.ILogger.Severity.ERROR, "profile 0 does not\n  take that")
        return original(how)

    engine.create_execution_context = complain
    with pytest.raises(BackendError, match="could not take 1 rows: profile 0 does not take that"):
        open_backend(engine, trt=trt)


def test_a_failed_release_is_logged_and_the_rest_is_released(engine, cudart, caplog):
    backend = open_backend(engine)
    cudart.failures[len(cudart.calls)] = Error.cudaErrorIllegalAddress
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert "cudaGraphExecDestroy failed: words for cudaErrorIllegalAddress" in caplog.text
    assert not cudart.live


def test_an_engine_of_another_model_is_refused_before_anything_is_allocated(engine, cudart):
    with pytest.raises(PackageError, match=r"logits FLOAT \(-1, 3\), the manifest describes .* \(-1, 1000\)"):
        open_backend(engine, classes=1000)
    assert not cudart.calls


# Drivers


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"driver": 0}, "no NVIDIA driver is installed"),
        ({"driver": 12040}, r"serves CUDA 12\.4, cuda-bindings needs 13\.0; update the driver"),
        ({"devices": 0}, r"no GPU is visible \(words for cudaErrorNoDevice .* CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_missing_gpu_is_told_apart_from_a_missing_or_old_driver(machine, reason):
    assert re.search(reason, Cuda(FakeCudart(**machine)).why_no_gpu())


def test_the_gpu_is_named_as_engines_name_it():
    gpu = Cuda(FakeCudart(capability=(12, 0))).gpu()
    assert (gpu.name, gpu.capability, gpu.memory_bytes) == ("Fake RTX 4090", "sm120", 24 * 2**30)


# The real libraries, without a GPU


@without_gpu
def test_on_a_machine_without_a_gpu_the_real_cuda_says_so(tmp_path):
    pytest.importorskip("cuda.bindings.runtime")
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", details_of(), b"plan"))
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver|too old|no GPU is visible"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert why_unavailable(package) is not None


@without_gpu
def test_the_real_cuda_takes_the_arguments_it_is_given_and_refuses_for_want_of_a_driver():
    cuda = Cuda(pytest.importorskip("cuda.bindings.runtime"))
    calls = {
        "cudaGetDevice": cuda.gpu,
        "cudaStreamCreateWithFlags": cuda.stream().__enter__,
        "cudaMalloc": cuda.device_memory(16).__enter__,
        "cudaMallocHost": cuda.pinned_memory(16).__enter__,
        "cudaStreamBeginCapture": cuda.graph(1, lambda: None).__enter__,
        "cudaMemcpyAsync": lambda: cuda.copy_to_device(4096, 8192, 16, 1),
        "cudaStreamSynchronize": lambda: cuda.synchronise(1),
        "cudaEventCreateWithFlags": cuda.event().__enter__,
        "cudaEventRecord": lambda: cuda.record(1, 1),
        "cudaStreamWaitEvent": lambda: cuda.hold_until(1, 1),
        "cudaEventSynchronize": lambda: cuda.wait(1),
    }
    for function, call in calls.items():
        with pytest.raises(BackendError, match=rf"{function} failed: CUDA driver .* \(cudaError 35\)"):
            call()
    with pytest.raises(BackendError, match=r"cudaMemcpyAsync failed: .* \(cudaError 35\)"):
        cuda.copy_to_host(8192, 4096, 16, 1)
    with pytest.raises(BackendError, match=r"cudaMemcpyAsync failed: .* \(cudaError 35\)"):
        cuda.copy_on_device(8192, 4096, 16, 1)


@pytest.fixture(scope="module")
def real_plan():
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build an engine")
    from fuseline.serve.backends.engine.builder import build_engine

    return build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=8)


@without_gpu
def test_a_real_engine_is_refused_by_the_real_library_with_its_reason(real_plan, tmp_path, monkeypatch):
    details = ("ada.plan", real_plan.library, "fp16", real_plan.details, real_plan.plan)
    package = package_of(tmp_path / "small", details)
    put_gpu_in(monkeypatch, FakeCudart(capability=(8, 9)))
    assert why_unavailable(package, buckets=BUCKETS) is None
    refusal = r"ada\.plan: TensorRT for RTX 1\..* refuses the engine.*CUDA driver.*`fuseline engine .* --for sm89`"
    with pytest.raises(BackendUnavailableError, match=refusal):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)


@pytest.mark.parametrize("plan", [b"no engine " * 50, b"x"], ids=["text", "short"])
def test_what_is_no_engine_is_refused_with_the_librarys_diagnosis(plan):
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendUnavailableError, match=r"refuses the engine \(malformed engine\)"):
        engine_from_plan(trt, plan)


# On a GPU


@pytest.fixture(scope="module")
def gpu_package(tmp_path_factory):
    from fuseline.serve.backends.engine.builder import build_engine

    build = build_engine(GRAPHS["fp16"], precision="fp16", capability=None, max_batch=32)
    engine = (f"{build.key}.plan", build.library, "fp16", build.details, build.plan)
    return package_of(tmp_path_factory.mktemp("gpu") / "small", engine)


@pytest.mark.gpu
def test_on_a_gpu_logits_are_those_of_onnx_runtime_on_the_cpu(gpu_package: ModelPackage):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(small_graph(), providers=["CPUExecutionProvider"])
    backend = open_tensorrt(gpu_package, precision="fp16", buckets=(1, 4, 32))
    try:
        for seed, rows in enumerate((32, 1, 4, 32, 4)):
            pixels = np.random.default_rng(seed).integers(0, 256, (rows, *ROW_SHAPE), np.uint8)
            expected = session.run(["logits"], {"image": pixels})[0]
            tolerance = 2**-7 * np.abs(expected).max()
            np.testing.assert_allclose(backend.infer(pixels), expected, atol=tolerance, rtol=0)
    finally:
        backend.close()


@pytest.mark.gpu
def test_on_a_gpu_opening_and_closing_leaves_no_memory_behind(gpu_package: ModelPackage):
    from cuda.bindings import runtime

    def free_after(times):
        for _ in range(times):
            open_tensorrt(gpu_package, precision="fp16", buckets=(1, 32)).close()
        return runtime.cudaMemGetInfo()[1]

    settled = free_after(3)
    assert settled - free_after(20) < 2**20


@without_gpu
def test_without_a_gpu_that_is_the_reason_whatever_the_package_holds(tmp_path):
    assert "no NVIDIA driver" in why_unavailable(package_of(tmp_path / "small"))
