"""What is told and decided about Fuseline beside its peers."""

import dataclasses
import importlib.util
import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import fuseline.benchmarks.peers.processes
from fuseline.benchmarks.engines.process import Stretch as EngineStretch
from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.harness.pictures import as_jpegs, generated_pictures
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, PEERS, Case, goodput_at
from fuseline.benchmarks.peers.command import peers_asked_for
from fuseline.benchmarks.peers.compare import contenders_of, run_peers
from fuseline.benchmarks.peers.cpu_limit import measure_cpu_limit
from fuseline.benchmarks.peers.processes import (
    busy_neighbour,
    peer_python,
    peer_versions,
    started_peer,
    why_left_out,
)
from fuseline.benchmarks.peers.rounds import CaseRounds, Stretch, as_json, verdicts
from fuseline.benchmarks.peers.served_model import served_model
from fuseline.benchmarks.peers.table import as_tables
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.onnxruntime import open_session
from fuseline.serve.errors import BackendError, InputError, VerificationError
from fuseline.serve.images import decode_image
from fuseline.serve.model_package import InputSpec, Preprocessing, load_package
from fuseline.serve.reference import check_reference


def stretch(images_per_s: float = 100.0, *, images: int = 1, cpu_ms: float | None = 1.0, ms: float = 2.0) -> Stretch:
    return Stretch(images_per_s / images, images_per_s, ms, 2 * ms, cpu_ms)


def rounds_of(name: str, **stretches: list[Stretch]) -> CaseRounds:
    return CaseRounds(name, {contender.replace("_", "-"): listed for contender, listed in stretches.items()})


def measured(rounds: CaseRounds) -> list[tuple[tuple[float, ...], bool | None]]:
    return [(verdict.values, verdict.passed) for verdict in verdicts([rounds])]


def test_a_bar_against_the_echo_is_a_ratio_of_cpu_round_by_round() -> None:
    ours, echo = [stretch(cpu_ms=each) for each in (3, 2, 9)], [stretch(cpu_ms=2)] * 3
    assert measured(rounds_of("unary", fuseline=ours, echo=echo)) == [((1.5, 1.0, 4.5), True)]
    assert measured(rounds_of("unary", fuseline=ours[1:], echo=echo[1:])) == [((1.0, 4.5), False)]


def test_many_images_a_request_are_held_against_a_figure_and_against_mosecs_single_ones() -> None:
    ours = [stretch(1600, images=16, cpu_ms=0.8)]
    mosec = [stretch(100, cpu_ms=0.16)]
    assert measured(rounds_of("images", fuseline=ours, mosec_single=mosec)) == [
        ((pytest.approx(0.05),), True),
        ((pytest.approx(0.3125),), True),
    ]
    cheaper = rounds_of("images", fuseline=ours, mosec_single=[stretch(cpu_ms=0.04)])
    assert [passed for _, passed in measured(cheaper)] == [True, False]


def test_shared_memory_is_held_against_small_messages_and_rest_against_an_echo() -> None:
    small, large = [stretch(cpu_ms=0.4)], [stretch(cpu_ms=0.46)]
    assert measured(rounds_of("shared-memory", fuseline_shared_memory=large, fuseline_infer_32=small)) == [
        ((pytest.approx(1.15),), True)
    ]
    dearer = rounds_of("shared-memory", fuseline_shared_memory=[stretch(cpu_ms=0.5)], fuseline_infer_32=small)
    assert [passed for _, passed in measured(dearer)] == [False]
    many = rounds_of(
        "images-shared-memory",
        fuseline_shared_memory=[stretch(160, images=16, cpu_ms=1.1)],
        fuseline_infer=[stretch(160, images=16, cpu_ms=1.0)],
    )
    assert [passed for _, passed in measured(many)] == [False]
    rest = rounds_of("rest", fuseline_rest=[stretch(cpu_ms=0.03)], http_echo=[stretch(cpu_ms=0.02)])
    assert measured(rest) == [((pytest.approx(1.5),), True)]


def test_one_alone_is_held_against_the_bare_call_by_the_difference() -> None:
    bare = [stretch(cpu_ms=None, ms=0.5), stretch(cpu_ms=None, ms=0.75)]
    assert measured(rounds_of("alone", fuseline=[stretch(ms=1.75)] * 2, bare=bare)) == [((1.25, 1.0), True)]
    assert measured(rounds_of("alone", fuseline=[stretch(ms=1.75)], bare=bare[:1])) == [((1.25,), False)]


def test_the_network_has_a_bar_for_each_engine() -> None:
    found = rounds_of(
        "resnet18",
        fuseline=[stretch(39), stretch(32)],
        fuseline_openvino=[stretch(40), stretch(40)],
        fuseline_int8=[stretch(100), stretch(100)],
        fuseline_bf16=[stretch(68), stretch(60)],
        triton=[stretch(32), stretch(32)],
        bare=[stretch(40, cpu_ms=None), stretch(32, cpu_ms=None)],
    )
    assert measured(found) == [
        ((0.975, 1.0), True),
        ((1.21875, 1.0), False),
        ((1.25, 1.25), True),
        ((3.125, 3.125), False),
        ((1.7, 1.5), False),
    ]


def test_the_open_loop_is_held_against_tritons_p99() -> None:
    assert measured(rounds_of("resnet18-open", fuseline=[stretch(ms=3)], triton=[stretch(ms=6)])) == [((0.5,), True)]
    assert measured(rounds_of("resnet18-open", fuseline=[stretch(ms=4)], triton=[stretch(ms=6)])) == [
        ((pytest.approx(2 / 3),), False)
    ]


def test_jpegs_are_held_against_what_the_cpu_time_of_decoding_and_computing_allows() -> None:
    found = rounds_of(
        "jpeg",
        fuseline=[stretch(96)],
        fuseline_cpu_limit=[Stretch(100, 100, None, None, 20, decode_cpu_ms=2)],
        fuseline_int8=[stretch(270)],
        fuseline_int8_cpu_limit=[Stretch(300, 300, None, None, 6.67, decode_cpu_ms=2)],
    )
    assert measured(found) == [((0.96,), True), ((), None), ((), None), ((0.9,), False)]
    console = Console(width=250)
    with console.capture() as capture:
        console.print(as_tables([found], {}))
    assert "decode and engine alone, OpenVINO INT8" in capture.get()


def test_beside_a_busy_process_lanes_are_held_against_one_lane() -> None:
    found = rounds_of("busy", fuseline=[stretch(52)], fuseline_one_lane=[stretch(40)])
    assert measured(found) == [((1.3,), True), ((), None)]
    assert CONTENDERS["fuseline-openvino-one-lane"].flags == ("--lanes", "1")


def test_overload_keeps_nearly_all_of_the_capacity() -> None:
    own = [bar for bar in CASES["overload"].bars if not bar.against]
    assert [(bar.measure, bar.passes(0.95), bar.passes(0.94)) for bar in own] == [
        (goodput_at(2), True, False),
        (goodput_at(5), True, False),
    ]


def test_the_busy_neighbour_is_busy_and_ends() -> None:
    with busy_neighbour() as pid:
        before = cpu_seconds(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
        deadline = time.monotonic() + 30
        while (cpu_seconds(pid) or 0) < (before or 0) + 0.05:
            assert time.monotonic() < deadline
    assert cpu_seconds(pid) is None


def test_a_busy_neighbour_that_ends_too_early_is_told() -> None:
    with pytest.raises(BackendError, match="ended before what was measured"), busy_neighbour(0.0) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_cpu_limit_is_the_cores_over_what_a_file_costs() -> None:
    spec = InputSpec(height=32, width=32, channels=3, preprocessing=Preprocessing(resize_shorter_side=32))
    engine = EngineOf(16, 0.25)
    files = as_jpegs(generated_pictures((64, 64, 3), 2))
    found = measure_cpu_limit(engine, np.zeros((16, 32, 32, 3), np.uint8), files, spec, 0.0)  # type: ignore[arg-type]
    assert found.server_cpu_ms_per_request is not None
    assert found.decode_cpu_ms is not None
    assert 0 < found.decode_cpu_ms < found.server_cpu_ms_per_request
    assert found.images_per_s == pytest.approx(usable_cores() * 1e3 / found.server_cpu_ms_per_request)
    # The engine was busy: about the CPU time of a call, over its images.
    engine_ms = found.server_cpu_ms_per_request - found.decode_cpu_ms
    assert 0.2 * 1e3 * 0.25 / 16 < engine_ms < 1.5 * 1e3 * 0.25 / 16


class EngineOf:
    """In the place of an engine's process: calls of `rows` images that take this process `call_s` of CPU time."""

    pid = os.getpid()

    def __init__(self, rows: int, call_s: float) -> None:
        self._rows, self._call_s = rows, call_s

    def measure(self, pixels: NDArray[np.uint8], seconds: float) -> EngineStretch:
        end = time.process_time() + self._call_s
        began = time.monotonic()
        while time.process_time() < end:
            pass
        return EngineStretch(self._rows, (time.monotonic() - began,))


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 301), (256, 256), (97, 33)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_peers_decode_to_the_very_pixels_that_fuseline_does(size: tuple[int, int], mode: str) -> None:
    picture = Image.fromarray(generated_pictures((*size, 3), 1)[0]).convert(mode)
    picture.save(file := BytesIO(), "JPEG", quality=90)
    decoder = program("jpeg_decoder")
    ours = decode_image(file.getvalue(), height=224, width=224, resize_shorter_side=256)
    np.testing.assert_array_equal(decoder.decode(file.getvalue(), side=224, resize=256), ours)
    np.testing.assert_array_equal(decoder.open_decoder(224, 256)([file.getvalue()] * 2), np.stack([ours, ours]))


def test_without_a_peer_its_bars_are_not_measured_and_not_passed() -> None:
    found = [
        rounds_of("resnet18", fuseline=[stretch(38)], bare=[stretch(38, cpu_ms=None)]),
        CaseRounds("resnet18-open"),
    ]
    assert [passed for each in found for _, passed in measured(each)] == [True, None, None, None, None, None]
    left_out = {"triton": "Triton is left out: there is no .venv-peer-triton; make peers makes it"}

    written = as_json(found, left_out)
    assert [verdict["passed"] for verdict in written["verdicts"]] == [True, None, None, None, None, None]
    assert written["verdicts"][1]["values"] == ()
    assert written["left_out"] == left_out
    assert written["cases"][0]["stretches"]["fuseline"][0]["images_per_s"] == 38

    console = Console(width=200)
    with console.capture() as capture:
        console.print(as_tables(found, left_out))
    text = capture.get()
    assert text.count("not measured") == 5
    assert text.count("PASS") == 1
    assert left_out["triton"] in text


def test_every_bar_is_about_contenders_of_its_case() -> None:
    for case in CASES.values():
        assert set(case.contenders) <= set(CONTENDERS)
        for bar in case.bars:
            assert {bar.contender, bar.against or bar.contender} <= set(case.contenders)


def test_who_takes_part_depends_on_what_is_installed() -> None:
    assert contenders_of(CASES["unary"], ["triton", "mosec"]) == ("fuseline", "echo", "triton", "mosec", "bare")
    assert contenders_of(CASES["unary"], ["mosec"]) == ("fuseline", "echo", "mosec", "bare")
    assert contenders_of(CASES["images"], []) == ("fuseline", "echo", "bare")
    assert contenders_of(CASES["resnet18-open"], ["mosec"]) == ()
    assert contenders_of(CASES["resnet18-open"], ["triton"]) == ("fuseline", "triton")
    assert contenders_of(CASES["overload"], ["mosec"]) == ("fuseline", "mosec")
    assert contenders_of(CASES["overload"], ["triton"]) == ("fuseline", "triton", "triton-policy", "triton-policy-100")


def test_skipping_says_why(tmp_path: Path) -> None:
    assert why_left_out("triton", tmp_path) == (
        "Triton is left out: there is no .venv-peer-triton; make peers makes it"
    )
    python = peer_python("triton", tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    assert why_left_out("triton", tmp_path) is None


@pytest.mark.parametrize("package", ["onnxruntime", "pillow"])
def test_the_peers_run_the_same_version_of_the_engine_and_of_the_decoder(package: str) -> None:
    root = Path(fuseline.benchmarks.peers.processes.__file__).resolve().parents[2]

    def pinned(name: str) -> str:
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        return next(line.split()[0] for line in lines if line.startswith(f"{package}=="))

    ours = pinned("requirements.lock")
    for peer in PEERS:
        assert pinned(f"requirements-peer-{peer}.lock") == ours
        if why_left_out(peer) is None:
            assert f"{package}=={peer_versions(peer)[package]}" == ours


def test_an_environment_that_is_not_there_has_no_versions(tmp_path: Path) -> None:
    assert peer_versions("mosec", tmp_path) == {}


def test_asking_for_peers() -> None:
    missing = {"triton": "Triton is left out: there is no environment"}
    assert peers_asked_for(None, {}) == ("triton", "mosec")
    assert peers_asked_for(None, missing) == ("mosec",)
    assert peers_asked_for("none", missing) == ()
    assert peers_asked_for("mosec", missing) == ("mosec",)
    with pytest.raises(InputError, match="there is no environment"):
        peers_asked_for("mosec,triton", missing)
    with pytest.raises(InputError, match="abacus is none of triton, mosec"):
        peers_asked_for("abacus", missing)


def test_the_peers_engine_has_the_options_and_the_answers_of_fuselines(tmp_path: Path) -> None:
    graph = write_tiny_package(tmp_path / "tiny", side=32, classes=10) / "model.onnx"
    onnx_engine = program("onnx_engine")

    ours = open_session(graph, threads=1)
    assert described(onnx_engine.session_options(1)) == described(ours.get_session_options())
    assert onnx_engine.session_options(0).intra_op_num_threads == 0
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    engine = onnx_engine.open_engine(str(graph), 1)
    assert (engine.row_shape, engine.classes) == ((32, 32, 3), 10)
    np.testing.assert_array_equal(engine.infer(pixels), ours.run(None, {engine.input_name: pixels})[0])


def program(name: str) -> Any:
    """A module of the peers' programs, which run in environments of their own."""
    path = Path(fuseline.benchmarks.peers.processes.__file__).parent / "servers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(options: Any) -> dict[str, Any]:
    plain = {
        name: value
        for name in dir(options)
        if not name.startswith("_") and isinstance(value := getattr(options, name), bool | int | float | str)
    }
    key = "session.intra_op.allow_spinning"
    return plain | {
        "levels": (options.graph_optimization_level, options.execution_mode),
        key: options.get_session_config_entry(key),
    }


@pytest.mark.parametrize("side", [32, 224])
def test_the_tiny_package_is_a_package_that_runs(tmp_path: Path, side: int) -> None:
    package = load_package(write_tiny_package(tmp_path / "tiny", side=side, classes=10))
    backend, _ = open_backend(package, buckets=(1,), backend="onnxruntime", threads=1)
    assert check_reference(backend, package) == 0
    pixels = np.zeros((2, side, side, 3), np.uint8)
    pixels[1, 0, 0] = 255
    logits = backend.infer(pixels)
    assert logits.shape == (2, 10)
    assert not np.array_equal(logits[0], logits[1])
    backend.close()


@pytest.mark.slow
def test_a_short_run_measures_fuseline_the_echo_and_the_bare_backend() -> None:
    for each in run_peers(["unary", "stream"], peers=(), rounds=1, seconds=0.5):
        assert set(each.stretches) == {"fuseline", "echo", "bare"}
        for name in ("fuseline", "echo"):
            assert each.stretches[name][0].requests_per_s > 0
            assert (each.stretches[name][0].server_cpu_ms_per_request or 0) > 0
        assert each.stretches["bare"][0].images_per_s > 0


@pytest.mark.slow
def test_a_short_run_asks_by_shared_memory_and_by_rest() -> None:
    peers = [peer for peer in PEERS if why_left_out(peer) is None]
    for each in run_peers(["shared-memory", "images-shared-memory", "rest"], peers=peers, rounds=1, seconds=0.5):
        assert set(each.stretches) == set(contenders_of(each.case, peers))
        for name in each.stretches:
            assert (each.stretches[name][0].server_cpu_ms_per_request or 0) > 0
        assert all(verdict.passed is not None for verdict in verdicts([each]))


@pytest.mark.slow
def test_an_engine_that_cannot_run_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = tuple(bar for bar in CASES["resnet18"].bars if bar.contender == "fuseline-int8")
    monkeypatch.setitem(CASES, "no-int8", Case("tiny", 32, 10, ("fuseline-int8", "bare"), bars))
    said: list[str] = []
    (found,) = run_peers(["no-int8"], peers=(), rounds=1, seconds=0.2, say=said.append)
    assert set(found.stretches) == {"bare"}
    assert found.left_out["fuseline-int8"].startswith("Fuseline, OpenVINO INT8 is left out: package tiny32 has no int8")
    assert found.left_out["fuseline-int8"] in said
    assert measured(found) == [((), None)]


@pytest.mark.slow
def test_a_short_run_sends_jpegs_and_is_put_beside_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = Case("JPEG", 32, 10, ("fuseline", "fuseline-cpu-limit", "triton", "mosec"), (), jpeg=True)
    monkeypatch.setitem(CASES, "tiny-jpeg", jpeg)
    monkeypatch.setitem(CASES, "tiny-busy", Case("busy", 64, 10, ("fuseline",), (), busy=True))
    peers = [peer for peer in PEERS if why_left_out(peer) is None]
    sent, busy = run_peers(["tiny-jpeg", "tiny-busy"], peers=peers, rounds=1, seconds=0.5)
    assert set(sent.stretches) == {"fuseline", "fuseline-cpu-limit", *peers}
    limit = sent.stretches["fuseline-cpu-limit"][0]
    for name in ("fuseline", *peers):
        assert 0 < sent.stretches[name][0].images_per_s < limit.images_per_s
    assert busy.stretches["fuseline"][0].images_per_s > 0


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_a_short_run_measures_the_real_peer_and_checks_its_answers(peer: str) -> None:
    if (why := why_left_out(peer)) is not None:
        pytest.skip(why)
    for each in run_peers(["unary", "images"], peers=[peer], rounds=1, seconds=0.5):
        for name in contenders_of(each.case, [peer]):
            assert each.stretches[name][0].images_per_s > 0
        if peer in each.stretches:
            assert (each.stretches[peer][0].server_cpu_ms_per_request or 0) > 0


@pytest.mark.slow
def test_an_open_loop_goes_at_a_share_of_what_triton_does_and_wrong_answers_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in PEERS:
        if (why := why_left_out(peer)) is not None:
            pytest.skip(why)
    case = Case("open", 32, 10, ("fuseline", "triton", "mosec"), (), share_of_capacity=0.2)
    monkeypatch.setitem(CASES, "open", case)
    (found,) = run_peers(["open"], peers=tuple(PEERS), rounds=1, seconds=0.5)
    for name in case.contenders:
        (stretch,) = found.stretches[name]
        assert stretch.offered_per_s == pytest.approx(0.2 * found.capacity_per_s[0])
        assert stretch.requests_per_s == pytest.approx(stretch.offered_per_s, rel=0.02)

    with served_model(case, case.contenders, {}, tmp_path) as model:
        wrong = dataclasses.replace(model, expected={"fuseline": model.expected["fuseline"][::-1]})
        for name in case.contenders:
            with pytest.raises(VerificationError, match=CONTENDERS[name].title):
                wrong.measure_closed(name, CASES["unary"], 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_that_cannot_start_says_what_it_said(peer: str, tmp_path: Path) -> None:
    if (why := why_left_out(peer)) is not None:
        pytest.skip(why)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(BackendError, match=f"(?s){PEERS[peer]} was never ready.*model.onnx"),
        started_peer(peer, tmp_path / "model.onnx", threads=1, folder=tmp_path),
    ):
        pass
