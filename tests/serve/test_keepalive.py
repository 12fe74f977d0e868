"""Clients that ping an idle connection, so that it isn't dropped and a dead one is noticed."""

import asyncio
import socket
import time

import grpc
import pytest

from fuseline.protos.classify_pb2 import GetModelRequest
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.grpc_options import SHORTEST_PING_INTERVAL_MS
from tests.fakes.colours import noise
from tests.serve.conftest import StartServer
from tests.serve.http2_pings import (
    ENHANCE_YOUR_CALM,
    PREFACE_AND_SETTINGS,
    ConnectionEndedError,
    pinging_connection,
)
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

PINGS = 8
"""gRPC ends a connection at the third ping that comes early. The first never does, and whatever the server sends, as it
does once for a new call, has it count anew."""
INTERVAL_S = 1.2 * SHORTEST_PING_INTERVAL_MS / 1000

STREAMS = ["/inference.GRPCInferenceService/ModelStreamInfer", "/fuseline.v1.Classifier/ClassifyStream"]


@pytest.mark.parametrize("call", [None, *STREAMS])
def test_pings_are_answered_with_calls_and_without(live_address: str, call: str | None) -> None:
    with pinging_connection(live_address) as connection:
        if call is not None:
            connection.open_call(call)
        for _ in range(PINGS):
            connection.ping()
            time.sleep(INTERVAL_S)


def test_a_flood_of_pings_ends_its_connection_and_no_other(live_address: str) -> None:
    with pinging_connection(live_address) as flooding, pinging_connection(live_address) as calm:
        calm.ping()
        with pytest.raises(ConnectionEndedError, match="too_many_pings") as ended:
            flooding.ping(PINGS)
        assert ended.value.code == ENHANCE_YOUR_CALM
        calm.ping()


@pytest.mark.slow
async def test_idle_streams_outlive_the_pings_of_their_client(live_address: str) -> None:
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(live_address, options=options) as channel:
        idle = [
            (GRPCInferenceServiceStub(channel).ModelStreamInfer(), infer_request(noise(1))),
            (ClassifierStub(channel).ClassifyStream(), raw_request(noise(1))),
        ]
        for stream, request in idle:
            await stream.write(request)
            assert await stream.read() is not grpc.aio.EOF
        # gRPC's client tells no one of its pings, of which the fourth ended the connection.
        await asyncio.sleep(4.3)
        for stream, request in idle:
            await stream.write(request)
            assert await stream.read() is not grpc.aio.EOF
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF


async def test_a_client_that_is_gone_without_a_word_is_cut_and_one_that_answers_is_not(
    start_server: StartServer,
) -> None:
    served = await start_server(keepalive_s=0.3, keepalive_timeout_s=0.3)
    await served.stub.GetModel(GetModelRequest())

    def until_cut() -> None:
        # It never reads, so that pings get no answer, as with a machine that lost its power.
        with socket.create_connection(("127.0.0.1", served.server.port), timeout=30) as silent:
            silent.sendall(PREFACE_AND_SETTINGS)
            while silent.recv(2**16):
                pass

    async with asyncio.timeout(30):
        await asyncio.to_thread(until_cut)
    assert served.channel.get_state() is grpc.ChannelConnectivity.READY
    await served.stub.GetModel(GetModelRequest())
