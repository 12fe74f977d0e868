"""What is measured, told and decided about goodput under overload."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import fuseline.benchmarks.peers.compare
from fuseline.benchmarks.harness.cpu_time import becomes_idle
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.load.calls import CallError, open_calls
from fuseline.benchmarks.load.closed_loop import ClosedResult
from fuseline.benchmarks.load.open_loop import NOT_SENT, OpenResult
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, PEERS, Case, OverloadCase
from fuseline.benchmarks.peers.compare import run_peers
from fuseline.benchmarks.peers.model import PeerModel
from fuseline.benchmarks.peers.overload import OverloadRound, OverloadRounds, OverloadStretch, overload_stretch
from fuseline.benchmarks.peers.processes import Server, started_peer, why_left_out
from fuseline.benchmarks.peers.requests import wire_of
from fuseline.benchmarks.peers.rounds import as_json, verdicts
from fuseline.benchmarks.peers.table import as_tables
from fuseline.benchmarks.report.page import write_report
from fuseline.benchmarks.report.results import PeersResult, read_results
from fuseline.protos.classify_pb2 import ClassifyResponse, ImageResult, Prediction
from fuseline.protos.classify_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from fuseline.protos.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from fuseline.serve.errors import BackendError, VerificationError
from tests.benchmarks.load.little_servers import little_server
from tests.commands import exit_code

LOADS = (0.8, 1.0, 2.0, 5.0)
CALL_S = 0.02


def stretch(load: float, goodput_per_s: float, capacity_per_s: float = 100.0, **changes: Any) -> OverloadStretch:
    settings: dict[str, Any] = {
        "load": load,
        "capacity_per_s": capacity_per_s,
        "capacity_errors": {},
        "offered_per_s": load * capacity_per_s,
        "goodput_per_s": goodput_per_s,
        "answered_per_s": goodput_per_s,
        "due": 300,
        "refused": {"RESOURCE_EXHAUSTED": 0.25, "DEADLINE_EXCEEDED": 0.001},
        "p50_ms": 120.0,
        "p99_ms": 240.0,
        "send_lag_p99_ms": 0.5,
        "generator_cpu_share": 0.1,
    }
    return OverloadStretch(**(settings | changes))


def a_round(
    *goodputs_per_s: float, capacity_per_s: float = 100.0, wrong_answers: int = 0, **changes: Any
) -> OverloadRound:
    stretches = (stretch(*pair, capacity_per_s, **changes) for pair in zip(LOADS, goodputs_per_s, strict=True))
    return OverloadRound(tuple(stretches), 500, wrong_answers)


def rounds_of(**rounds: list[OverloadRound]) -> OverloadRounds:
    return OverloadRounds("overload", {name.replace("_", "-"): listed for name, listed in rounds.items()})


FOUND = rounds_of(
    fuseline=[a_round(80, 96, 95, 88), a_round(40, 48, 46, 46, capacity_per_s=50), a_round(80, 100, 97, 95)],
    triton=[a_round(80, 60, 0, 0, p50_ms=None, p99_ms=None, wrong_answers=1)] * 3,
    triton_policy=[a_round(80, 90, 96, 0), a_round(80, 90, 10, 0), a_round(80, 90, 98, 0)],
)


def test_what_came_of_an_open_loop() -> None:
    result = OpenResult(
        due=8,
        answered=4,
        latency_s=np.array([0.1, 0.2, 0.25, 0.3, 0.9]),
        send_lag_s=np.array([0.001] * 8),
        answered_latency_s=np.array([0.1, 0.2, 0.25, 0.3]),
        errors=Counter({"DEADLINE_EXCEEDED": 9, NOT_SENT: 1}),
        window_errors=Counter({"DEADLINE_EXCEEDED": 3, NOT_SENT: 1}),
        answers=(),
        generator_cpu_share=0.1,
        window_s=2.0,
    )
    capacity = ClosedResult(
        requests_per_s=2.0,
        latency_s=np.array([0.5] * 8),
        errors=Counter({"UNAVAILABLE": 1}),
        answers=(),
        generator_cpu_share=0.1,
        window_s=4.0,
    )
    found = overload_stretch(capacity, result, load=2.0, deadline_ms=250.0)
    assert (found.goodput_per_s, found.answered_per_s, found.due) == (1.5, 2.0, 8)
    assert (found.capacity_per_s, found.offered_per_s, found.goodput_of_capacity) == (2.0, 4.0, 0.75)
    assert found.capacity_errors == {"UNAVAILABLE": 1}
    assert found.refused == {"DEADLINE_EXCEEDED": 0.375, NOT_SENT: 0.125}
    assert found.p50_ms == pytest.approx(225)
    assert found.send_lag_p99_ms == pytest.approx(1)


def test_goodput_is_held_against_the_capacity_of_its_own_round_and_against_each_triton() -> None:
    found = [(verdict.bar.against, verdict.values, verdict.passed) for verdict in verdicts([FOUND])]
    assert found == [
        ("", (0.95, 0.92, 0.97), True),
        ("", (0.88, 0.92, 0.95), False),
        ("triton", (0.95, 0.92, 0.97), True),
        ("triton-policy", pytest.approx((-0.01, 0.82, -0.01)), False),
        ("triton-policy-100", (), None),
        ("triton", (0.88, 0.92, 0.95), True),
        ("triton-policy", (0.88, 0.92, 0.95), True),
        ("triton-policy-100", (), None),
    ]
    alone = rounds_of(fuseline=[a_round(80, 100, 94, 96)])
    assert [verdict.passed for verdict in verdicts([alone])] == [False, True] + [None] * 6


def test_tables_and_json_tell_every_load_of_every_contender() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(as_tables([FOUND], {}))
    text = capture.get()
    assert "Fuseline beside its peers" not in text
    for told in (
        "0.950 (0.935 to 0.960)",
        "25% RESOURCE_EXHAUSTED",
        "5 x",
        "100.0",
        "Triton, queue policy",
        "not measured",
    ):
        assert told in text, told
    assert "Triton: 3 of 1500 checked answers wrong" in text
    assert "DEADLINE_EXCEEDED" not in text

    (case,) = as_json([FOUND], {})["cases"]
    assert case["case"]["deadline_ms"] == 250
    first, second, _ = case["rounds"]["fuseline"]
    assert [each["stretches"][0]["capacity_per_s"] for each in (first, second)] == [100, 50]
    assert [each["goodput_of_capacity"] for each in second["stretches"]] == [0.8, 0.96, 0.92, 0.92]
    assert second["stretches"][3]["refused"] == {"RESOURCE_EXHAUSTED": 0.25, "DEADLINE_EXCEEDED": 0.001}


def test_a_run_writes_json_and_chart_and_its_result_makes_the_chart_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(fuseline.benchmarks.peers.compare, "run_peers", lambda *_, **__: [FOUND])
    json, png, svg = tmp_path / "peers.json", tmp_path / "new" / "overload.png", tmp_path / "overload.svg"
    flags = ["peers", "--case", "overload", "--peer", "none"]
    # A bar is missed.
    assert exit_code("fuseline", "bench", *flags, "--json", json, "--chart", png) == 1
    assert exit_code("fuseline", "bench", *flags, "--chart", svg) == 1
    assert "ResNet-18, overload" in capsys.readouterr().out
    assert svg.read_text(encoding="utf-8").startswith("<?xml")

    (result,) = read_results([json])
    assert isinstance(result, PeersResult)
    assert result.curves() == FOUND.curves()
    page, chart = write_report([json], tmp_path / "report")
    assert "Goodput under overload" in page.read_text(encoding="utf-8")
    with Image.open(png) as drawn, Image.open(chart) as again:
        assert drawn.width > 1000
        assert np.array_equal(np.asarray(drawn), np.asarray(again))


def test_a_process_is_waited_for_until_it_rests() -> None:
    busy = "import sys\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert not becomes_idle(process.pid, 0.1)
        finally:
            process.kill()
    assert becomes_idle(process.pid, 0.1)


def test_a_request_to_triton_says_how_long_it_may_wait() -> None:
    case, pixels = CASES["overload"], np.zeros((1, 224, 224, 3), np.uint8)
    contender = CONTENDERS["triton-policy"]

    def sent(*queue_timeout_ms: float) -> ModelInferRequest:
        wire = wire_of(contender, case, "model", *queue_timeout_ms)
        return ModelInferRequest.FromString(wire.request(pixels, with_logits=False))

    assert sent(250.0).parameters["timeout"].int64_param == 250_000
    assert not sent().parameters


class OneAtATime(ClassifierServicer):
    """Each call takes `CALL_S`; while `room` are under way, more are refused with `status`."""

    def __init__(self, room: int, status: grpc.StatusCode) -> None:
        self._room, self._turn = threading.Semaphore(room), threading.Lock()
        self._status = status

    def Classify(self, request, context):
        if not self._room.acquire(blocking=False):
            context.abort(self._status, "too much to do")
        try:
            with self._turn:
                time.sleep(CALL_S)
            return ClassifyResponse(results=[ImageResult(predictions=[Prediction(index=1, probability=1.0)])])
        finally:
            self._room.release()


class OftenRight(GRPCInferenceServiceServicer):
    """Each call takes `CALL_S`; those whose number is in `wrong` are answered wrongly."""

    def __init__(self, wrong: Container[int]) -> None:
        self._wrong, self._turn, self._numbers = wrong, threading.Lock(), itertools.count()

    def ModelInfer(self, request, context):
        with self._turn:
            time.sleep(CALL_S)
            logits = [20, 0] if next(self._numbers) in self._wrong else [0, 20]
        output = ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=[1, 2])
        return ModelInferResponse(outputs=[output], raw_output_contents=[np.array(logits, "<f4").tobytes()])


def too_much(room: int, status: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED) -> Callable[[grpc.Server], None]:
    return partial(add_ClassifierServicer_to_server, OneAtATime(room, status))


@contextmanager
def modelled(add: Callable[[grpc.Server], None], name: str = "fuseline") -> Iterator[PeerModel]:
    """A model of two classes, of which the second is always right, behind what `add` adds to a server."""
    with little_server(servicer=add) as address:
        yield PeerModel(
            name="small",
            servers={name: Server(address, os.getpid())},
            bare=SimpleNamespace(),
            pixels=np.zeros((8, 2, 2, 3), np.uint8),
            expected={"fuseline": np.repeat(np.array([[0, 20]], np.float32), 8, axis=0)},
            left_out={},
        )


CASE = OverloadCase("small", 2, 2, ("fuseline",), (), concurrency=4, loads=(0.5, 3.0), deadline_ms=200.0)


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.benchmarks.peers.model._MIN_OPEN_REQUESTS", 20)


@pytest.mark.slow
@pytest.mark.usefixtures("few_requests")
def test_a_contender_is_offered_multiples_of_its_own_capacity() -> None:
    with modelled(too_much(room=4)) as model:
        found = model.measure_overload("fuseline", CASE, 0.8, seed=0)
    below, above = found.stretches
    assert (below.load, above.load) == CASE.loads
    assert 0.4 / CALL_S < above.capacity_per_s <= 1.05 / CALL_S
    assert above.offered_per_s == pytest.approx(3 * above.capacity_per_s)
    assert above.due == pytest.approx(above.offered_per_s * 0.8, abs=1)
    assert sum(below.refused.values()) < 0.3
    assert 0.4 < above.refused["RESOURCE_EXHAUSTED"] < 0.9
    assert above.answered_per_s * 0.8 == pytest.approx((1 - sum(above.refused.values())) * above.due)
    assert 0.5 < found.goodput_of_capacity(3.0) < 1.5


@pytest.mark.slow
@pytest.mark.usefixtures("few_requests")
def test_a_server_whose_queue_only_grows_keeps_nothing() -> None:
    # Those that nobody waits for any more are computed all the same.
    with modelled(too_much(room=1000)) as model:
        found = model.measure_overload("fuseline", CASE, 0.8, seed=0)
    assert found.goodput_of_capacity(3.0) < 0.3
    assert found.stretches[1].refused["DEADLINE_EXCEEDED"] > 0.7


@pytest.mark.slow
@pytest.mark.usefixtures("few_requests")
def test_other_errors_than_refusals_and_wrong_answers_end_the_run() -> None:
    broken = too_much(room=2, status=grpc.StatusCode.INTERNAL)
    with modelled(broken) as model, pytest.raises(BackendError, match="INTERNAL"):
        model.measure_overload("fuseline", CASE, 0.4, seed=0)
    with modelled(too_much(room=4)) as model:
        model.expected["fuseline"] = model.expected["fuseline"][:, ::-1]
        with pytest.raises(VerificationError, match="Fuseline answered class 1"):
            model.measure_overload("fuseline", CASE, 0.4, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("few_requests")
def test_a_peers_wrong_answers_are_counted_while_they_are_few() -> None:
    def add(wrong: Container[int]) -> Callable[[grpc.Server], None]:
        return partial(add_GRPCInferenceServiceServicer_to_server, OftenRight(wrong))

    # The tenth call belongs to the closed loop's burn-in, whose answers are kept.
    with modelled(add({10}), "triton") as model:
        found = model.measure_overload("triton", CASE, 0.4, seed=0)
    assert found.wrong_answers == 1
    assert found.checked_answers > 50
    with modelled(add(range(100_000)), "triton") as model, pytest.raises(VerificationError, match="Triton gives other"):
        model.measure_overload("triton", CASE, 0.4, seed=0)


@pytest.mark.slow
def test_a_short_run_measures_the_real_peers_under_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in PEERS:
        if (why := why_left_out(peer)) is not None:
            pytest.skip(why)
    everyone = ("fuseline", "triton", "triton-policy", "mosec")
    monkeypatch.setitem(CASES, "overload", OverloadCase("tiny", 32, 10, everyone, (), loads=(0.1, 0.3)))
    (found,) = run_peers(["overload"], peers=tuple(PEERS), rounds=1, seconds=0.5)
    for name in everyone:
        (measured,) = found.rounds[name]
        for each in measured.stretches:
            assert each.offered_per_s == pytest.approx(each.load * each.capacity_per_s)
            assert each.answered_per_s == pytest.approx(each.offered_per_s, rel=0.05)


@pytest.mark.slow
async def test_tritons_queue_policy_rejects_what_has_waited_too_long(tmp_path: Path) -> None:
    if (why := why_left_out("triton")) is not None:
        pytest.skip(why)
    graph = write_tiny_package(tmp_path / "tiny", side=32, classes=10) / "model.onnx"
    case, pixels = Case("tiny", 32, 10, (), ()), np.zeros((1, 32, 32, 3), np.uint8)

    async def ask(server: str, queue_timeout_ms: float) -> str:
        wire = wire_of(CONTENDERS[server], case, "model", queue_timeout_ms)
        with started_peer(server, graph, threads=1, folder=tmp_path) as started:
            async with open_calls(started.address, wire.method) as call:
                await call(wire.request(pixels, with_logits=False))
        return "answered"

    # A request waits 1 ms for others to come.
    assert await ask("triton", 0.1) == "answered"
    assert await ask("triton-policy", 250.0) == "answered"
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await ask("triton-policy", 0.1)
