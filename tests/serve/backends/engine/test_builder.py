"""Engines are built for real by TensorRT for RTX, ahead of time, without a GPU; skipped where it is not installed."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fuseline.serve.backends.engine import builder as engine_builder
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.backends.engine.key import EngineDetails
from fuseline.serve.backends.engine.progress import BuildProgress
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.errors import BackendError, BackendUnavailableError, InputError, VerificationError
from tests.export.small_graph import CLASSES, quantised_graph, small_graph
from tests.serve.processes import ROOT


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
    assert build.bound_to.library_version == trt.__version__
    assert build.bound_to.compute_capability == "sm89"
    assert build.bound_to.profile == (1, 8, 32)
    assert build.precision_counts["CONVOLUTION"] == {"HALF": 2}
    assert build.precision_counts["MATRIX_MULTIPLY"] == {"HALF": 1}
    assert build.bound_to.graph_sha256 == hashlib.sha256(small_graph()).hexdigest()
    assert build.seconds > 0
    assert build.timing_cache is None


def test_an_fp32_graph_becomes_an_engine_whose_weighted_layers_are_float(trt):
    build = build_engine(small_graph("fp32"), precision="fp32", capability="sm120", max_batch=4)
    assert build.precision_counts["CONVOLUTION"] == {"FLOAT": 2}
    assert build.precision_counts["MATRIX_MULTIPLY"] == {"FLOAT": 1}
    assert build.bound_to.profile == (1, 4, 4)


def test_an_fp32_graph_is_never_passed_off_as_fp16(trt):
    with pytest.raises(VerificationError, match=r"3 of 3 .* not HALF .*stem/Conv \(FLOAT\), block/Conv .*, fc/Gemm"):
        build_engine(small_graph("fp32"), precision="fp16", capability="sm89", max_batch=4)


def test_the_exporters_own_graphs_build_in_both_precisions(tiny_package, trt):
    fp32 = (tiny_package / "model.onnx").read_bytes()
    fp16 = (tiny_package / "model.fp16.onnx").read_bytes()
    for graph, precision, layer_type in ((fp32, "fp32", "FLOAT"), (fp16, "fp16", "HALF")):
        build = build_engine(graph, precision=precision, capability="sm89", max_batch=32)
        assert build.precision_counts["CONVOLUTION"] == {layer_type: 20}
        assert build.precision_counts["MATRIX_MULTIPLY"] == {layer_type: 1}


def test_a_graph_that_transposes_bytes_is_bound_to_by_the_bytes_that_the_package_has(trt):
    graph = small_graph(transpose_first=True)
    build = build_engine(graph, precision="fp16", capability="sm89", max_batch=4)
    assert build.bound_to.graph_sha256 == hashlib.sha256(graph).hexdigest()


def test_a_layer_that_stays_fp32_must_be_named_or_all_be_allowed(trt):
    graph = small_graph(fp32_classifier=True)
    arguments = {"precision": "fp16", "capability": "sm89", "max_batch": 4}
    build = build_engine(graph, allowed_fp32={"fc/Gemm"}, **arguments)
    assert build.achieved.layers == {"fp16": 2, "fp32": 1}
    assert build.achieved.weights == {"fp16": 8 * 3 * 9 + 8 * 8 * 9, "fp32": CLASSES * 8}
    assert build.achieved.multiply_adds == {"fp16": 8 * 3 * 9 * 8 * 8 + 8 * 8 * 9 * 4 * 4, "fp32": CLASSES * 8}
    assert build.achieved.share("fp16") == pytest.approx(1 - 40 / (13824 + 9216 + 40))
    assert build.details["achieved"]["layers"] == {"fp16": 2, "fp32": 1}
    assert str(build.achieved) == "layers: 2 fp16, 1 fp32; multiply-adds: 99.8% fp16, 0.2% fp32"
    assert build_engine(graph, allowed_fp32=None, **arguments).achieved == build.achieved
    with pytest.raises(VerificationError, match=r"1 of 3 .* not HALF in the graph: fc/Gemm \(FLOAT\)$"):
        build_engine(graph, allowed_fp32={"stem/Conv"}, **arguments)


@pytest.mark.parametrize("allowed", [None, {"stem/Conv", "block/Conv", "fc/Gemm"}])
def test_an_fp16_engine_without_an_fp16_layer_is_refused_whatever_is_allowed(allowed, trt):
    with pytest.raises(VerificationError, match="3 of 3 .* not HALF"):
        build_engine(small_graph("fp32"), precision="fp16", capability="sm89", max_batch=4, allowed_fp32=allowed)


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (small_graph("fp32"), "fp32"),
        (small_graph(fp32_classifier=True), "fp16"),
        (quantised_graph(), "int8"),
    ],
    ids=["fp32", "fp16 with an fp32 classifier", "int8"],
)
def test_on_sm75_an_fp32_matrix_product_is_refused_by_name(graph, precision, trt):
    arguments = {"precision": precision, "max_batch": 4, "allowed_fp32": None, "layer_names": {"fc": "linear"}}
    with pytest.raises(BackendUnavailableError) as refused:
        build_engine(graph, capability="sm75", **arguments)
    assert "on sm75, and may answer zeros instead: fc/Gemm (layer linear of the checkpoint)" in str(refused.value)
    assert "export --fp16" in str(refused.value)
    # No other capability has that fault.
    assert build_engine(graph, capability="sm80", **arguments).plan


def test_on_sm75_a_graph_that_is_fp16_throughout_is_built(trt):
    assert build_engine(small_graph(), precision="fp16", capability="sm75", max_batch=4).plan


@pytest.fixture(scope="module")
def quantised():
    return quantised_graph()


def test_the_layers_between_dequantised_tensors_are_int8(quantised, trt):
    build = build_engine(quantised, precision="int8", capability="sm89", max_batch=4, allowed_fp32={"stem/Conv"})
    assert build.plan
    assert build.achieved.layers == {"int8": 2, "fp32": 1}
    assert build.achieved.weights == {"int8": 8 * 8 * 9 + CLASSES * 8, "fp32": 8 * 3 * 9}
    assert build_engine(quantised, precision="int8", capability="sm89", max_batch=4, allowed_fp32=None).achieved.layers


def test_a_layer_that_is_not_quantised_is_named(quantised, trt):
    with pytest.raises(VerificationError, match=r"1 of 3 .* not INT8 in the graph: stem/Conv \(FLOAT\)"):
        build_engine(quantised, precision="int8", capability="sm89", max_batch=4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_graph_is_never_passed_off_as_int8_nor_an_int8_graph_as_a_float_one(precision, quantised, trt):
    for graph, asked in ((small_graph(precision), "int8"), (quantised, precision)):
        with pytest.raises(VerificationError, match=f"an {asked} engine was asked for"):
            build_engine(graph, precision=asked, capability="sm89", max_batch=4, allowed_fp32=None)


def test_messages_name_the_checkpoints_layers(trt):
    names = {"stem": "module.conv1", "fc": "module.linear", "strange0": "module.odd"}
    with pytest.raises(VerificationError, match=r"stem/Conv \(layer module\.conv1 of the checkpoint\) \(FLOAT\)"):
        build_engine(small_graph("fp32"), precision="fp16", capability="sm89", max_batch=4, layer_names=names)
    with pytest.raises(BackendError, match=r"NoSuchOperator0 'strange0 \(layer module\.odd of the checkpoint\)'"):
        build_engine(
            small_graph(unknown_operators=1), precision="fp16", capability="sm89", max_batch=4, layer_names=names
        )


def test_the_key_is_a_file_stem_that_changes_with_everything_an_engine_is_bound_to(built, trt):
    build, _ = built
    assert build.key == f"tensorrt_rtx-{trt.__version__}-sm89-b1.8.32-{build.bound_to.graph_sha256[:16]}"
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


def test_ctrl_c_before_the_build_has_begun_leaves_no_build_behind(trt, monkeypatch):
    real_start = threading.Thread.start

    def interrupted_start(thread):
        real_start(thread)
        if thread.name == "tensorrt-build":
            started.append(thread)
            raise KeyboardInterrupt

    started = []
    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            small_graph(),
            precision="fp16",
            capability="sm89",
            max_batch=4,
            on_progress=lambda *_: pytest.fail("a build that nobody waits for"),
        )
    [thread] = started
    thread.join(30)
    assert not thread.is_alive()


_INTERRUPTED_BUILD = """
import os, signal, sys, time
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.command_line import run_command_line
from tests.export.small_graph import small_graph

# A shell's background process begins with SIGINT ignored, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
numbers = [signal.Signals[f"SIG{name}"] for name in sys.argv[1].split()]

def interrupt(phase, share):
    while numbers:
        os.kill(os.getpid(), numbers.pop(0))
        # A main thread that doesn't wait for the build finalises the interpreter meanwhile: whoever comes back to it
        # from native code then ends the process.
        for _ in range(300):
            time.sleep(0.001)

def build():
    try:
        build_engine(small_graph(), precision="fp16", capability="sm89", max_batch=4, on_progress=interrupt)
    except KeyboardInterrupt:
        sys.exit(130)

run_command_line(build)
"""


@pytest.mark.parametrize(("signals", "code"), [("INT", 130), ("TERM", 143), ("INT TERM", 143), ("TERM INT INT", 143)])
@pytest.mark.usefixtures("trt")
def test_signals_never_end_the_process_with_a_build_in_native_code(signals, code):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _INTERRUPTED_BUILD, signals],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


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


def test_tensorrt_logs_through_logging_and_prints_nothing(trt, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "fuseline.serve.backends.engine.library"):
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

    assert engine_builder._use_timing_cache(None, Config(), b"measured here") == b"measured here"
    assert engine_builder._use_timing_cache(None, Config(), b"measured elsewhere") == b""
    assert engine_builder._use_timing_cache(None, Config(), None) == b""


def test_importing_the_module_imports_no_runtime():
    heavy = ("tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "fuseline.export")
    program = f"import sys, fuseline.serve.backends.engine.builder; print([n for n in {heavy} if n in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


@pytest.mark.gpu
def test_an_engine_is_built_for_the_gpu_at_hand():
    build = build_engine(small_graph(), precision="fp16", capability=None, max_batch=8)
    assert build.bound_to.compute_capability == available_builder(None).capability
    if build.library == "tensorrt":
        assert build.timing_cache
        again = build_engine(
            small_graph(), precision="fp16", capability=None, max_batch=8, timing_cache=build.timing_cache
        )
        assert again.key == build.key
