"""Which engine is opened, which is refused, and what is built instead.

The GPU is a fake one, on which engines "deserialise" to fake ones; whatever is built is built by TensorRT for RTX.
"""

import asyncio
import hashlib
import logging
import re

import numpy as np
import pytest

from fuseline.serve.backends import open_backend, tensorrt
from fuseline.serve.backends.engine import library as tensorrt_engine
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.errors import BackendUnavailableError, PackageError, VerificationError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import load_model
from fuseline.serve.model_package import load_package, save_manifest
from fuseline.serve.settings import Settings
from tests.export.small_graph import CLASSES, ROW_SHAPE, small_graph
from tests.fakes import gpu as fake_gpu
from tests.fakes.gpu import FakeCudart, FakeEngine, FakeTensorRT, expected_logits
from tests.serve.backends.engine_packages import (
    GRAPHS,
    details_of,
    install,
    open_tensorrt,
    package_of,
    put_gpu_in,
    why_unavailable,
)

BUCKETS = (1, 2, 8)


@pytest.fixture
def cudart():
    return FakeCudart()


@pytest.fixture
def gpu(monkeypatch, cudart):
    """The plans that were loaded on a machine with the fake GPU, each with its library's name."""
    put_gpu_in(monkeypatch, cudart)
    loaded = []

    def deserialise(trt, plan):
        loaded.append((trt.__name__, plan))
        return FakeEngine(cudart, row_shape=ROW_SHAPE, classes=CLASSES, types=trt.DataType)

    monkeypatch.setattr(tensorrt, "engine_from_plan", deserialise)
    return loaded


@pytest.fixture
def fake_libraries(monkeypatch, gpu):
    install(monkeypatch, {"tensorrt": FakeTensorRT(), "tensorrt_rtx": FakeTensorRT(rtx=True)})
    return gpu


@pytest.fixture
def rtx(gpu):
    """TensorRT for RTX itself, on a machine with the fake GPU."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
    return gpu


@pytest.fixture
def builds(monkeypatch):
    """The precisions of the engines that were built."""
    built = []

    def building(onnx, **arguments):
        built.append(arguments["precision"])
        return build_engine(onnx, **arguments)

    monkeypatch.setattr(tensorrt, "build_engine", building)
    return built


def test_the_engine_that_fits_is_read_and_opened(tmp_path, fake_libraries):
    package = package_of(
        tmp_path / "small",
        ("ada-fp32.plan", "tensorrt", "fp32", details_of("fp32"), b"ada fp32"),
        ("hopper.plan", "tensorrt", "fp16", details_of(compute_capability="sm90"), b"hopper"),
        ("old.plan", "tensorrt", "fp16", details_of(library_version="10.13.0"), b"old"),
        ("rtx.plan", "tensorrt_rtx", "fp16", details_of(library="tensorrt_rtx"), b"rtx fp16"),
    )
    assert why_unavailable(package, buckets=BUCKETS) is None
    backend = open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert fake_libraries == [("tensorrt_rtx", b"rtx fp16")]
    assert (backend.name, backend.precision, backend.buckets) == ("tensorrt", "fp16", BUCKETS)
    assert backend.device == "Fake RTX 4090 (TensorRT for RTX)"
    pixels = np.full((2, *ROW_SHAPE), 7, np.uint8)
    np.testing.assert_allclose(backend.infer(pixels), expected_logits(pixels, CLASSES), rtol=1e-6)
    assert open_tensorrt(package, precision="fp32", buckets=(1,)).precision == "fp32"


MISFITS = [
    ({"compute_capability": "sm90"}, "it was built for sm90, the GPU here is sm89"),
    ({"library_version": "10.13.0"}, r"it was built by TensorRT 10\.13\.0, 11\.4\.0 is installed here"),
    ({"profile": [1, 4, 4]}, "it takes batches of 1 to 4 rows, the buckets are 1, 2, 8"),
    ({"profile": [2, 8, 32]}, "it takes batches of 2 to 32 rows, the buckets are 1, 2, 8"),
    ({"graph_sha256": "0" * 64}, "it was built from another graph than the package's"),
    ({"compute_capability": None}, "its details in the manifest are no engine's: compute_capability"),
    ({"library": "other"}, "its details in the manifest are no engine's: library"),
]


@pytest.mark.parametrize(("changes", "reason"), MISFITS)
def test_an_engine_that_does_not_fit_is_refused_with_the_reason_and_the_cure(changes, reason, tmp_path, fake_libraries):
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", details_of(**changes), b"plan"))
    cure = "`fuseline engine .*small --for sm89` builds one"
    with pytest.raises(BackendUnavailableError, match=rf"engines/one\.plan: {reason}.*{cure}"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert re.search(reason, why_unavailable(package, buckets=BUCKETS))
    assert not fake_libraries


def test_a_changed_engine_file_is_refused_by_its_sha256(tmp_path, fake_libraries, cudart):
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", details_of(), b"plan"))
    (tmp_path / "small/engines/one.plan").write_bytes(b"evil")
    digest = hashlib.sha256(b"evil").hexdigest()
    with pytest.raises(BackendUnavailableError, match=f"has 4 bytes with sha256 {digest}"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert not fake_libraries
    assert not cudart.live


def test_an_engine_that_computes_in_fp32_for_fp16_is_refused_and_auto_goes_on(
    tmp_path, fake_libraries, cudart, monkeypatch
):
    def fp32_engine(trt, plan):
        engine = FakeEngine(cudart, row_shape=ROW_SHAPE, classes=CLASSES, types=trt.DataType)
        engine.layers = [{"Name": "conv1", "LayerType": "CaskConvolution", "Weights": {"Type": "Float", "Count": 9408}}]
        return engine

    monkeypatch.setattr(tensorrt, "engine_from_plan", fp32_engine)
    package = package_of(tmp_path / "small", ("one.plan", "tensorrt", "fp16", details_of(), b"plan"))
    with pytest.raises(VerificationError, match=r"by its own inspector the engine holds 9,408 in fp32"):
        open_tensorrt(package, precision="fp16", buckets=BUCKETS)
    backend, reason = open_backend(package, buckets=BUCKETS)
    assert backend.name != "tensorrt"
    assert "9,408 in fp32" in reason
    backend.close()


def test_a_package_without_an_engine_says_how_to_get_one(tmp_path, fake_libraries):
    package = package_of(tmp_path / "small")
    with pytest.raises(BackendUnavailableError, match=r"has no fp16 TensorRT engine; `fuseline engine .* --for sm89`"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS)
    assert "has no fp16 TensorRT engine" in why_unavailable(package)
    assert why_unavailable(package, engine_cache=tmp_path) is None


def test_a_precision_that_the_package_has_no_graph_of_is_refused(tmp_path, fake_libraries):
    package = package_of(tmp_path / "small", graphs={"fp32": GRAPHS["fp32"]})
    with pytest.raises(BackendUnavailableError, match="has no fp16 ONNX graph, only fp32"):
        open_tensorrt(package, precision="fp16", buckets=BUCKETS, engine_cache=tmp_path)


def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, cudart):
    put_gpu_in(monkeypatch, cudart)
    monkeypatch.setattr(tensorrt_engine, "is_installed", lambda library: False)
    monkeypatch.setattr("fuseline.serve.backends.engine.target.is_installed", lambda library: False)
    package = package_of(
        tmp_path / "small",
        ("one.plan", "tensorrt", "fp16", details_of(), b"plan"),
        ("two.plan", "tensorrt_rtx", "fp16", details_of(library="tensorrt_rtx"), b"plan"),
    )
    reason = why_unavailable(package)
    assert "one.plan: TensorRT is not installed: pip install 'fuseline[gpu]'" in reason
    assert "two.plan: TensorRT for RTX is not installed: pip install 'fuseline[rtx]'" in reason
    for asked in (package, None):
        assert "building for sm89 takes TensorRT for RTX: pip install" in why_unavailable(asked, engine_cache=tmp_path)


def test_a_library_that_is_installed_but_broken_says_what_is_missing(monkeypatch):
    def fail(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(tensorrt_engine, "is_installed", lambda library: True)
    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", fail)
    with pytest.raises(BackendUnavailableError, match=r"can't be imported \(libcudart.*fuseline\[gpu\]"):
        tensorrt_engine.import_library("tensorrt")


# Building where none fits


@pytest.mark.parametrize(("changes", "reason"), [(None, ""), *MISFITS])
def test_where_no_engine_fits_one_is_built_before_the_backend_is_there(changes, reason, tmp_path, rtx, builds, caplog):
    engines = [] if changes is None else [("one.plan", "tensorrt", "fp16", details_of(**changes), b"plan")]
    # The real library is another build than that of the details, and is told first of several reasons.
    reason = "is not installed" if "library_version" in (changes or {}) else reason
    package = package_of(tmp_path / "small", *engines)
    with caplog.at_level(logging.INFO):
        backend = open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == ["fp16"]
    assert backend.precision == "fp16"
    (name, plan), *others = rtx
    assert (name, others) == ("tensorrt_rtx", [])
    (kept,) = (tmp_path / "cache").glob("*.plan")
    assert kept.read_bytes() == plan
    assert hashlib.sha256(GRAPHS["fp16"]).hexdigest()[:16] in kept.name
    assert "-sm89-b1.8.8-" in kept.name
    assert re.search(reason, caplog.text)
    assert "building the TensorRT for RTX engine of small for the Fake RTX 4090: 50 %" in caplog.text


def test_the_second_start_loads_what_the_first_one_built(tmp_path, rtx, builds):
    package = package_of(tmp_path / "small")
    for _ in range(2):
        open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == ["fp16"]
    assert rtx[0] == rtx[1]


def test_other_buckets_another_graph_and_another_precision_are_other_engines(tmp_path, rtx, builds):
    package, cache = package_of(tmp_path / "small"), tmp_path / "cache"
    open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=cache)
    open_tensorrt(package, precision="auto", buckets=(1, 4), engine_cache=cache)
    open_tensorrt(package, precision="fp32", buckets=BUCKETS, engine_cache=cache)
    other = package_of(tmp_path / "other", graphs={"fp32": small_graph("fp32")})
    assert open_tensorrt(other, precision="auto", buckets=BUCKETS, engine_cache=cache).precision == "fp32"
    assert builds == ["fp16", "fp16", "fp32", "fp32"]
    assert len(list(cache.glob("*.plan"))) == 4


def test_a_damaged_engine_is_refused_by_its_sha256_and_built_anew(tmp_path, rtx, builds, caplog):
    build = build_engine(GRAPHS["fp16"], precision="fp16", capability="sm89", max_batch=8)
    package = package_of(tmp_path / "small", ("one.plan", build.library, "fp16", build.details, build.plan))
    open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert rtx == [("tensorrt_rtx", build.plan)]
    assert builds == []
    (tmp_path / "small/engines/one.plan").write_bytes(b"evil")
    open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == ["fp16"]
    assert rtx[1][1] != b"evil"
    assert "one.plan has 4 bytes with sha256" in caplog.text


def test_an_engine_that_the_library_refuses_is_built_anew(tmp_path, rtx, builds, monkeypatch, caplog):
    build = build_engine(GRAPHS["fp16"], precision="fp16", capability="sm89", max_batch=8)
    details = (build.library, "fp16", build.details, b"of another driver")
    package = package_of(tmp_path / "small", ("one.plan", *details))
    accept = tensorrt.engine_from_plan

    def refuse(trt, plan):
        if plan == b"of another driver":
            raise BackendUnavailableError("TensorRT for RTX refuses the engine")
        return accept(trt, plan)

    monkeypatch.setattr(tensorrt, "engine_from_plan", refuse)
    open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == ["fp16"]
    assert "engines/one.plan: TensorRT for RTX refuses the engine" in caplog.text


def test_a_damaged_graph_is_an_error_of_the_package(tmp_path, rtx, builds):
    package = package_of(tmp_path / "small")
    (tmp_path / "small/model.fp16.onnx").write_bytes(b"evil")
    with pytest.raises(PackageError, match=r"model\.fp16\.onnx has 4 bytes"):
        open_tensorrt(package, precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == []


def test_a_graph_of_which_no_engine_can_be_built_leaves_its_place_to_the_next_runtime(tmp_path, rtx):
    package = package_of(tmp_path / "small", graphs={"fp32": small_graph("fp32"), "fp16": small_graph("fp32")})
    backend, reason = open_backend(package, buckets=(1,), engine_cache=tmp_path / "cache")
    assert backend.name == "openvino"
    assert re.search(r"no engine can be built from model\.fp16\.onnx: .*3 of 3 .* are not HALF", reason)


def test_layers_that_the_export_kept_in_fp32_are_no_hindrance_whether_it_named_them_or_not(tmp_path, rtx):
    graphs = {"fp32": GRAPHS["fp32"], "fp16": small_graph(fp32_classifier=True)}
    for name, details in (("named", {"kept_fp32": ["fc/Gemm"]}), ("unnamed", {})):
        package = package_of(tmp_path / name, graphs=graphs, onnx_details=details)
        assert open_tensorrt(package, precision="auto", buckets=(1,), engine_cache=tmp_path / name).precision == "fp16"
    package = package_of(tmp_path / "wrong", graphs=graphs, onnx_details={"kept_fp32": ["stem/Conv"]})
    with pytest.raises(BackendUnavailableError, match=r"1 of 3 .* not HALF .* fc/Gemm \(FLOAT\)"):
        open_tensorrt(package, precision="auto", buckets=(1,), engine_cache=tmp_path / "wrong")


async def test_a_server_is_ready_when_its_engine_is_built_and_no_request_builds_one(tmp_path, rtx, builds):
    folder = package_of(tmp_path / "small").folder
    settings = Settings(backend="tensorrt", max_batch=8, engine_cache=tmp_path / "cache")
    model = await asyncio.to_thread(load_model, folder, settings, Metrics())
    assert builds == ["fp16"]
    assert len(list((tmp_path / "cache").glob("*.plan"))) == 1
    pixels = np.random.default_rng(1).integers(0, 256, (20, *ROW_SHAPE), np.uint8)
    answers = [await model.batcher.submit(list(pixels[:rows])) for rows in (1, 3, 8, 20)]
    await model.close()
    for rows, answer in zip((1, 3, 8, 20), answers, strict=True):
        np.testing.assert_allclose(answer.logits, expected_logits(pixels[:rows], CLASSES), rtol=1e-6)
    assert builds == ["fp16"]


def test_an_engine_that_answers_zeros_is_not_served(tmp_path, fake_libraries, monkeypatch):
    folder = package_of(tmp_path / "small", ("fits.plan", "tensorrt", "fp16", details_of(), b"plan")).folder
    monkeypatch.setattr(fake_gpu, "expected_logits", lambda pixels, classes: np.zeros((len(pixels), classes)))
    with pytest.raises(VerificationError, match="is not served: .* its logits differ from PyTorch's"):
        load_model(folder, Settings(backend="tensorrt"), Metrics())


def test_a_server_finds_the_new_engine_of_a_package_before_it_builds_one(tmp_path, rtx, builds):
    package = package_of(tmp_path / "small")
    build = build_engine(GRAPHS["fp16"], precision="fp16", capability="sm89", max_batch=32)
    (package.folder / "engines/e.plan").write_bytes(build.plan)
    engine = {
        "path": "engines/e.plan",
        "sha256": hashlib.sha256(build.plan).hexdigest(),
        "bytes": len(build.plan),
        "format": build.library,
        "precision": "fp16",
        "details": build.details,
    }
    artifacts = (*package.manifest.artifacts, type(package.manifest.artifacts[0]).model_validate(engine))
    save_manifest(package.folder, package.manifest.model_copy(update={"artifacts": artifacts}))
    open_tensorrt(load_package(package.folder), precision="auto", buckets=BUCKETS, engine_cache=tmp_path / "cache")
    assert builds == []
    assert not (tmp_path / "cache").exists()
