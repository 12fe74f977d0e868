"""The steps of a run on a GPU: on a CPU, or where that can't be, on what a GPU would have told."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fuseline.benchmarks.engines.process import Stretch
from fuseline.benchmarks.gpu.comparison import GpuPlan, GpuRow, GpuRun, ModeFigures
from fuseline.benchmarks.gpu.contender import MODES
from fuseline.benchmarks.gpu.peaks import MeasuredPeak
from fuseline.benchmarks.gpu.run import runner
from fuseline.benchmarks.gpu.run.job import Job, NotHereError, RunPlan
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.benchmarks.gpu.run.runner import STEPS, run_all
from fuseline.benchmarks.gpu.run.step_process import run_step
from fuseline.benchmarks.gpu.run.steps import cpu, engines, package, probe, serving
from fuseline.benchmarks.gpu.subject import GpuSubject
from fuseline.benchmarks.gpu.work import NetworkWork
from fuseline.benchmarks.harness.server_process import ServerProcess
from fuseline.serve.backends import tensorrt
from fuseline.serve.model_package import ModelPackage
from tests.export.small_graph import CLASSES, ROW_SHAPE
from tests.fakes import gpu as fake_gpu
from tests.fakes.colours import write_colours_package
from tests.fakes.gpu import FakeCudart, FakeEngine, FakeTensorRT, expected_logits
from tests.serve.backends.engine_packages import details_of, install, package_of, put_gpu_in

H100 = "NVIDIA H100 80GB HBM3"


def job(out: Path, **changes: Any) -> Job:
    plan = RunPlan(
        out,
        device="cpu",
        models=("resnet8",),
        callers=(8, 2),
        workers=(1, 2, 99),
        lanes=(1,),
        images=(3,),
        seconds=0.2,
    )
    told = {"plan": plan, "work": out, "checkout": out, "data": None, "deadline": time.monotonic() + 300}
    return Job(**(told | changes))


@pytest.mark.slow
def test_machine_package_serving_and_cpu_are_done_for_real_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The trained network takes as long again; the rehearsal has it.
    monkeypatch.setattr(runner, "_beside_the_code", lambda: (tmp_path, None))
    plan = job(tmp_path).plan
    real = {name: STEPS[name] for name in ("machine", "package", "serving", "cpu")}
    record = run_all(plan, "run.sh", steps=real)
    assert [step.status for step in record.steps] == ["done"] * 4, [step.reason for step in record.steps]
    assert record.exit_code == 0
    rows = {row.what: row for step in record.steps for row in step.rows}
    assert rows["import onnxruntime"].figures["version"]
    assert rows["nvidia-smi"].status in ("not here", "measured")
    assert rows["packages of the machine"].details["numpy"]
    for name in ("OpenVINO FP32", "ONNX Runtime FP32"):
        found = rows[f"resnet8 on {name}"].figures
        assert found["device"] == "CPU"
        assert found["same class"] == 1
        assert 0 < found["difference"] < 1e-3
    assert rows["resnet8 on ONNX Runtime CUDA FP16"].status == "not here"
    assert rows["trained ResNet-20"].status == "not here"
    bare = rows["bare openvino fp32, batch 32, at the start"].figures["images/s"]
    for workers in (1, 2):
        for load in (
            "Classify, 1 image, 8 callers",
            "ClassifyStream, 1 image, 8 callers",
            "Classify, 3 images, 2 callers",
        ):
            found = rows[f"--workers {workers}: {load}"].figures
            assert found["of bare"] == pytest.approx(found["images/s"] / bare)
            assert found["p50 ms"] <= found["p99 ms"]
            assert found["server CPU ms an image"] > 0
    assert rows["--workers 99"].status == "dropped"
    instances = [what for what in rows if what.startswith("OpenVINO FP32, batch 8: ")]
    assert instances[0].startswith("OpenVINO FP32, batch 8: 1 x ")
    assert all(rows[what].figures["images/s"] > 0 for what in instances)
    for name in ("OpenVINO", "ONNX Runtime"):
        served = rows[f"{name} FP32, --lanes auto: Classify, 1 image, 32 callers"].figures
        assert served["images/s"] > 0
        assert served["of bare"] > 0


@pytest.mark.parametrize(
    ("capability", "running", "word"),
    [
        ("sm89", ("unset", "CURRENT", "SM86", "SM89"), "sm89"),
        ("sm90", ("unset", "CURRENT", "SM86"), "current"),
        ("sm90", ("SM86", "unset"), "portable"),
        # An engine that names another capability would be refused by every server here.
        ("sm90", ("SM86",), None),
        ("sm90", (), None),
        (None, (), None),
    ],
)
def test_engines_are_built_by_the_first_setting_that_answers_rightly_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: str | None, running: tuple[str, ...], word: str | None
) -> None:
    attempts = [
        {"asked": asked, "built": True, "seconds": 1.0, "plan_bytes": 10, "loaded": True, "ran": asked in running}
        for asked in ("unset", "CURRENT", "SM86", "SM89")
    ]

    def probed(on_attempt: Any) -> dict[str, Any]:
        for attempt in attempts:
            on_attempt(attempt)
        return {"capability": capability, "library_version": "1.7", "attempts": attempts, "answer": "so it is"}

    monkeypatch.setattr(probe, "probe_rtx", probed)
    rows: list[Row] = []
    asked = job(tmp_path)
    probe.run(asked, rows.append)
    assert asked.found.get("engine_for") == word
    assert {row.what.removeprefix("capability ") for row in rows if row.status == "measured"} == {*running, "answer"}
    assert rows[-1].reason == "so it is"


def test_without_tensorrt_for_rtx_the_probe_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"capability": "sm90", "library_version": None, "attempts": [], "answer": "not tried: it is not installed"}
    monkeypatch.setattr(probe, "probe_rtx", lambda _: told)
    with pytest.raises(NotHereError, match="not tried: it is not installed"):
        probe.run(job(tmp_path), [].append)


def test_rows_of_the_engines_have_both_ways_and_shares_on_a_gpu(tmp_path: Path) -> None:
    work = NetworkWork(
        multiply_adds=4 * 10**9, weight_elements=25 * 10**6, map_elements=22 * 10**6, pixel_bytes=150_528
    )
    rows = [
        GpuRow("resnet50", 2, name, precision, modes={mode: ModeFigures([rate], [2 / rate]) for mode in MODES})
        for name, precision, rate in (("eager", "fp32", 100.0), ("tensorrt", "fp16", 400.0))
    ]
    plan = GpuPlan(("resnet50",), (2,), ("eager", "tensorrt"))
    subjects = {"resnet50": GpuSubject("resnet50", tmp_path, tmp_path, 224, work)}
    run = GpuRun(plan, None, subjects, rows, [MeasuredPeak(H100, 700.0, "a product", 3000.0, 1024)])
    row = engines._row(run, rows[1])
    assert row.what == "resnet50, batch 2: TensorRT FP16"
    assert row.figures == {
        "images/s": 400,
        "ms": 5,
        "x eager FP32": 4,
        "images/s, host": 400,
        "ms, host": 5,
        "x eager FP32, host": 4,
        "TFLOPS": pytest.approx(3.2),
        "of the sheet's FP16": pytest.approx(3.2 / 989.5),
    }


@pytest.fixture
def on_fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelPackage:
    """A package with an engine that fits the fake GPU here, and runs on it."""
    cudart, library = FakeCudart(), FakeTensorRT()
    engine = FakeEngine(cudart, row_shape=ROW_SHAPE, classes=CLASSES, types=library.DataType)
    engine.layers = [{"Name": "stem", "Weights": {"Type": "Half", "Count": 216}}]
    put_gpu_in(monkeypatch, cudart)
    install(monkeypatch, {"tensorrt": library})
    monkeypatch.setattr(package, "import_library", lambda _: library)
    for module in (tensorrt, package):
        monkeypatch.setattr(module, "engine_from_plan", lambda *_: engine)
    return package_of(tmp_path / "small", ("fits.plan", "tensorrt", "fp16", details_of(), b"a plan"))


def held_on_fake_gpu(opened: ModelPackage) -> Row:
    pixels = np.random.default_rng(1).integers(0, 256, (40, *ROW_SHAPE), np.uint8)
    sample = package._Sample(pixels, expected_logits(pixels, CLASSES).astype(np.float32))
    return package._held_against("small", package._openers("cuda")["TensorRT FP16"], opened, sample)


def test_an_engine_on_a_gpu_is_held_against_pytorch_and_tells_its_weights(on_fake_gpu: ModelPackage) -> None:
    row = held_on_fake_gpu(on_fake_gpu)
    assert row.status == "measured", row.reason
    assert row.figures["device"] == "Fake RTX 4090 (TensorRT)"
    assert row.figures["pictures"] == 40
    assert row.figures["difference"] < 1e-6
    assert package._inspected(on_fake_gpu, on_fake_gpu.manifest.artifacts[-1]) == {"fp16": 216}


def test_an_engine_that_answers_zeros_is_a_wrong_answer(
    on_fake_gpu: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fake_gpu, "expected_logits", lambda pixels, classes: np.zeros((len(pixels), classes), np.float32)
    )
    row = held_on_fake_gpu(on_fake_gpu)
    assert row.status == "wrong answer"
    assert "is not served: on the package's reference images its logits differ" in (row.reason or "")


def test_the_most_telling_loads_come_first(tmp_path: Path) -> None:
    titles = [load.title for load in serving.loads(job(tmp_path, plan=RunPlan(tmp_path)))]
    assert titles == [
        "Classify, 1 image, 256 callers",
        "Classify, 1 image, 64 callers",
        "ClassifyStream, 1 image, 256 callers",
        "Classify, 16 images, 16 callers",
        "Classify, 32 images, 8 callers",
    ]


@pytest.fixture
def flags_of_servers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of the servers that a step starts; none is started, and nothing is measured."""
    flags: list[str] = []

    @contextmanager
    def started(folder: Path, *given: str) -> Iterator[ServerProcess]:
        flags.append(" ".join(given))
        yield ServerProcess("127.0.0.1:1", 1, 0.5, "it is ready")

    @contextmanager
    def bare(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(name="x", precision="fp16", device="x", measure=lambda *_: Stretch(32, (0.1,)))

    monkeypatch.setattr(serving, "EngineProcess", bare)
    monkeypatch.setattr(serving, "_target", lambda *_: None)
    monkeypatch.setattr(cpu, "_together", lambda *_: 100.0)
    monkeypatch.setattr(cpu, "connect", lambda *_: None)
    monkeypatch.setattr(cpu, "expect_logits_of", lambda *_: None)
    for step in (serving, cpu):
        monkeypatch.setattr(step, "started_server", started)
        monkeypatch.setattr(step, "measured", lambda what, *_: Row(what=what))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return flags


def test_a_server_with_one_lane_comes_after_the_one_that_chooses_and_has_the_plain_loads(
    flags_of_servers: list[str], tmp_path: Path
) -> None:
    found = {"package": write_colours_package(tmp_path / "colours"), "backend": "tensorrt"}
    rows: list[Row] = []
    serving.run(job(tmp_path, plan=RunPlan(tmp_path, workers=(1, 8)), found=found), rows.append)
    assert flags_of_servers == [
        "--backend tensorrt --workers 1",
        "--backend tensorrt --workers 1 --lanes 1",
        "--backend tensorrt --workers 8",
        "--backend tensorrt --workers 8 --lanes 1",
    ]
    assert [row.what for row in rows if "--lanes 1: " in row.what] == [
        f"--workers {workers} --lanes 1: {what}"
        for workers in (1, 8)
        for what in ("ready", "Classify, 1 image, 256 callers", "Classify, 1 image, 64 callers")
    ]


def test_lanes_of_servers_on_cpus_are_measured_beside_instances_and_without_the_gpu(
    flags_of_servers: list[str], tmp_path: Path
) -> None:
    found = {"package": write_colours_package(tmp_path / "colours")}
    rows: list[Row] = []
    cpu.run(job(tmp_path, plan=RunPlan(tmp_path), found=found), rows.append)
    choices = ("", " --lanes 1", " --lanes 2", " --lanes 4", " --lanes 8")
    assert [flags for flags in flags_of_servers if "bf16" not in flags] == [
        f"--backend {backend} --precision fp32{lanes}" for lanes in choices for backend in ("openvino", "onnxruntime")
    ]
    whats = [row.what for row in rows]
    assert [what for what in whats if "BF16" in what] == [
        f"OpenVINO BF16, --lanes {lanes}: Classify, 1 image, 32 callers" for lanes in ("auto", 1, 2, 4, 8)
    ]
    assert whats[1:4] == [
        "ONNX Runtime FP32, batch 8: 1 x 16 cores",
        "OpenVINO FP32, --lanes auto: Classify, 1 image, 32 callers",
        "ONNX Runtime FP32, --lanes auto: Classify, 1 image, 32 callers",
    ]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "ONNX Runtime would take the GPU"


def test_a_server_on_the_cpu_is_no_measurement_of_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="left no package"):
        serving.run(job(tmp_path), [].append)
    with pytest.raises(NotHereError, match="left no package"):
        cpu.run(job(tmp_path), [].append)


@pytest.mark.parametrize(("cores", "instances"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (16, [1, 2, 4, 8, 16])])
def test_instances_double_up_to_one_for_each_core(cores: int, instances: list[int]) -> None:
    assert list(cpu._instances(cores)) == instances


def test_the_gpu_tests_are_run_most_telling_first_and_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["gpu: x"]\naddopts = ["-m", "not gpu"]\n'
    )
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    head = "import pytest, warnings\npytestmark = pytest.mark.gpu\n"
    (folder / "test_gpu_leaks.py").write_text(
        head + "import os\ndef test_time(record_property):\n    record_property('images/s', 7)\n"
        "    assert 0 < float(os.environ['FUSELINE_LEAK_MINUTES']) < 5\n"
        "def test_word(): assert os.environ['FUSELINE_ENGINE_FOR'] == 'current'\n"
    )
    (folder / "test_gpu_backends.py").write_text(
        head + "def test_warns(): warnings.warn('old')\ndef test_wrong(): assert 1 == 2\n"
        "def test_none(): pytest.skip('no GPU')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('in /home/me/x.py')\ndef test_broken(broken): pass\n"
    )
    (folder / "test_another.py").write_text("import nothing_of_that_name\n")
    rows: list[Row] = []
    asked = job(tmp_path, checkout=tmp_path, found={"engine_for": "current"})
    status, reason = run_step(STEPS["tests"].module, asked, tmp_path / "log", rows.append)
    told = [(row.what, row.status) for row in rows]
    assert told[:1] == [("tests/gpu/test_another.py", "failed")], (told, reason)
    assert (status, reason) == ("failed", "RuntimeError: pytest ended with 2")

    (folder / "test_another.py").unlink()
    rows.clear()
    status, reason = run_step(STEPS["tests"].module, asked, tmp_path / "log", rows.append)
    assert (status, reason) == ("done", None)
    assert [(row.what, row.status, row.reason) for row in rows] == [
        ("test_gpu_backends.py::test_warns", "passed", None),
        ("test_gpu_backends.py::test_wrong", "failed", "assert 1 == 2"),
        ("test_gpu_backends.py::test_none", "skipped", "no GPU"),
        ("test_gpu_backends.py::test_broken (setup)", "failed", "ValueError: in x.py"),
        ("test_gpu_leaks.py::test_time", "passed", None),
        ("test_gpu_leaks.py::test_word", "passed", None),
    ]
    assert rows[-2].figures["images/s"] == 7


def test_without_tests_beside_the_code_that_is_said(tmp_path: Path) -> None:
    status, reason = run_step(STEPS["tests"].module, job(tmp_path), tmp_path / "log", [].append)
    assert (status, reason) == ("not here", "there is no tests/gpu beside the code")
