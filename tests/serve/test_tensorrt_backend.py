"""The backend against a fake GPU, and against the real libraries as far as they go without one."""

import hashlib
import logging
import re
import threading

import numpy as np
import pytest

from serve.backends import tensorrt as tensorrt_backend
from serve.backends import tensorrt_engine
from serve.backends.cuda import Cuda, open_cuda
from serve.backends.tensorrt import TensorRTBackend, open_tensorrt, why_unavailable
from serve.backends.tensorrt_engine import engine_from_plan, logger_of
from serve.errors import BackendError, BackendUnavailableError, PackageError
from serve.model_package import (
    Artifact,
    InputSpec,
    Manifest,
    ModelPackage,
    Normalization,
    PackageFile,
    Preprocessing,
    file_facts,
    load_package,
    save_manifest,
)
from tests.export.small_graph import CLASSES, ROW_SHAPE, small_graph
from tests.serve.fake_gpu import Error, FakeCudart, FakeEngine, FakeTensorRT, expected_logits

BUCKETS = (1, 2, 8)
DETAILS = {
    "library": "tensorrt",
    "library_version": "11.4.0",
    "compute_capability": "sm89",
    "profile": [1, 8, 32],
    "graph_sha256": "0" * 64,
}


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


def package_of(folder, *engines):
    """A package with an ONNX graph and an engine file for each (name, format, precision, details, bytes)."""
    (folder / "engines").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "reference.npz").write_bytes(b"reference")
    artifacts = [Artifact(**file_facts(folder, "model.onnx"), format="onnx", precision="fp32")]
    for name, format, precision, details, data in engines:
        path = f"engines/{name}"
        (folder / path).write_bytes(data)
        artifacts.append(Artifact(**file_facts(folder, path), format=format, precision=precision, details=details))
    height, width, _ = ROW_SHAPE
    manifest = Manifest(
        name="small",
        architecture="small",
        input=InputSpec(height=height, width=width, preprocessing=Preprocessing(resize_shorter_side=height)),
        normalization=Normalization(mean=(0.5,) * 3, std=(0.5,) * 3),
        labels=tuple(f"label {index}" for index in range(CLASSES)),
        artifacts=tuple(artifacts),
        reference=PackageFile(**file_facts(folder, "reference.npz")),
        provenance={},
    )
    save_manifest(folder, manifest)
    return load_package(folder)


@pytest.fixture
def fake_machine(monkeypatch, cudart):
    """A machine with the fake GPU and the fake TensorRT; engines "deserialise" to fake ones."""
    libraries = {"tensorrt": FakeTensorRT(), "tensorrt_rtx": FakeTensorRT(rtx=True)}
    monkeypatch.setattr(tensorrt_backend, "open_cuda", lambda: Cuda(cudart))
    for module in (tensorrt_backend, tensorrt_engine):
        monkeypatch.setattr(module, "import_library", libraries.__getitem__)
    loaded = []

    def deserialise(trt, plan):
        loaded.append((trt.__name__, plan))
        return FakeEngine(cudart, row_shape=ROW_SHAPE, classes=CLASSES)

    monkeypatch.setattr(tensorrt_backend, "engine_from_plan", deserialise)
    return loaded


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


def test_a_batch_is_one_graph_launch_and_one_wait(engine, cudart):
    backend = open_backend(engine)
    del cudart.calls[:]
    backend.infer(pixels_of(2))
    assert cudart.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_each_bucket_has_a_context_that_ran_once_before_it_was_captured(engine):
    open_backend(engine)
    assert [context.shape[0] for context in engine.contexts] == list(BUCKETS)
    assert all(context.runs == ["run", "captured"] for context in engine.contexts)


def test_contexts_share_buffers_and_activation_memory(engine, cudart):
    open_backend(engine)
    assert len({tuple(context.addresses.items()) for context in engine.contexts}) == 1
    assert len({context.scratch for context in engine.contexts}) == 1
    assert {context.how.name for context in engine.contexts} == {"USER_MANAGED"}
    assert cudart.calls.count("cudaMalloc") == 3
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


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaStreamSynchronize"])
def test_a_failed_batch_raises_cudas_words_and_the_next_batch_runs(function, engine, cudart):
    backend = open_backend(engine)
    at = len(cudart.calls) + ["cudaGraphLaunch", "cudaStreamSynchronize"].index(function)
    cudart.failures[at] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match=rf"{function} failed: words for cudaErrorIllegalAddress \(cudaError 700\)"):
        backend.infer(pixels_of(2))
    np.testing.assert_allclose(backend.infer(pixels_of(2, 5)), expected_logits(pixels_of(2, 5), 3), rtol=1e-6)


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


def test_graphs_go_before_the_memory_they_use_and_the_stream_goes_last(engine, cudart):
    backend = open_backend(engine)
    del cudart.calls[:]
    backend.close()
    assert cudart.calls == [
        *["cudaGraphExecDestroy"] * 3,
        *["cudaFree"] * 3,
        *["cudaFreeHost"] * 2,
        "cudaStreamDestroy",
    ]


def calls_while_opening():
    cudart = FakeCudart()
    open_backend(FakeEngine(cudart))
    return list(enumerate(cudart.calls))


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


# Choosing the engine


def test_the_engine_that_fits_is_read_and_opened(tmp_path, fake_machine):
    package = package_of(
        tmp_path / "small",
        ("ada-fp32.plan", "tensorrt", "fp32", DETAILS, b"ada fp32"),
        ("hopper.plan", "tensorrt", "fp16", DETAILS | {"compute_capability": "sm90"}, b"hopper"),
        ("old.plan", "tensorrt", "fp16", DETAILS | {"library_version": "10.13.0"}, b"old"),
        ("rtx.plan", "tensorrt_rtx", "fp16", DETAILS | {"library": "tensorrt_rtx"}, b"rtx fp16"),
    )
    assert why_unavailable(package, buckets=BUCKETS) is None
    backend = open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert fake_machine == [("tensorrt_rtx", b"rtx fp16")]
    assert (backend.name, backend.precision, backend.buckets) == ("tensorrt", "fp16", BUCKETS)
    assert backend.device == "Fake RTX 4090 (TensorRT for RTX)"
    pixels = np.full((2, *ROW_SHAPE), 7, np.uint8)
    np.testing.assert_allclose(backend.infer(pixels), expected_logits(pixels, CLASSES), rtol=1e-6)
    assert open_tensorrt(package, precision="fp32", buckets=(1,)).precision == "fp32"


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"compute_capability": "sm90"}, "it was built for sm90, the GPU here is sm89"),
        ({"library_version": "10.13.0"}, r"it was built by TensorRT 10\.13\.0, 11\.4\.0 is installed here"),
        ({"profile": [1, 4, 4]}, "it takes batches of 1 to 4 rows, the buckets are 1, 2, 8"),
        ({"profile": [2, 8, 32]}, "it takes batches of 2 to 32 rows, the buckets are 1, 2, 8"),
        ({"compute_capability": None}, "its details in the manifest are no engine's: compute_capability"),
        ({"library": "other"}, "its details in the manifest are no engine's: library"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_reason_and_the_cure(details, reason, tmp_path, fake_machine):
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", DETAILS | details, b"plan"))
    cure = "the server builds no engines, `fuseline export --engine sm89` does"
    with pytest.raises(BackendUnavailableError, match=rf"engines/one\.plan: {reason}.*{cure}"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert reason.replace("\\", "") in why_unavailable(package, buckets=BUCKETS)
    assert not fake_machine


def test_a_package_without_an_engine_says_how_to_get_one(tmp_path, fake_machine):
    package = package_of(tmp_path / "small")
    with pytest.raises(BackendUnavailableError, match=r"has no TensorRT engine; .* `fuseline export --engine"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert "has no TensorRT engine" in why_unavailable(package)


def test_a_precision_that_no_engine_has_is_refused(tmp_path, fake_machine):
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", DETAILS, b"plan"))
    with pytest.raises(BackendUnavailableError, match="has no fp32 TensorRT engine"):
        open_tensorrt(package, precision="fp32", buckets=BUCKETS)


def test_a_changed_engine_file_is_refused_by_its_sha256(tmp_path, fake_machine, cudart):
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", DETAILS, b"plan"))
    (tmp_path / "small/engines/one.plan").write_bytes(b"evil")
    with pytest.raises(PackageError, match=f"has 4 bytes with sha256 {hashlib.sha256(b'evil').hexdigest()}"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert not fake_machine
    assert not cudart.live


def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, cudart):
    monkeypatch.setattr(tensorrt_backend, "open_cuda", lambda: Cuda(cudart))
    monkeypatch.setattr(tensorrt_engine, "is_installed", lambda library: False)
    package = package_of(
        tmp_path / "small",
        ("one.plan", "tensorrt", "fp16", DETAILS, b"plan"),
        ("two.plan", "tensorrt_rtx", "fp16", DETAILS | {"library": "tensorrt_rtx"}, b"plan"),
    )
    reason = why_unavailable(package)
    assert "one.plan: TensorRT is not installed: pip install 'fuseline[gpu]'" in reason
    assert "two.plan: TensorRT for RTX is not installed: pip install 'fuseline[rtx]'" in reason


def test_a_library_that_is_installed_but_broken_says_what_is_missing(monkeypatch):
    def fail(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(tensorrt_engine, "is_installed", lambda library: True)
    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", fail)
    with pytest.raises(BackendUnavailableError, match=r"can't be imported \(libcudart.*fuseline\[gpu\]"):
        tensorrt_engine.import_library("tensorrt")


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
    assert (gpu.name, gpu.capability) == ("Fake RTX 4090", "sm120")


# The real libraries, without a GPU


@without_gpu
def test_on_a_machine_without_a_gpu_the_real_cuda_says_so(tmp_path):
    pytest.importorskip("cuda.bindings.runtime")
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", DETAILS, b"plan"))
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
    }
    for function, call in calls.items():
        with pytest.raises(BackendError, match=rf"{function} failed: CUDA driver .* \(cudaError 35\)"):
            call()
    with pytest.raises(BackendError, match=r"cudaMemcpyAsync failed: .* \(cudaError 35\)"):
        cuda.copy_to_host(8192, 4096, 16, 1)


@pytest.fixture(scope="module")
def real_plan():
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build an engine")
    from export.engine import build_engine

    return build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=8)


@without_gpu
def test_a_real_engine_is_refused_by_the_real_library_with_its_reason(real_plan, tmp_path, monkeypatch):
    details = ("ada.plan", real_plan.library, "fp16", real_plan.details, real_plan.plan)
    package = package_of(tmp_path / "small", details)
    monkeypatch.setattr(tensorrt_backend, "open_cuda", lambda: Cuda(FakeCudart(capability=(8, 9))))
    assert why_unavailable(package, buckets=BUCKETS) is None
    refusal = (
        r"engines/ada\.plan: TensorRT for RTX 1\..* refuses the engine.*CUDA driver.*`fuseline export --engine sm89`"
    )
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
    from export.engine import build_engine

    build = build_engine(small_graph(), precision="fp16", capability=None, max_batch=32)
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
