"""The backends with packages that take normalised floats; their graphs are those of the colours model."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.backends import open_backend
from fuseline.serve.backends.bound_session import BoundSession
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.backends.onnxruntime import open_session
from fuseline.serve.backends.registry import CPU_BACKENDS, backend_entry
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend
from fuseline.serve.errors import BackendError, PackageError
from fuseline.serve.input_rows import row_maker
from fuseline.serve.lanes.warm_up import noise as warm_up_noise
from fuseline.serve.lanes.warm_up import warm_up
from fuseline.serve.model_package import ModelPackage, load_package
from fuseline.serve.reference import check_reference
from tests.fakes.colours import expected_logits, noise, write_colours_package
from tests.fakes.gpu import DataType, FakeCudart, FakeEngine, FakeTensorRT
from tests.fakes.gpu import expected_logits as logits_of_fake_engine

BUCKETS = (1, 4)
FLOATS = ["fp32-nchw", "fp16-nchw"]


@pytest.fixture(params=FLOATS)
def package(tmp_path: Path, request: pytest.FixtureRequest) -> ModelPackage:
    """A package of floats whose tensors have names of their own."""
    folder = tmp_path / "package"
    write_colours_package(folder, takes=request.param, input_name="gpu_0/data:0", output_name="scores.1")
    return load_package(folder)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_cpu_backends_take_floats_by_the_packages_names(package: ModelPackage, name: str) -> None:
    backend, _ = open_backend(package, backend=name, buckets=BUCKETS, threads=2)
    rows = row_maker(package.manifest)(noise(4))
    assert rows.shape == (4, 3, 8, 8)
    for infer in (backend.infer, *backend.open_lanes(2)):
        np.testing.assert_allclose(infer(rows), expected_logits(noise(4)), atol=1e-3)
    assert warm_up([backend], package).keys() == set(BUCKETS)
    assert check_reference(backend, package) < 1e-3
    backend.close()


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_graph_in_memory_is_run_by_its_own_names(package: ModelPackage, name: str) -> None:
    runner = backend_entry(name, "cpu").load().graph_runner((package.folder / "model.onnx").read_bytes())
    np.testing.assert_allclose(runner(row_maker(package.manifest)(noise(4))), expected_logits(noise(4)), atol=1e-3)


def test_the_memory_of_a_bound_session_is_of_the_graphs_type(package: ModelPackage) -> None:
    session = open_session(package.folder / "model.onnx", threads=1)
    bound = BoundSession(session, buckets=BUCKETS, row_shape=(3, 8, 8), classes=4, device="cpu")
    to_rows = row_maker(package.manifest)
    for infer in bound.open_lanes(2):
        for rows in BUCKETS:
            pixels = noise(rows, rows)
            np.testing.assert_allclose(infer(to_rows(pixels)), expected_logits(pixels), atol=1e-3)
    bound.close()


def test_warm_up_has_the_rows_that_clients_send(package: ModelPackage) -> None:
    rows = warm_up_noise(2, package)
    assert (rows.shape, rows.dtype) == ((2, 3, 8, 8), package.manifest.input.row_dtype)
    assert -4 < rows.min() < 0 < rows.max() < 8


def test_a_reference_of_pixels_is_checked_by_their_floats(package: ModelPackage) -> None:
    """A normalisation other than the graph's is found out before the model is served."""
    other = package.manifest.normalization.model_copy(update={"mean": (0.2, 0.2, 0.2)})
    wrong = package.model_copy(update={"manifest": package.manifest.model_copy(update={"normalization": other})})
    backend, _ = open_backend(package, backend="onnxruntime", buckets=BUCKETS)
    with pytest.raises(Exception, match="its logits differ from PyTorch's"):
        check_reference(backend, wrong)
    backend.close()


# TensorRT, on a GPU that is played


TYPES = {np.float32: DataType.FLOAT, np.float16: DataType.HALF}


def open_tensorrt(dtype: type, engine_type: DataType, names: tuple[str, str] = ("input", "output")) -> TensorRTBackend:
    cudart = FakeCudart()
    return TensorRTBackend(
        FakeEngine(cudart, row_shape=(3, 4, 4), input_type=engine_type, names=("input", "output")),
        FakeTensorRT(),
        Cuda(cudart),
        row_shape=(3, 4, 4),
        row_dtype=dtype,
        input_name=names[0],
        output_name=names[1],
        classes=3,
        precision="fp16",
        device="Fake RTX 4090",
        buckets=BUCKETS,
    )


def floats(rows: int, dtype: type) -> NDArray[np.floating]:
    return np.random.default_rng(rows).normal(size=(rows, 3, 4, 4)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_an_engine_of_floats_gets_whole_rows_in_every_lane(dtype: type) -> None:
    backend = open_tensorrt(dtype, TYPES[dtype])
    for infer in backend.open_lanes(2):
        for count in (4, 1, 4):
            rows = floats(count, dtype)
            np.testing.assert_allclose(infer(rows), logits_of_fake_engine(rows, 3), rtol=1e-3, atol=1e-4)
    with pytest.raises(BackendError, match=rf"got uint8 rows .* it takes {np.dtype(dtype)} of shape \(rows, 3, 4, 4\)"):
        backend.infer(np.zeros((1, 3, 4, 4), np.uint8))
    backend.close()


@pytest.mark.parametrize(
    ("engine_type", "names"), [(DataType.HALF, ("input", "output")), (DataType.FLOAT, ("input", "logits"))]
)
def test_an_engine_of_another_type_or_name_is_refused(engine_type: DataType, names: tuple[str, str]) -> None:
    with pytest.raises(PackageError, match=rf"the engine has .*{engine_type.name}.* the manifest describes .*FLOAT"):
        open_tensorrt(np.float32, engine_type, names)
