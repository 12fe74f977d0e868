import hashlib
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.backends import open_backend, registry, why_not_installed
from fuseline.serve.errors import BackendError, BackendUnavailableError
from fuseline.serve.model_package import ModelPackage, load_package
from tests.fakes.colours import expected_logits, noise, write_colours_package
from tests.serve.processes import ROOT

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return load_package(write_colours_package(tmp_path_factory.mktemp("backends") / "colours"))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("rows", [1, 5])
def test_logits_are_float32_right_and_the_callers_own(package: ModelPackage, name: str, rows: int) -> None:
    backend, reason = open_backend(package, backend=name, buckets=(rows,), threads=1)
    first, second = noise(rows, 1), noise(rows, 2)
    logits = backend.infer(first)
    kept = logits.copy()
    backend.infer(second)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, kept), "a later batch overwrote an earlier answer"
    np.testing.assert_allclose(logits, expected_logits(first), atol=1e-5)
    assert (backend.name, backend.precision, backend.device, backend.buckets) == (name, "fp32", "CPU", (rows,))
    assert name in reason
    backend.close()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_row_does_not_depend_on_its_neighbours(package: ModelPackage, name: str) -> None:
    backend, _ = open_backend(package, backend=name, buckets=(8,), threads=1)
    pixels = noise(8)
    alone = np.zeros_like(pixels)
    alone[3] = pixels[3]
    assert np.array_equal(backend.infer(pixels)[3], backend.infer(alone)[3])
    backend.close()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_failing_runtime_and_a_closed_one_raise_backend_errors(package: ModelPackage, name: str) -> None:
    backend, _ = open_backend(package, backend=name, buckets=(1,), threads=1)
    with pytest.raises(BackendError, match=r"\(1, 3, 3, 3\)"):
        backend.infer(np.zeros((1, 3, 3, 3), np.uint8))
    assert backend.infer(noise(1)).shape == (1, 4), "the next batch runs"
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer(noise(1))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_graph_that_the_runtime_cannot_load_is_a_clear_error(tmp_path: Path, name: str) -> None:
    folder = write_colours_package(tmp_path / "colours")
    package = load_package(folder)
    broken = package.manifest.artifacts[0]
    (folder / broken.path).write_bytes(b"no graph at all")
    facts = {"sha256": hashlib.sha256(b"no graph at all").hexdigest(), "bytes": 15}
    manifest = package.manifest.model_copy(update={"artifacts": (broken.model_copy(update=facts),)})
    with pytest.raises(BackendError, match=r"can't load model\.onnx"):
        open_backend(ModelPackage(folder=folder, manifest=manifest), backend=name, buckets=(1,))


def test_auto_takes_the_best_that_is_installed_and_says_why(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, reason = open_backend(package, buckets=(1,))
    assert backend.name == "openvino"
    assert "TensorRT" in reason
    monkeypatch.setattr(registry, "is_importable", lambda module: module != "openvino")
    backend, reason = open_backend(package, buckets=(1,))
    assert backend.name == "onnxruntime"
    assert "openvino is not installed: pip install 'fuseline[cpu]'" in reason
    monkeypatch.setattr(registry, "is_importable", lambda module: False)
    refusal = "onnxruntime is not installed.*openvino is not installed.*onnxruntime is not installed"
    with pytest.raises(BackendUnavailableError, match=refusal):
        open_backend(package, buckets=(1,))


def test_what_cannot_be_had_is_refused(package: ModelPackage) -> None:
    with pytest.raises(BackendUnavailableError, match="auto, onnxruntime, openvino, tensorrt"):
        open_backend(package, buckets=(1,), backend="caffe")
    with pytest.raises(BackendUnavailableError, match="no fp16 ONNX graph, only fp32"):
        open_backend(package, buckets=(1,), backend="onnxruntime", precision="fp16")


@pytest.mark.parametrize(
    ("backend", "installed", "reason"),
    [
        ("onnxruntime", {"onnxruntime"}, None),
        ("openvino", {"onnxruntime"}, "openvino is not installed: pip install 'fuseline[cpu]'"),
        ("tensorrt", {"tensorrt", "cuda.bindings"}, None),
        ("tensorrt", {"tensorrt_rtx", "cuda.bindings"}, None),
        ("tensorrt", {"tensorrt"}, "cuda.bindings is not installed: pip install 'fuseline[gpu]'"),
        (
            "tensorrt",
            {"cuda.bindings"},
            "neither tensorrt nor tensorrt_rtx is installed: "
            "pip install 'fuseline[gpu]' or pip install 'fuseline[rtx]'",
        ),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, backend: str, installed: set[str], reason: str | None
) -> None:
    monkeypatch.setattr(registry, "is_importable", installed.__contains__)
    assert why_not_installed(backend) == reason


def test_a_module_of_a_package_that_is_not_there_is_not_importable() -> None:
    assert registry.is_importable("importlib.util")
    assert not registry.is_importable("nowhere.at.all")


def test_every_name_has_an_entry_and_a_module_that_offers_what_a_backend_does() -> None:
    assert sorted({entry.name for entry in registry.REGISTRY}) == list(registry.BACKENDS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for entry in registry.REGISTRY:
        offered = ("open", "why_unavailable", *(("graph_runner",) if entry.device == "cpu" else ()))
        assert all(callable(getattr(entry.load(), name)) for name in offered)
        for runtime in itertools.chain(*entry.needs):
            assert any(line.startswith(runtime.distributions) for line in extras[runtime.extra])


def test_the_names_of_backends_are_known_without_loading_numpy_or_a_runtime(package: ModelPackage) -> None:
    script = f"""
import sys
from pathlib import Path
import fuseline.serve.commands.serve_command
assert not {{"numpy", "onnxruntime", "openvino"}} & set(sys.modules)
from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
open_backend(load_package(Path({str(package.folder)!r})), backend="openvino", buckets=(1,))
assert "onnxruntime" not in sys.modules
print("light")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "light\n"), done.stderr


def test_no_runtime_reports_to_its_maker(package: ModelPackage) -> None:
    script = f"""
import os, sys
from pathlib import Path
from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
for name in {RUNTIMES}:
    open_backend(load_package(Path({str(package.folder)!r})), backend=name, buckets=(1,))
assert sys.modules["openvino_telemetry"] is None
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
print("silent")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "silent\n"), done.stderr


def test_auto_goes_on_to_the_next_when_one_that_is_there_fails_to_open(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a damaged driver makes TensorRT do, which can't be had here."""

    def fails(*_: object, **__: object) -> None:
        raise BackendError("the driver is out of order")

    monkeypatch.setattr("fuseline.serve.backends.tensorrt.open", fails)
    backend, reason = open_backend(package, buckets=(1,))
    assert backend.name == "openvino"
    assert "TensorRT: the driver is out of order" in reason
    with pytest.raises(BackendError, match="out of order"):
        open_backend(package, backend="tensorrt", buckets=(1,))
