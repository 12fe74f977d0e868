"""`fuseline doctor`: the machine that the tests run on, and others that are played."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fuseline.serve import doctor
from fuseline.serve.backends import Judgement, judge_backends, open_backend, registry
from fuseline.serve.backends.gpu.cuda import Gpu
from fuseline.serve.backends.gpu.nvidia_driver import Driver
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.model_package import load_package
from fuseline.serve.process.cpu import Cpu
from tests.bf16 import ask_for_half, bf16_verification, play_cpu
from tests.fakes.colours import write_colours_package
from tests.fakes.gpu import FakeCudart, FakeTensorRT
from tests.serve.backends.engine_packages import GRAPHS, install, package_of, put_gpu_in
from tests.serve.processes import ROOT

ADA = Driver("580.95.05", "13.2", (Gpu("Fake RTX 4090", "sm89", 24 * 2**30),), None)


@pytest.fixture
def run(run_fuseline):
    """Run `fuseline doctor ARGUMENTS`; return exit code and stdout."""

    def run(*arguments):
        outcome = run_fuseline("doctor", *arguments)
        return outcome.exit_code, outcome.stdout

    return run


@pytest.fixture
def plain_cpu(monkeypatch):
    monkeypatch.setattr(doctor, "this_cpu", lambda: Cpu("a CPU", 4, ("avx2",)))


def no_cpu_runtimes(monkeypatch):
    monkeypatch.setattr(registry, "is_importable", lambda module: module not in {"onnxruntime", "openvino"})


def pip_knows(monkeypatch, *titles):
    """Let the runtimes of those titles be the ones that are installed, going by pip's records."""
    runtimes = tuple(
        replace(runtime, distributions=("numpy",) if runtime.title in titles else ()) for runtime in registry.runtimes()
    )
    monkeypatch.setattr(doctor, "runtimes", lambda: runtimes)


def test_it_names_runtimes_cpu_and_the_choice_that_open_backend_makes(run, tmp_path):
    folder = write_colours_package(tmp_path / "colours")
    code, text = run(folder)
    assert code == 0
    backend, _ = open_backend(load_package(folder), buckets=(1,))
    found = json.loads(run(folder, "--json")[1])
    (chosen,) = [c for c in found["candidates"] if c["title"] == found["choice"]]
    assert chosen["backend"] == backend.name
    assert f"✓ {found['choice']} is chosen" in text
    for name in ("ONNX Runtime", "OpenVINO", "TensorRT for RTX", "cuda-bindings"):
        assert name in text
    assert found["cpu"]["usable"] >= 1
    assert found["package"] == "colours"


def test_the_candidates_and_reasons_are_those_of_open_backend(tmp_path, monkeypatch):
    package = load_package(write_colours_package(tmp_path / "colours"))
    no_cpu_runtimes(monkeypatch)
    judged = judge_backends(package, buckets=(1,), engine_cache=tmp_path)
    with pytest.raises(BackendUnavailableError) as refused:
        open_backend(package, buckets=(1,), engine_cache=tmp_path)
    assert str(refused.value) == "no runtime can serve: " + "; ".join(f"{v.title}: {v.reason}" for v in judged)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_where_nothing_can_serve_the_code_is_2_and_it_says_what_to_install(arguments, run, monkeypatch):
    no_cpu_runtimes(monkeypatch)
    pip_knows(monkeypatch)
    code, text = run(*arguments)
    assert code == 2
    assert "OpenVINO serves fastest on CPUs: pip install 'fuseline[cpu]'" in text
    if arguments:
        assert json.loads(text)["choice"] is None
    else:
        assert "nothing here can serve" in text


def test_a_precision_that_the_package_lacks_is_why_each_is_passed_over(run, tmp_path):
    code, text = run(write_colours_package(tmp_path / "colours"), "--precision", "fp16")
    assert code == 2
    assert "✗ OpenVINO: package colours has no fp16 ONNX graph, only fp32" in text


def test_on_a_gpu_with_an_engine_or_a_builder_tensorrt_is_chosen(run, tmp_path, monkeypatch, plain_cpu):
    put_gpu_in(monkeypatch, FakeCudart())
    install(monkeypatch, {"tensorrt": FakeTensorRT()})
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: ADA)
    pip_knows(monkeypatch, "TensorRT")
    for arguments in ([], [package_of(tmp_path / "small").folder]):
        code, text = run(*arguments)
        assert code == 0
        assert "✓ TensorRT is chosen" in text
        assert "Fake RTX 4090, sm89, 24 GiB" in text
        assert "NVIDIA driver 580.95.05, serves CUDA up to 13.2" in text
        assert "For better" not in text


def test_a_gpu_that_goes_unused_is_said_with_the_cure(run, tmp_path, monkeypatch, plain_cpu):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: ADA)
    pip_knows(monkeypatch)
    fp32 = package_of(tmp_path / "small", graphs={"fp32": GRAPHS["fp32"]}).folder
    text = run(fp32)[1]
    assert "TensorRT serves fastest on the Fake RTX 4090: pip install 'fuseline[gpu]'" in text
    assert "small has no FP16 graph, which GPUs run fastest: export it with --fp16" in text
    pip_knows(monkeypatch, *(runtime.title for runtime in registry.runtimes()))
    assert "TensorRT would serve fastest on the Fake RTX 4090, but: " in run()[1]


def test_int8_is_advised_where_the_cpu_multiplies_it_and_it_is_not_asked_for_already(tmp_path, monkeypatch):
    folder = write_colours_package(tmp_path / "colours")
    package = load_package(folder)
    asked = {"artifacts": (package.manifest.artifacts[0].model_copy(update={"precision": "int8", "path": "int8"}),)}
    with_int8 = package.model_copy(update={"manifest": package.manifest.model_copy(update=asked)})
    cure = "export colours with --int8 and serve it with --precision int8"
    for features, its_package, precision, expected in (
        (("avx512_vnni",), package, "auto", f"(avx512_vnni): {cure}"),
        (("avx512_vnni",), with_int8, "auto", "(avx512_vnni): serve it with --precision int8"),
        (("avx512_vnni",), with_int8, "int8", None),
        (("avx512_vnni",), None, "auto", None),
        (("avx2",), package, "auto", None),
    ):
        monkeypatch.setattr(doctor, "this_cpu", lambda features=features: Cpu("a CPU", 2, features))
        advice = [line for line in doctor.diagnose(its_package, precision=precision).advice if "8-bit" in line]
        assert bool(advice) == (expected is not None)
        assert expected is None or advice[0].endswith(expected)


def test_the_precision_that_a_cpu_serves_is_told_with_the_reason(run, tmp_path, monkeypatch):
    folder = write_colours_package(tmp_path / "colours")
    monkeypatch.setattr(doctor, "this_cpu", lambda: Cpu("a CPU", 2, ("avx512_bf16",)))
    play_cpu(monkeypatch, has_bf16=True)
    has = "this CPU computes in BF16 (avx512_bf16)"
    assert f"    in bf16: {has} for packages that were exported with --fp16\n" in run()[1]
    text = run(folder)[1]
    assert "    in fp32: not bf16, as colours was exported without --fp16\n" in text
    assert f"{has}: export the model with --fp16, or serve it with --precision bf16" in text
    assert "    in bf16: --precision bf16 was given\n" in run(folder, "--precision", "bf16")[1]
    ask_for_half(folder)
    text = run(folder)[1]
    assert f"    in bf16: {has}, and colours was exported with --fp16\n" in text
    assert "serve it with --precision bf16" not in text
    assert json.loads(run(folder, "--json")[1])["precision"].startswith("bf16: this CPU")
    ask_for_half(folder, bf16_verification(passed=False))
    found = "the export of colours found top-1 agreement of 97.50% with PyTorch by openvino (CPU, BF16)"
    assert f"    in fp32: not bf16, as {found}, which misses the bar\n" in run(folder)[1]
    ask_for_half(folder)
    play_cpu(monkeypatch, has_bf16=False)
    assert "    in fp32: not bf16, as this CPU has neither AVX512_BF16 nor AMX" in run(folder)[1]


def test_a_driver_without_gpus_is_said(run, monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: Driver(None, "13.2", (), "cuInit failed: words"))
    text = run()[1]
    assert "NVIDIA driver of unknown version" in text
    assert "an NVIDIA driver is installed, but cuInit failed: words" in text


def test_the_choice_is_the_first_that_is_not_passed_over():
    judged = (Judgement("a", "A", "no", ""), Judgement("b", "B", None, ""), Judgement("c", "C", None, ""))
    assert doctor.Diagnosis((), None, Cpu("", 1, ()), None, judged, ()).choice.title == "B"


def test_what_is_no_package_is_wrong_input(run, tmp_path):
    assert run(tmp_path / "nowhere")[0] == 2


def test_it_is_light(tmp_path):
    folder = write_colours_package(tmp_path / "colours")
    code = (
        "import sys\n"
        "from fuseline.command import main\n"
        f"sys.argv = ['fuseline', 'doctor', {str(folder)!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'onnx', 'fuseline.export', 'grpc', 'openvino', 'tensorrt_rtx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_two_builds_of_one_runtime_the_one_that_is_imported_is_told(run, tmp_path, monkeypatch):
    for name, number in (("onnxruntime", "1.30.0"), ("onnxruntime_gpu", "1.31.1")):
        folder = tmp_path / name / f"{name}-{number}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    paths = [str(tmp_path / "onnxruntime"), str(tmp_path / "onnxruntime_gpu")]
    monkeypatch.setattr(sys, "path", [*paths, *sys.path])
    assert "ONNX Runtime      1.30.0 (onnxruntime)" in run()[1]
    monkeypatch.setattr(sys, "path", [*paths[::-1], *sys.path[2:]])
    assert "ONNX Runtime      1.31.1 (onnxruntime-gpu)" in run()[1]
