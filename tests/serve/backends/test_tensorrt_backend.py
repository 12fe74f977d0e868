"""The backend against a fake GPU, and against the real libraries as far as they go without one."""

import gc
import logging
import re
import threading
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from fuseline.serve.backends.engine.library import engine_from_plan, logger_of
from fuseline.serve.backends.gpu.cuda import Cuda, open_cuda
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend
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
    *("cudaMemcpyAsync", "cudaEventRecord"),
    *("cudaStreamWaitEvent", "cudaGraphLaunch", "cudaEventRecord"),
    *("cudaStreamWaitEvent", "cudaMemcpyAsync", "cudaStreamSynchronize"),
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


def test_contexts_share_activation_memory_and_those_of_a_lane_its_buffers(engine, cudart):
    open_backend(engine)
    assert len({tuple(context.addresses.items()) for context in engine.contexts}) == 1
    assert len({context.scratch for context in engine.contexts}) == 1
    assert {context.how.name for context in engine.contexts} == {"USER_MANAGED"}
    assert cudart.calls.count("cudaMalloc") == 1 + 2
    assert cudart.calls.count("cudaMallocHost") == 2


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
    for seed in range(5, 8):
        np.testing.assert_allclose(backend.infer(pixels_of(2, seed)), expected_logits(pixels_of(2, seed), 3), rtol=1e-6)


# Lanes


def test_each_lane_has_buffers_and_a_stream_of_its_own_and_a_graph_for_each_bucket(engine, cudart):
    backend = open_backend(engine)
    lanes = backend.open_lanes(3)
    assert len(lanes) == 3
    for kind, number in {"executable": 3 * len(BUCKETS), "device": 1 + 3 * 2, "pinned": 3 * 2, "stream": 1 + 3}.items():
        assert [held for held, _ in cudart.live.values()].count(kind) == number
    assert [context.shape[0] for context in engine.contexts] == [*BUCKETS] * 3
    assert all(context.runs == ["run", "captured"] for context in engine.contexts)
    assert len({tuple(context.addresses.items()) for context in engine.contexts}) == 3
    assert len({context.scratch for context in engine.contexts}) == 1


def test_lanes_that_are_open_are_not_opened_again(engine, cudart):
    backend = open_backend(engine)
    backend.open_lanes(2)
    graphs, calls = cudart.calls.count("cudaGraphInstantiate"), len(cudart.calls)
    assert len(backend.open_lanes(1)) == 1
    assert len(backend.open_lanes(2)) == 2
    assert len(cudart.calls) == calls
    backend.open_lanes(3)
    assert cudart.calls.count("cudaGraphInstantiate") == graphs + len(BUCKETS)


def test_each_bucket_of_every_lane_gives_the_logits_of_infer(engine):
    backend = open_backend(engine)
    lanes = backend.open_lanes(3)
    for rows in BUCKETS:
        answers = [compute(pixels_of(rows)) for compute in (*lanes, backend.infer)]
        for logits in answers:
            np.testing.assert_array_equal(logits, answers[0])
        np.testing.assert_allclose(answers[0], expected_logits(pixels_of(rows), 3), rtol=1e-6)


@contextmanager
def under_way(cudart, compute, pixels, answers):
    """Send a batch by a thread of its own, which doesn't wait for the answer before the block ends."""
    sent, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: answers.append(compute(pixels)))
    before = cudart.before_wait

    def hold():
        before()
        if threading.current_thread() is thread:
            sent.set()
            assert go_on.wait(30)

    cudart.before_wait = hold
    thread.start()
    assert sent.wait(30)
    try:
        yield
    finally:
        go_on.set()
        thread.join(30)


def test_a_lanes_pixels_cross_before_anothers_answer_and_lanes_end_in_any_order(engine, cudart):
    first, second, third = open_backend(engine).open_lanes(3)
    del cudart.calls[:]
    batches = [pixels_of(2, 3), pixels_of(8, 2), pixels_of(8, 1)]
    answers = []
    with under_way(cudart, first, batches[2], answers), under_way(cudart, second, batches[1], answers):
        assert cudart.calls == BATCH[:-1] * 2
        answers.append(third(batches[0]))
    for logits, pixels in zip(answers, batches, strict=True):
        np.testing.assert_allclose(logits, expected_logits(pixels, 3), rtol=1e-6)


def test_lanes_copy_on_streams_of_their_own_and_only_networks_are_on_the_one_they_share(engine, cudart):
    calls = []
    copy, wait, launch = cudart.cudaMemcpyAsync, cudart.cudaStreamWaitEvent, cudart.cudaGraphLaunch

    def copying(target, source, bytes, kind, stream):
        calls.append((kind.name.removeprefix("cudaMemcpy"), stream))
        return copy(target, source, bytes, kind, stream)

    def waiting(stream, event, flags):
        calls.append(("wait", stream))
        return wait(stream, event, flags)

    def launching(graph, stream):
        calls.append(("network", stream))
        return launch(graph, stream)

    lanes = open_backend(engine).open_lanes(2)
    cudart.cudaMemcpyAsync, cudart.cudaStreamWaitEvent, cudart.cudaGraphLaunch = copying, waiting, launching
    streams = []
    for compute in lanes:
        compute(pixels_of(2))
        names, (copied_in, *computed, held, copied_out) = zip(*calls, strict=True)
        assert names == ("HostToDevice", "wait", "network", "wait", "DeviceToHost")
        assert copied_in == held == copied_out
        assert len(set(computed)) == 1
        streams.append((copied_in, computed[0]))
        calls.clear()
    (first, shared), (second, also_shared) = streams
    assert shared == also_shared
    assert len({first, second, shared}) == 3


@pytest.mark.parametrize(("number", "function"), list(enumerate(BATCH)))
def test_whichever_call_of_a_lane_fails_the_batch_of_another_and_both_lanes_next_are_right(
    number, function, engine, cudart
):
    first, second = open_backend(engine).open_lanes(2)
    answers = []
    with under_way(cudart, first, pixels_of(8, 1), answers):
        cudart.failures[len(cudart.calls) + number] = Error.cudaErrorIllegalAddress
        with pytest.raises(BackendError, match=f"{function} failed"):
            second(pixels_of(2))
    np.testing.assert_allclose(answers[0], expected_logits(pixels_of(8, 1), 3), rtol=1e-6)
    for seed, compute in enumerate((second, first, second, first)):
        np.testing.assert_allclose(compute(pixels_of(2, seed)), expected_logits(pixels_of(2, seed), 3), rtol=1e-6)


def test_lanes_side_by_side_give_each_thread_its_own_answers(engine):
    answers = {}

    def work(number, compute):
        for seed in range(number, 40, 4):
            answers[seed] = compute(pixels_of((1, 2, 8)[seed % 3], seed))

    threads = [threading.Thread(target=work, args=each) for each in enumerate(open_backend(engine).open_lanes(4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == list(range(40))
    for seed, logits in answers.items():
        np.testing.assert_allclose(logits, expected_logits(pixels_of((1, 2, 8)[seed % 3], seed), 3), rtol=1e-6)


def test_close_releases_all_lanes_and_none_can_be_used_or_opened_after_it(engine, cudart):
    backend = open_backend(engine)
    lanes = backend.open_lanes(3)
    backend.close()
    assert not cudart.live
    for call in (*(partial(compute, pixels_of(1)) for compute in lanes), partial(backend.open_lanes, 2)):
        with pytest.raises(BackendError, match="was closed"):
            call()


def test_close_lets_go_of_the_engine_though_its_lanes_are_still_held(engine):
    backend = open_backend(FakeEngine(engine.cudart))
    lanes = backend.open_lanes(2)
    weights = weakref.ref(backend._engine)
    backend.close()
    gc.collect()
    assert weights() is None
    del lanes


def calls_while_a_lane_opens():
    cudart = FakeCudart()
    backend = open_backend(FakeEngine(cudart))
    del cudart.calls[:]
    backend.open_lanes(2)
    return list(enumerate(cudart.calls))


@pytest.mark.parametrize(
    ("number", "function"), [call for call in calls_while_a_lane_opens() if call[1] != "cudaGraphDestroy"]
)
def test_whichever_call_fails_while_a_lane_opens_the_others_go_on_and_it_may_be_tried_again(
    number, function, engine, cudart
):
    backend = open_backend(engine)
    before = set(cudart.live)
    cudart.failures[len(cudart.calls) + number] = Error.cudaErrorMemoryAllocation
    with pytest.raises(BackendError, match=rf"{function} failed: words for cudaErrorMemoryAllocation"):
        backend.open_lanes(2)
    assert set(cudart.live) == before
    for compute in (backend.infer, *backend.open_lanes(2)):
        np.testing.assert_allclose(compute(pixels_of(2)), expected_logits(pixels_of(2), 3), rtol=1e-6)
    backend.close()
    assert not cudart.live


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
        *("cudaEventDestroy", "cudaEventDestroy", "cudaFree", "cudaFree", "cudaFreeHost", "cudaFreeHost"),
        *("cudaStreamDestroy", "cudaFree", "cudaStreamDestroy"),
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
    }
    for function, call in calls.items():
        with pytest.raises(BackendError, match=rf"{function} failed: CUDA driver .* \(cudaError 35\)"):
            call()
    with pytest.raises(BackendError, match=r"cudaMemcpyAsync failed: .* \(cudaError 35\)"):
        cuda.copy_to_host(8192, 4096, 16, 1)


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
