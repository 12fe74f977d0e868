"""gRPC's server, which a call can end: grpc.aio ends for good at one whose path is not UTF-8."""

import asyncio
import itertools
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from tests.fakes.colours import noise
from tests.serve.conftest import StartServer
from tests.serve.http2_pings import pinging_connection
from tests.serve.processes import FAST, free_port, get, own_channel, server_process
from tests.serve.services.classify_requests import raw_request

NO_UTF8 = b"/fuseline.v1.Classifier/\xff\xfe"


def end_grpc(address: str) -> None:
    """Call a method whose path is not UTF-8, and return when the connection has ended."""
    until_s = time.monotonic() + 20
    while True:
        try:
            with pinging_connection(address) as connection:
                connection.open_call(NO_UTF8)
                connection.until_ended()
            return
        except ConnectionError:
            # The one before was a moment ago.
            assert time.monotonic() < until_s
            time.sleep(0.02)


async def answered(stub: Any) -> int:
    """Call until there is an answer, as a client does whose connection was ended; return how often that was in vain."""
    async with asyncio.timeout(20):
        for failures in itertools.count():
            try:
                assert (await stub.Classify(raw_request(noise(1)), wait_for_ready=True)).results
                return failures
            except grpc.aio.AioRpcError as error:
                if error.code() not in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}:
                    raise
                await asyncio.sleep(0.01)
    raise AssertionError


async def test_a_call_whose_path_is_not_utf_8_ends_no_call_of_others(start_server: StartServer) -> None:
    served = await start_server()
    address = f"127.0.0.1:{served.server.port}"
    stream = served.stub.ClassifyStream()
    for number in range(3):
        await stream.write(raw_request(noise(1), id=str(number)))
        assert (await stream.read()).id == str(number)
        await asyncio.to_thread(end_grpc, address)
        await answered(served.stub)
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK
    assert served.server.ready


@pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)
async def test_a_real_server_goes_on_and_drains(package: Path, folder: Path, workers: Sequence[object]) -> None:
    # All of these addresses are bound again.
    listen = ("--listen", f"127.0.0.1:{free_port()}", "--listen", f"unix:{folder}/s")
    with server_process(package, *FAST[2:], *workers, *listen, "--http-port", free_port()) as server:
        for _ in range(4):
            await asyncio.to_thread(end_grpc, server.address)
        for _ in range(4):
            async with own_channel(server) as channel:
                await answered(ClassifierStub(channel))
        async with grpc.aio.insecure_channel(f"unix:{folder}/s") as channel:
            await answered(ClassifierStub(channel))
        assert get(str(server.http_address), "/readyz")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "gRPC's server takes no call any more (UnicodeDecodeError); another takes its place" in stderr
