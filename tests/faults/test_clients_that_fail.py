"""Clients that die in mid-stream, never read, or come by the thousand: others are served, and nothing stays behind."""

import asyncio
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from tests.fakes.colours import noise
from tests.faults.dying_client import STREAMS
from tests.faults.load import load_on
from tests.faults.process_figures import Figures, figures_of
from tests.serve.processes import FAST, ROOT, ServerProcess, free_port, get, own_channel, server_process
from tests.serve.services.classify_requests import raw_request
from tests.serve.workers.test_worker_processes import metric, until

PROCESSES = pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)


async def files_back_at(server: ServerProcess, before: Figures, slack: int = 4) -> None:
    """Return once the server has no more descriptors than before, but for a few that a pool may have opened."""
    try:
        await until(lambda: figures_of(server.process.pid).files <= before.files + slack)
    except TimeoutError:
        pytest.fail(f"{before} before, {figures_of(server.process.pid)} after")


@contextmanager
def dying_client(server: ServerProcess, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.faults.dying_client", server.address, str(server.http_address), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@PROCESSES
async def test_a_client_that_is_killed_in_mid_stream_costs_others_nothing_and_leaves_nothing(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port()) as server:
        async with load_on(server, callers=4) as load:
            await load.until_answered(20)
            before = figures_of(server.process.pid)
            for _ in range(2):
                with dying_client(server) as client:
                    assert client.stdout is not None
                    for _ in range(4):
                        assert await asyncio.to_thread(client.stdout.readline) == "busy\n"
                    assert figures_of(server.process.pid).files > before.files
            await load.until_answered(50)
            await files_back_at(server, before)
        load.outcomes.check_nothing_lost()
        assert not load.outcomes.refused
        await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 0)
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "Traceback" not in stderr


@PROCESSES
async def test_clients_that_never_read_hold_bounded_memory_and_nobody_up(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port()) as server:
        async with load_on(server, callers=4) as load:
            await load.until_answered(50)
            before = figures_of(server.process.pid)
            with dying_client(server, "--never-read"):
                await until(lambda: figures_of(server.process.pid).files > before.files + STREAMS)
                begun = time.monotonic()
                await load.until(lambda its: its.answered_at[-1] > begun + 3)
                await load.until_answered(50)
                grown = figures_of(server.process.pid).resident_bytes - before.resident_bytes
            await files_back_at(server, before)
        load.outcomes.check_nothing_lost()
        assert set(load.outcomes.refused) <= {"RESOURCE_EXHAUSTED"}
        # gRPC's flow control holds 64 KiB a stream, and each request may be 64 MiB.
        assert grown < 100 * 2**20
        print(f"clients that never read: {before} before, {grown / 2**20:.1f} MiB more with them")
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr


@contextmanager
def open_files(soft: int) -> Iterator[None]:
    """Let this process, and those that it starts, have so many descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


CONNECTIONS = 5000


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", 2)], ids=["one process", "workers"])
async def test_with_5000_connections_open_those_that_ask_are_answered(package: Path, workers: Sequence[object]) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3 * CONNECTIONS:
        pytest.skip(f"needs {3 * CONNECTIONS} descriptors; raise ulimit -Hn")
    with ExitStack() as stack:
        # The server starts with few, as it does under many shells.
        with open_files(1024):
            server = stack.enter_context(server_process(package, *FAST, *workers, "--http-port", free_port()))
        stack.enter_context(open_files(3 * CONNECTIONS))
        grpc_to, http_to = (
            (host, int(port))
            for host, _, port in (address.rpartition(":") for address in (server.address, str(server.http_address)))
        )
        before = figures_of(server.process.pid)
        async with load_on(server, callers=4) as load:
            await load.until_answered(20)
            with ExitStack() as clients:
                # The first bytes of HTTP/2, so that gRPC has a connection and no port scan.
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
                for number in range(CONNECTIONS):
                    client = clients.enter_context(socket.create_connection(grpc_to if number % 5 else http_to, 30))
                    if number % 5:
                        client.sendall(preface)
                    if number % 100 == 0:
                        await asyncio.sleep(0)
                await load.until_answered(100)
                assert await asyncio.to_thread(get, str(server.http_address), "/livez") == (200, "live\n")
                async with own_channel(server) as channel:
                    answer = await ClassifierStub(channel).Classify(raw_request(noise(1)), timeout=30)
                    assert answer.results
                full = figures_of(server.process.pid)
                assert full.files > before.files + CONNECTIONS // 2
            await files_back_at(server, before, slack=16)
        load.outcomes.check_nothing_lost()
        assert not load.outcomes.refused
        print(f"{CONNECTIONS} connections: {before} before, {full} with them, {figures_of(server.process.pid)} after")
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert not re.search(r"Traceback|Too many open files", stderr), stderr
