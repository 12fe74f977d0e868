"""What befalls processes: a signal under full load, a stop for some seconds, a clock that is set back, a full disk."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.serve.client import Client
from tests.fakes.colours import plain
from tests.faults.load import load_on
from tests.serve.processes import FAST, ROOT, ServerProcess, free_port, get, own_channel, server_process
from tests.serve.workers.test_worker_processes import metric, one_of, until

PROCESSES = pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)
ENDED = {"UNAVAILABLE", "CANCELLED"}
"""Statuses of what a server that ends refuses: gRPC itself answers CANCELLED to a call that no handler has seen, which
is one that comes later than the others by more than the server waits."""


@PROCESSES
async def test_sigterm_under_full_load_answers_all_that_was_admitted_and_refuses_the_rest(
    package: Path, workers: Sequence[object]
) -> None:
    # So few rows fit that the load, which is larger, keeps the queue full.
    limits = ("--max-queue-rows", 16, "--max-images-per-request", 16, "--max-batch", 4)
    with server_process(package, *FAST, *workers, *limits) as server:
        async with load_on(server, callers=64, connections=8, stop_on=ENDED.__contains__) as load:
            await load.until_answered(500)
            signalled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code, stderr = await asyncio.to_thread(server.end)
            took = time.monotonic() - signalled
        load.outcomes.check_nothing_lost()
    assert code == 0, stderr
    assert set(load.outcomes.refused) <= ENDED | {"RESOURCE_EXHAUSTED"}
    assert load.outcomes.refused.total() - load.outcomes.refused["RESOURCE_EXHAUSTED"] == 64
    assert load.outcomes.refused["CANCELLED"] <= 6
    assert f"{load.outcomes.answered} OK" in stderr
    print(f"SIGTERM under load: {load.outcomes}; ended after {took:.2f} s")


async def until_health(server: ServerProcess, status: int, timeout_s: float) -> float:
    """Return the seconds until gRPC's health, on every connection that the load may have, and /readyz tell so."""
    wanted = HealthCheckResponse.SERVING if status == 200 else HealthCheckResponse.NOT_SERVING
    begun = time.monotonic()
    async with asyncio.timeout(timeout_s), own_channel(server) as channel:
        while (await HealthStub(channel).Check(HealthCheckRequest(), timeout=5)).status != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await until(lambda: get(str(server.http_address), "/readyz")[0] == status, timeout_s)
    return time.monotonic() - begun


@pytest.mark.slow
async def test_a_backend_process_that_is_stopped_for_5_s_is_not_ready_meanwhile_and_loses_nothing(
    package: Path,
) -> None:
    with server_process(package, *FAST, "--workers", 2, "--http-port", free_port()) as server:
        backend = one_of(server, "backend")
        async with load_on(server, callers=16, connections=8) as load:
            await load.until_answered(200)
            stopped = time.monotonic()
            os.kill(backend, signal.SIGSTOP)
            try:
                noticed = await until_health(server, 503, 5)
                assert await asyncio.to_thread(get, str(server.http_address), "/livez") == (200, "live\n")
                await asyncio.sleep(stopped + 5 - time.monotonic())
            finally:
                os.kill(backend, signal.SIGCONT)
            recovered = await until_health(server, 200, 10)
            await load.until_answered(200)
        load.outcomes.check_nothing_lost()
        assert set(load.outcomes.refused) <= {"RESOURCE_EXHAUSTED"}
        assert one_of(server, "backend") == backend
        assert metric(server, 'fuseline_process_restarts_total{process="backend"}') == 0
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    print(f"stopped for 5 s: not ready after {noticed:.1f} s, ready {recovered:.1f} s after its end; {load.outcomes}")


@pytest.mark.slow
async def test_a_backend_process_that_stays_stopped_is_started_again(package: Path) -> None:
    arguments = (*FAST, "--workers", 2, "--http-port", free_port(), "--backend-timeout-s", 4)
    with server_process(package, *arguments) as server:
        backend = one_of(server, "backend")
        async with load_on(server, callers=16, connections=8) as load:
            await load.until_answered(200)
            begun = time.monotonic()
            os.kill(backend, signal.SIGSTOP)
            await until(lambda: metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1)
            ended = time.monotonic() - begun
            await load.until_answered(200)
            took = load.outcomes.answered_at[-200] - begun
        load.outcomes.check_nothing_lost()
        assert set(load.outcomes.refused) <= {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "has given no sign of life for" in stderr
    print(f"stopped for ever: ended after {ended:.1f} s, answers again after {took:.1f} s; {load.outcomes}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", 2)], ids=["one process", "workers"])
async def test_a_clock_that_is_set_back_changes_nothing(package: Path, workers: Sequence[object]) -> None:
    command = ("-m", "tests.faults.clock_server")
    with server_process(package, *FAST, *workers, "--http-port", free_port(), command=command) as server:
        async with load_on(server, callers=8) as load:
            # The clock is set back by a day in the third second.
            begun = time.monotonic()
            await load.until(lambda its: bool(its.answered_at) and its.answered_at[-1] > begun + 6)
            assert [get(str(server.http_address), path)[0] for path in ("/livez", "/readyz")] == [200, 200]
            assert max(load.outcomes.latencies_s) < 3
        load.outcomes.check_nothing_lost()
        assert not load.outcomes.refused
        assert metric(server, 'fuseline_requests_total{code="OK",method="Classify",model="colours",version="1"}') > 0
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "set back" in stderr
    print(f"clock set back by a day: {load.outcomes}, at most {max(load.outcomes.latencies_s):.2f} s each")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_below_the_log_costs_no_request(package: Path, stream: str) -> None:
    port, http_port = free_port(), free_port()
    command = [sys.executable, "-m", "serve", package, "--backend", "onnxruntime", "--threads", 1]
    command += ["--port", port, "--http-port", http_port]
    with Path("/dev/full").open("w") as full, ExitStack() as stack:
        # Whatever is written to it fails with ENOSPC.
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, **streams)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        until_s = time.monotonic() + 30
        while not answers(f"127.0.0.1:{http_port}"):
            assert process.poll() is None
            assert time.monotonic() < until_s
        with Client(f"127.0.0.1:{port}") as client:
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, (stdout, stderr)


def answers(http_address: str) -> bool:
    """Whether the server is ready."""
    try:
        return get(http_address, "/readyz")[0] == 200
    except OSError:
        return False
