"""INT8 graphs in packages: which runtimes serve them, when, on which CPUs, and what their verification asks."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fuseline.export.graph.runtimes import int8_logits_by_runtime, serialised
from fuseline.export.int8.calibrators import Range
from fuseline.export.int8.quantiser import quantised_for_cpus
from fuseline.export.verify import compare
from fuseline.serve.backends import onnxruntime as onnxruntime_backend
from fuseline.serve.backends import open_backend
from fuseline.serve.backends import openvino as openvino_backend
from fuseline.serve.errors import BackendError, BackendUnavailableError
from fuseline.serve.model_package import Artifact, ModelPackage, file_facts, load_package, save_manifest
from fuseline.serve.process.cpu import Cpu
from fuseline.serve.settings import settings_from_flags
from tests.bf16 import CPU_HAS_BF16
from tests.export.int8.networks import Subject

CPU_RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture
def int8_package(tiny: Subject, tiny_ranges: dict[str, Range], tiny_package: Path, tmp_path: Path) -> ModelPackage:
    return with_int8(tiny_package, serialised(quantised_for_cpus(tiny.model, tiny_ranges)), tmp_path / "package")


def with_int8(package: Path, graph: bytes, folder: Path) -> ModelPackage:
    """A copy of `package` as `folder`, with an INT8 graph beside its others."""
    shutil.copytree(package, folder)
    copy = load_package(folder)
    (folder / "model.int8.onnx").write_bytes(graph)
    artifact = Artifact.model_validate(file_facts(folder, "model.int8.onnx") | {"format": "onnx", "precision": "int8"})
    save_manifest(folder, copy.manifest.model_copy(update={"artifacts": (*copy.manifest.artifacts, artifact)}))
    return load_package(folder)


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_a_package_serves_its_int8_graph_where_int8_is_asked_for(
    int8_package: ModelPackage, tiny: Subject, runtime: str
) -> None:
    pixels = tiny.held_out[:4]
    asked, _ = open_backend(int8_package, backend=runtime, precision="int8", buckets=(4,))
    assert (asked.name, asked.precision) == (runtime, "int8")
    graph = onnx.load(int8_package.folder / "model.int8.onnx")
    assert np.array_equal(asked.infer(pixels), int8_logits_by_runtime(graph, pixels)[runtime])
    asked.close()
    unasked, _ = open_backend(int8_package, backend=runtime, buckets=(4,))
    assert unasked.precision == ("bf16" if runtime == "openvino" and CPU_HAS_BF16 else "fp32")
    unasked.close()


def test_a_server_can_be_told_to_serve_int8() -> None:
    assert settings_from_flags(precision="int8").precision == "int8"


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_an_int8_graph_that_can_not_be_read_is_said(tiny_package: Path, tmp_path: Path, runtime: str) -> None:
    package = with_int8(tiny_package, b"no graph", tmp_path / "package")
    with pytest.raises(BackendError, match=r"can't load model.int8.onnx"):
        open_backend(package, backend=runtime, precision="int8", buckets=(4,))


def test_onnx_runtimes_cuda_provider_is_not_given_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert "no INT8 convolutions" in (onnxruntime_backend.why_no_cuda("int8") or "")
    assert "no INT8 convolutions" not in (onnxruntime_backend.why_no_cuda("fp16") or "")


def test_onnx_runtime_takes_exact_products_on_a_cpu_whose_fast_ones_overflow(
    tiny: Subject, tiny_ranges: dict[str, Range], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = serialised(quantised_for_cpus(tiny.model, tiny_ranges))
    logits = {}
    for features in (("avx512_vnni",), ("avx2",), None):
        monkeypatch.setattr(onnxruntime_backend, "this_cpu", lambda features=features: Cpu("a CPU", 2, features))
        session = onnxruntime_backend.open_session(graph)
        assert takes_exact_products(session) == (features != ("avx512_vnni",))
        logits[features] = session.run(["logits"], {"image": tiny.held_out[:8]})[0]
    assert np.array_equal(logits["avx2",], logits["avx512_vnni",])


@pytest.mark.parametrize(("features", "served"), [(("avx512_vnni",), True), (("avx2",), False), (None, False)])
def test_openvino_is_not_given_int8_on_an_x86_cpu_whose_products_overflow(
    int8_package: ModelPackage, monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...] | None, served: bool
) -> None:
    """Seen with oneDNN told to use no more than AVX2: logits off by 0.4 of their standard deviation."""
    monkeypatch.setattr(openvino_backend, "this_cpu", lambda: Cpu("a CPU", 2, features))
    monkeypatch.setattr(openvino_backend.platform, "machine", lambda: "x86_64")
    if served:
        backend, _ = open_backend(int8_package, backend="openvino", precision="int8", buckets=(4,))
    else:
        with pytest.raises(BackendUnavailableError, match="VNNI"):
            open_backend(int8_package, backend="openvino", precision="int8", buckets=(4,))
        backend, reason = open_backend(int8_package, precision="int8", buckets=(4,))
        assert backend.name == "onnxruntime"
        assert "VNNI" in reason
    backend.close()


def takes_exact_products(session: ort.InferenceSession) -> bool:
    try:
        return session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:
        return False


def logits_of_two_classes(second: float) -> np.ndarray:
    """(100, 2); the second class of the first three is `second`, all others' 0, the first class' 1."""
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (100, 1))
    logits[:3, 1] = second
    return logits


def test_int8_is_held_to_its_own_bar_and_ties_do_not_excuse_it() -> None:
    artifact = Artifact(path="model.int8.onnx", sha256="0" * 64, bytes=1, format="onnx", precision="int8")
    eager, served = logits_of_two_classes(0.99999), logits_of_two_classes(1.00001)
    for bar, passed in ((0.97, True), (0.98, False)):
        check = compare(artifact, "onnxruntime", "generated", eager, served, min_agreement=bar)
        assert (check.top1_agreement, check.ties, check.passed) == (0.97, 3, passed)
        assert f"at least {bar:.1%}" in check.bar
    far = compare(artifact, "onnxruntime", "generated", eager, logits_of_two_classes(0.8), min_agreement=0.97)
    assert (far.top1_agreement, far.passed) == (1.0, False)
