"""A backend that raises, hangs, or answers nonsense, in a real server with a load on it."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ServerLiveRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.services.health import LIVENESS
from tests.faults.faulty_server import HANGS, NOT_A_NUMBER, RAISES, TOO_FEW
from tests.faults.load import REQUESTS, load_on
from tests.serve.processes import FAST, ServerProcess, free_port, get, own_channel, server_process
from tests.serve.workers.test_worker_processes import metric, until

FAULTY = ("-m", "tests.faults.faulty_server")
TIMEOUT_S = 1.0
FLAGS = (*FAST, "--backend-timeout-s", TIMEOUT_S)
NOTICED_S = 1.25 * TIMEOUT_S
"""Longest time until a hang is noticed: the bound, and a look."""
PROCESS_SILENT_S = 5.0
"""Longest time until a process is ended that is silent, where the bound is shorter than pings can tell."""
SLACK_S = 2.0
"""Time that a busy machine may add to any of this."""


PROCESSES = pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)


def picture(number: int, rows: int = 1) -> ClassifyRequest:
    image = np.full((8, 8, 3), number, np.uint8).tobytes()
    return ClassifyRequest(images=[Image(raw=image)] * rows)


async def status_of(server: ServerProcess, request: ClassifyRequest, timeout_s: float = 30) -> tuple[str, str]:
    """The status of the answer, and its message."""
    async with own_channel(server) as channel:
        try:
            await ClassifierStub(channel).Classify(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code().name, str(error.details())
    return "OK", ""


async def probe(server: ServerProcess, path: str) -> int:
    return (await asyncio.to_thread(get, str(server.http_address), path))[0]


@PROCESSES
async def test_a_call_that_raises_or_answers_nonsense_fails_its_own_requests_only(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FLAGS, *workers, "--http-port", free_port(), command=FAULTY) as server:
        # Each request has a batch of its own, so that who shares one with a fault is known.
        async with load_on(server, callers=4) as load:
            for fault in (RAISES, NOT_A_NUMBER, TOO_FEW) * 5:
                code, message = await status_of(server, picture(fault, 32))
                assert code == "INTERNAL"
                assert "its log has more under error" in message
            await load.until_answered(50)
            assert [await probe(server, path) for path in ("/livez", "/readyz", "/healthz")] == [200] * 3
        load.outcomes.check_nothing_lost()
        # Batches that a load shares with a fault fail with it, but for rows that are not numbers.
        assert set(load.outcomes.refused) <= {"INTERNAL"}
        assert load.outcomes.refused.total() <= 10 * 4
        assert metric(server, 'fuseline_failed_batches_total{model="colours",version="1"}') >= 10


@PROCESSES
async def test_a_call_that_hangs_fails_in_time_and_its_lane_is_replaced(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FLAGS, *workers, "--http-port", free_port(), command=FAULTY) as server:
        async with load_on(server, callers=4) as load:
            await load.until_answered(20)
            begun = time.monotonic()
            code, message = await status_of(server, picture(HANGS, 32))
            took = time.monotonic() - begun
            assert code == "INTERNAL"
            assert "its log has more under error" in message
            assert TIMEOUT_S < took < NOTICED_S + SLACK_S
            await load.until_answered(100)
            assert [await probe(server, path) for path in ("/livez", "/readyz")] == [200, 200]
        load.outcomes.check_nothing_lost()
        # Those that shared the batch fail with it; those that waited for the lane were answered.
        assert set(load.outcomes.refused) <= {"INTERNAL"}
        assert load.outcomes.refused.total() <= 4
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
        assert code == 0, stderr
        assert "another instance of the backend takes the place of the lane that hangs" in stderr


@pytest.mark.parametrize("ends", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["says so", "and ends"])
async def test_a_server_without_a_lane_left_says_so_everywhere_and_then_ends_with_1(package: Path, ends: bool) -> None:
    with server_process(package, *FLAGS, "--no-spare", "--http-port", free_port(), command=FAULTY) as server:
        async with own_channel(server) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=""))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            assert (await status_of(server, picture(HANGS)))[0] == "INTERNAL"
            async with asyncio.timeout(5):
                assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            assert [await probe(server, path) for path in ("/livez", "/readyz", "/v2/health/live", "/healthz")] == [
                503,
                503,
                503,
                200,
            ]
            assert not (await GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest())).live
            code, message = await status_of(server, REQUESTS[0])
            assert (code, "the backend hangs" in message) == ("UNAVAILABLE", True)
            live = await HealthStub(channel).Check(HealthCheckRequest(service=LIVENESS))
            assert live.status == HealthCheckResponse.NOT_SERVING
            watch.cancel()
        if not ends:
            return
        code, stderr = await asyncio.to_thread(server.end, 30)
    assert code == 1
    assert "no lane is left that computes: this server ends, to be started again" in stderr


@pytest.mark.slow
async def test_a_call_that_hangs_on_the_event_loop_is_told_by_livez_and_then_the_process_ends(package: Path) -> None:
    with server_process(package, *FLAGS, "--on-loop", "--http-port", free_port(), command=FAULTY) as server:
        call = asyncio.create_task(status_of(server, picture(HANGS)))
        assert await asyncio.to_thread(server.next_line) == "hanging\n"
        begun = time.monotonic()
        async with asyncio.timeout(TIMEOUT_S + 3 + SLACK_S):
            while await probe(server, "/livez") == 200:
                pass
        assert time.monotonic() - begun > 0.5 * TIMEOUT_S
        assert [await probe(server, path) for path in ("/livez", "/readyz", "/healthz")] == [503, 503, 200]
        code, stderr = await asyncio.to_thread(server.end, 30)
        assert (await call)[0] == "UNAVAILABLE"
    assert code == 1
    assert "the event loop hangs in a call of the backend: this server ends" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--no-spare",), ("--on-loop",)], ids=["in the thread", "on the event loop"])
async def test_with_workers_a_backend_process_that_hangs_is_started_again(package: Path, flags: Sequence[str]) -> None:
    arguments = (*FLAGS, *flags, "--workers", 2, "--http-port", free_port())
    with server_process(package, *arguments, command=FAULTY) as server:
        begun = time.monotonic()
        code, _ = await status_of(server, picture(HANGS))
        assert code in {"INTERNAL", "UNAVAILABLE"}
        assert time.monotonic() - begun < PROCESS_SILENT_S + SLACK_S
        await until(lambda: metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1)
        await until(lambda: get(str(server.http_address), "/readyz")[0] == 200)
        async with load_on(server, callers=4) as load:
            await load.until_answered(20)
        load.outcomes.check_nothing_lost()
        assert await probe(server, "/livez") == 200
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
