"""Bytes that are no message, to every method of every service of a real server."""

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from fuseline.protos.classify_pb2 import ClassifyResponse
from tests.fakes.colours import noise
from tests.serve.access.token_files import bearer, written_token_file
from tests.serve.conftest import Served, StartServer
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.test_grpc_gate import methods

NO_MESSAGE = b"\xff\xff\xff"


async def check_refused(channel: grpc.aio.Channel, method: str, metadata: tuple[Any, ...]) -> None:
    """A client's call of any kind is on the wire one of two streams."""
    call: Any = channel.stream_stream(method)(iter([NO_MESSAGE]), metadata=metadata, timeout=20)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, method
    details = await call.details()
    assert "is no message of this method" in details
    assert len(details) < 500
    trailing = tuple(await call.trailing_metadata())
    assert ("fuseline-error", "RequestError") in trailing
    assert ("x-request-id", "mine-1") in trailing


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "tokens"])
async def test_bytes_that_are_no_message_are_the_client_s_error_and_leave_no_line_in_the_log(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, guarded: bool
) -> None:
    tokens = written_token_file(tmp_path)
    served = await start_server(**({"token_hashes": tokens.path} if guarded else {}))
    metadata = (("x-request-id", "mine-1"), *(bearer(tokens.admin) if guarded else ()))
    walked = dict(methods())
    assert len(walked) > 20
    with caplog.at_level(logging.WARNING):
        for method in walked:
            await check_refused(served.channel, method, metadata)
    assert caplog.records == []
    assert served.server._metrics.requests_by_code() == {"INVALID_ARGUMENT": 4}, "those that infer are counted"


async def test_a_stream_that_ends_so_answers_what_came_before(start_server: StartServer) -> None:
    served: Served = await start_server()
    sound = [raw_request(noise(1), id=str(number)).SerializeToString() for number in range(3)]
    call: Any = served.channel.stream_stream(
        "/fuseline.v1.Classifier/ClassifyStream", response_deserializer=ClassifyResponse.FromString
    )(iter([*sound, NO_MESSAGE]), timeout=20)
    answered = [(await call.read()).id for _ in sound]
    assert sorted(answered) == ["0", "1", "2"]
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
