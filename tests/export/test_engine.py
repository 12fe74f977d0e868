"""Engines are built for real by TensorRT for RTX, ahead of time, without a GPU; skipped where it is not installed."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest

from export import engine as engine_module
from export.engine import available_builder, build_engine
from export.engine_progress import BuildProgress
from export.onnx_graph import with_cast_first
from serve.backends.cuda import Gpu
from serve.backends.tensorrt_engine import EngineDetails
from serve.errors import BackendError, BackendUnavailableError, InputError, VerificationError
from tests.export.small_graph import small_graph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise BackendUnavailableError("no NVIDIA driver is installed on this machine")

    monkeypatch.setattr(engine_module, "open_cuda", refuse)


def gpu_at_hand(monkeypatch, capability, installed):
    class FakeCuda:
        def gpu(self):
            return Gpu("a GPU", capability)

    monkeypatch.setattr(engine_module, "open_cuda", FakeCuda)
    monkeypatch.setattr(engine_module, "is_installed", lambda library: library in installed)


@pytest.fixture(scope="module")
def built(trt):
    """One FP16 build, with what its progress told."""
    told = []
    build = build_engine(
        small_graph(),
        precision="fp16",
        capability="sm89",
        max_batch=32,
        opt_batch=8,
        on_progress=lambda phase, share: told.append((phase, share)),
    )
    return build, told


def test_an_fp16_graph_becomes_an_engine_whose_weighted_layers_are_half(built, trt):
    build, _ = built
    assert build.plan
    assert build.library == "tensorrt_rtx"
    assert build.library_version == trt.__version__
    assert build.compute_capability == "sm89"
    assert build.profile == (1, 8, 32)
    assert build.precision_counts["CONVOLUTION"] == {"HALF": 2}
    assert build.precision_counts["MATRIX_MULTIPLY"] == {"HALF": 1}
    assert build.graph_sha256 == hashlib.sha256(small_graph()).hexdigest()
    assert build.seconds > 0
    assert build.timing_cache is None


def test_an_fp32_graph_becomes_an_engine_whose_weighted_layers_are_float(trt):
    build = build_engine(small_graph("fp32"), precision="fp32", capability="sm120", max_batch=4)
    assert build.precision_counts["CONVOLUTION"] == {"FLOAT": 2}
    assert build.precision_counts["MATRIX_MULTIPLY"] == {"FLOAT": 1}
    assert build.profile == (1, 4, 4)


def test_an_fp32_graph_is_never_passed_off_as_fp16(trt):
    with pytest.raises(VerificationError, match=r"3 of 3 .* not HALF .*stem/Conv \(FLOAT\), block/Conv .*, fc/Gemm"):
        build_engine(small_graph("fp32"), precision="fp16", capability="sm89", max_batch=4)


def test_the_exporters_own_graphs_build_in_both_precisions(tiny_package, trt):
    fp32 = with_cast_first(onnx.load(tiny_package / "model.onnx")).SerializeToString()
    fp16 = (tiny_package / "model.fp16.onnx").read_bytes()
    for graph, precision, layer_type in ((fp32, "fp32", "FLOAT"), (fp16, "fp16", "HALF")):
        build = build_engine(graph, precision=precision, capability="sm89", max_batch=32)
        assert build.precision_counts["CONVOLUTION"] == {layer_type: 20}
        assert build.precision_counts["MATRIX_MULTIPLY"] == {layer_type: 1}


def test_a_graph_that_transposes_bytes_is_refused_with_the_parsers_reason(trt):
    with pytest.raises(BackendError, match=r"node 0 Transpose 'to_nchw': .*first input has type UInt8"):
        build_engine(small_graph(transpose_first=True), precision="fp16", capability="sm89", max_batch=4)


def test_the_key_is_a_file_stem_that_changes_with_everything_an_engine_is_bound_to(built, trt):
    build, _ = built
    assert build.key == f"tensorrt_rtx-{trt.__version__}-sm89-b1.8.32-{build.graph_sha256[:16]}"
    assert Path(build.key).name == build.key
    again = build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=32, opt_batch=8)
    assert again.key == build.key
    other_capability = build_engine(small_graph(), precision="fp16", capability="sm120", max_batch=32, opt_batch=8)
    other_profile = build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=16, opt_batch=8)
    other_graph = build_engine(small_graph("fp32"), precision="fp32", capability="sm89", max_batch=32, opt_batch=8)
    assert len({build.key, other_capability.key, other_profile.key, other_graph.key}) == 4


def test_the_details_are_what_a_server_reads(built):
    build, _ = built
    details = EngineDetails.model_validate(build.details)
    assert details.profile == (1, 8, 32)
    assert details.compute_capability == "sm89"
    assert build.details["precision_counts"]["CONVOLUTION"] == {"HALF": 2}


def test_progress_rises_from_0_to_1_and_names_phases(built):
    _, told = built
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len({phase for phase, _ in told}) > 3
    assert len(set(shares)) > 10


def test_nested_phases_count_within_the_step_of_their_parent():
    told = []
    progress = BuildProgress(lambda phase, share: told.append((phase, share)))
    progress.start("build", None, 2)
    progress.complete_step("build", 0)
    progress.start("tactics", "build", 4)
    progress.complete_step("tactics", 0)
    progress.complete_step("tactics", 1)
    progress.finish("tactics")
    progress.complete_step("build", 1)
    assert [share for _, share in told] == [0, 0.5, 0.5, 0.625, 0.75, 1]


def test_what_on_progress_raises_stops_the_build_and_is_raised(trt):
    def fail(phase, share):
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=4, on_progress=fail)


def test_ctrl_c_stops_the_build(trt):
    interrupted, released = threading.Event(), threading.Event()

    def interrupt(phase, share):
        if not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)
            released.wait(30)

    def release(number, frame):
        released.set()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, release)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=4, on_progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert released.is_set()


def test_all_parser_errors_come_in_one_message_with_their_nodes(trt):
    with pytest.raises(BackendError) as caught:
        build_engine(small_graph(unknown_operators=2), precision="fp16", capability="sm89", max_batch=4)
    message = str(caught.value)
    assert "NoSuchOperator0 'strange0'" in message
    assert "NoSuchOperator1 'strange1'" in message
    assert trt.__version__ in message


@pytest.mark.parametrize("graph", [b"", b"no graph at all", small_graph()[:500]], ids=["empty", "text", "truncated"])
def test_what_is_no_graph_is_refused(graph, trt):
    with pytest.raises((InputError, BackendError), match=r"the graph has nothing|can't read the ONNX graph"):
        build_engine(graph, precision="fp16", capability="sm89", max_batch=4)


def test_a_graph_of_another_form_is_refused_with_both_forms(trt):
    with pytest.raises(InputError, match=r"has pixels UINT8 \(-1, 16, 16, 3\), logits .* built from image UINT8"):
        build_engine(small_graph(input_name="pixels"), precision="fp16", capability="sm89", max_batch=4)


@pytest.mark.parametrize(("max_batch", "opt_batch"), [(0, None), (4, 8), (4, 0)])
def test_a_batch_profile_out_of_order_is_refused(max_batch, opt_batch):
    with pytest.raises(InputError, match="1 <= optimal <= largest"):
        build_engine(b"", precision="fp16", capability="sm89", max_batch=max_batch, opt_batch=opt_batch)


@pytest.mark.parametrize("capability", ["sm90", "SM89", "current", "none", "89", ""])
def test_an_unknown_capability_is_refused_with_those_on_offer(capability, no_gpu, trt):
    with pytest.raises(InputError, match=f"{capability!r}, it builds for .*sm89"):
        available_builder(capability)


def test_without_a_gpu_nothing_builds_for_the_gpu_at_hand(no_gpu):
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver .* --engine sm89"):
        available_builder(None)


def test_without_tensorrt_for_rtx_the_message_says_how_to_install_it(monkeypatch, no_gpu):
    monkeypatch.setattr(engine_module, "is_installed", lambda library: False)
    with pytest.raises(BackendUnavailableError, match=r"sm89 takes TensorRT for RTX: pip install 'fuseline\[rtx\]'"):
        available_builder("sm89")


def test_tensorrt_builds_for_the_gpu_at_hand_where_it_is_installed(monkeypatch):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt", "tensorrt_rtx"})
    for capability in (None, "sm90"):
        choice = available_builder(capability)
        assert (choice.library, choice.capability) == ("tensorrt", "sm90")


def test_tensorrt_for_rtx_builds_for_other_gpus_and_where_tensorrt_is_not_installed(monkeypatch, trt):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt", "tensorrt_rtx"})
    assert available_builder("sm89").library == "tensorrt_rtx"
    gpu_at_hand(monkeypatch, "sm89", {"tensorrt_rtx"})
    assert (available_builder(None).library, available_builder(None).capability) == ("tensorrt_rtx", "sm89")


def test_a_gpu_that_only_tensorrt_serves_says_so(monkeypatch, trt):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt_rtx"})
    with pytest.raises(BackendUnavailableError, match=r"the GPU here is sm90: pip install 'fuseline\[gpu\]'"):
        available_builder(None)


def test_tensorrt_logs_through_logging_and_prints_nothing(trt, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "serve.backends.tensorrt_engine"):
        build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=4)
    assert any("tensorrt_rtx:" in record.message for record in caplog.records)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_timing_cache_of_another_machine_is_replaced_by_an_empty_one():
    class Config:
        def create_timing_cache(self, data):
            return data

        def set_timing_cache(self, cache, *, ignore_mismatch):
            return cache in (b"", b"measured here")

    assert engine_module._use_timing_cache(None, Config(), b"measured here") == b"measured here"
    assert engine_module._use_timing_cache(None, Config(), b"measured elsewhere") == b""
    assert engine_module._use_timing_cache(None, Config(), None) == b""


def test_importing_the_module_imports_no_runtime():
    program = (
        "import sys, export.engine; print(sorted({'tensorrt', 'tensorrt_rtx', 'cuda', 'torch'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


@pytest.mark.gpu
def test_an_engine_is_built_for_the_gpu_at_hand():
    build = build_engine(small_graph(), precision="fp16", capability=None, max_batch=8)
    assert build.compute_capability == available_builder(None).capability
    if build.library == "tensorrt":
        assert build.timing_cache
        again = build_engine(
            small_graph(), precision="fp16", capability=None, max_batch=8, timing_cache=build.timing_cache
        )
        assert again.key == build.key
