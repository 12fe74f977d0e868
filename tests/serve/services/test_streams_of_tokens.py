"""Streams that were opened with a token, as it is withdrawn, replaced, expires or gets another role: real servers."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.access.roles import OPEN, ROLE_OF_RPC, Role
from fuseline.serve.access.token_file import add_line, new_token, token_line
from fuseline.serve.client import Client
from fuseline.serve.errors import UnauthenticatedError
from tests.fakes.colours import plain
from tests.serve.access.token_files import TokenFile, bearer, change, withdraw
from tests.serve.conftest import Served, StartServer
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request
from tests.serve.services.test_grpc_gate import methods

CLASSIFY_STREAM = "/fuseline.v1.Classifier/ClassifyStream"
RED = raw_request(plain("red")[None])
OPEN_RED = infer_request(plain("red")[None])


async def end(stream: Any) -> tuple[grpc.StatusCode, str, str]:
    """Code, message and `fuseline-error` by which a stream without further answers ends."""
    async with asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            assert await stream.read() is grpc.aio.EOF
    metadata: dict[str, Any] = dict(caught.value.trailing_metadata())
    return caught.value.code(), str(caught.value.details()), metadata["fuseline-error"]


async def answered(stream: Any) -> None:
    await stream.write(RED)
    assert (await stream.read()).results


async def test_every_idle_stream_that_needs_a_role_ends_when_its_token_is_withdrawn(
    guarded: Served, tokens: TokenFile
) -> None:
    names = [
        name
        for name, method in methods()
        if (method.client_streaming or method.server_streaming) and ROLE_OF_RPC[name] is not OPEN
    ]
    assert CLASSIFY_STREAM in names
    assert len(names) == 3
    streams: dict[str, Any] = {
        name: guarded.channel.stream_stream(name)(metadata=bearer(tokens.infer)) for name in names
    }
    # Each has begun, as calls of one connection do so in their order.
    others = guarded.stub.ClassifyStream(metadata=bearer(tokens.admin))
    await answered(others)
    withdraw(tokens, "shop")
    for name, stream in streams.items():
        assert await end(stream) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "the token that opened this stream has been withdrawn: get a new one",
            "UnauthenticatedError",
        ), name
    # Others' tokens stand.
    await answered(others)
    text = (await guarded.server._source.metrics()).decode()
    assert 'fuseline_access_events_total{event="stream_ended"} 3.0' in text


@pytest.mark.parametrize("protocol", ["classify", "open inference"])
async def test_what_was_admitted_is_answered_and_what_comes_later_is_not(
    guarded: Served, tokens: TokenFile, protocol: str
) -> None:
    if protocol == "classify":
        stream: Any = guarded.stub.ClassifyStream(metadata=bearer(tokens.infer))
        request: Any = RED
    else:
        inference: Any = GRPCInferenceServiceStub(guarded.channel)  # type: ignore[no-untyped-call]
        stream = inference.ModelStreamInfer(metadata=bearer(tokens.infer))
        request = OPEN_RED
    guarded.backend.hold()
    await stream.write(request)
    await guarded.until_busy()
    await stream.write(request)
    await guarded.until(lambda: guarded.queued_rows == 1)
    withdraw(tokens, "shop")
    ended = 'fuseline_access_events_total{event="stream_ended"} 1.0'
    async with asyncio.timeout(20):
        while ended not in (await guarded.server._source.metrics()).decode():  # noqa: ASYNC110 the server tells no one
            await asyncio.sleep(0.05)
    for _ in range(3):
        await stream.write(request)
    guarded.backend.release()
    assert [type(await stream.read()).__name__ for _ in range(2)] == [
        "ClassifyResponse" if protocol == "classify" else "ModelStreamInferResponse"
    ] * 2
    code, _, name = await end(stream)
    assert (code, name) == (grpc.StatusCode.UNAUTHENTICATED, "UnauthenticatedError")
    assert sum(guarded.backend.calls) == 2


async def test_a_stream_that_never_pauses_ends_too_and_loses_no_answer(guarded: Served, tokens: TokenFile) -> None:
    answers = 0

    def send_for_ever() -> None:
        nonlocal answers
        with Client(f"127.0.0.1:{guarded.server.port}", token=tokens.infer) as client:
            for answer in client.classify_stream(repeat(plain("red")), timeout_s=20):
                assert answer.answer is not None
                answers += 1
                if answers == 1:
                    withdraw(tokens, "shop")

    with pytest.raises(UnauthenticatedError, match="the token that opened this stream has been withdrawn"):
        await asyncio.to_thread(send_for_ever)
    assert guarded.server._metrics.requests_by_code() == {"OK": answers}


async def test_after_a_rotation_streams_of_the_old_token_end_and_those_of_the_new_go_on(
    guarded: Served, tokens: TokenFile
) -> None:
    old, following = tokens.infer, new_token()
    old_digest = tokens.path.read_text().split()[2]
    add_line(tokens.path, token_line(following, name="shop", role="infer"))
    opened_with_old = guarded.stub.ClassifyStream(metadata=bearer(old))
    await answered(opened_with_old)
    async with asyncio.timeout(20):
        while True:
            opened_with_new = guarded.stub.ClassifyStream(metadata=bearer(following))
            try:
                await answered(opened_with_new)
                break
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The file is read again within a second.
                await asyncio.sleep(0.05)
    change(tokens, lambda line: None if old_digest in line else line)
    assert (await end(opened_with_old))[0] is grpc.StatusCode.UNAUTHENTICATED
    await answered(opened_with_new)


async def test_a_stream_ends_when_its_token_expires_though_the_file_stays_as_it_is(
    start_server: StartServer, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, expires = new_token(), datetime.now(UTC) + timedelta(hours=1)
    add_line(tokens.path, token_line(token, name="guest", role="infer", expires=expires))
    served = await start_server(token_hashes=tokens.path)
    stream = served.stub.ClassifyStream(metadata=bearer(token))
    await answered(stream)
    # A file that is gone changes nothing of what was known.
    tokens.path.unlink()
    others = served.stub.ClassifyStream(metadata=bearer(tokens.infer))
    await answered(others)
    monkeypatch.setattr(served.server._gate, "_now", expires.timestamp)
    code, message, name = await end(stream)
    assert (code, name) == (grpc.StatusCode.UNAUTHENTICATED, "UnauthenticatedError")
    assert message == f"the token of 'guest' expired at {expires.isoformat()}; get a new one"
    await answered(others)


async def test_a_stream_ends_when_the_role_of_its_token_no_longer_suffices(
    start_server: StartServer, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No stream needs more than the least role, today.
    monkeypatch.setitem(ROLE_OF_RPC, CLASSIFY_STREAM, Role.ADMIN)  # type: ignore[arg-type]
    served = await start_server(token_hashes=tokens.path)
    stream = served.stub.ClassifyStream(metadata=bearer(tokens.admin))
    await answered(stream)
    inference: Any = GRPCInferenceServiceStub(served.channel)  # type: ignore[no-untyped-call]
    still_allowed = inference.ModelStreamInfer(metadata=bearer(tokens.admin))
    await still_allowed.write(OPEN_RED)
    await still_allowed.read()
    change(tokens, lambda line: line.replace("deployer admin", "deployer infer"))
    assert await end(stream) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "ClassifyStream needs a token of the role admin; that of 'deployer' has the role infer",
        "ForbiddenError",
    )
    await still_allowed.write(OPEN_RED)
    assert not (await still_allowed.read()).error_message


async def test_streams_that_ended_so_make_room_and_leave_nothing_behind(
    start_server: StartServer, tokens: TokenFile
) -> None:
    served = await start_server(token_hashes=tokens.path, max_streams=2, max_requests_per_client=2)
    streams = [served.stub.ClassifyStream(metadata=bearer(tokens.infer)) for _ in range(2)]
    for stream in streams:
        await answered(stream)
    assert (await end(served.stub.ClassifyStream(metadata=bearer(tokens.admin))))[0] is (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    withdraw(tokens, "shop")
    for stream in streams:
        assert (await end(stream))[2] == "UnauthenticatedError"
    calls = served.server._service._calls
    assert (calls._limits._streams, calls._limits._requests, calls._streams) == (0, {}, set())
    others = [served.stub.ClassifyStream(metadata=bearer(tokens.admin)) for _ in range(2)]
    for stream in others:
        await answered(stream)
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_a_client_that_takes_no_answers_holds_its_stream_open_no_longer_than_a_drain_would_wait(
    start_server: StartServer, tokens: TokenFile
) -> None:
    served = await start_server(token_hashes=tokens.path, drain_timeout_s=0.5)
    # Answers have the request's id, and this connection takes 64 KiB that nobody has read.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", options) as channel:
        stub: Any = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.ClassifyStream(metadata=bearer(tokens.infer))
        for _ in range(60):
            await stream.write(raw_request(plain("red")[None], id="x" * 30_000))
        await served.until(lambda: served.server._metrics.requests_by_code() == {"OK": 60})
        withdraw(tokens, "shop")
        limits = served.server._service._calls._limits
        async with asyncio.timeout(20):
            while limits._streams:  # noqa: ASYNC110 the server tells no one
                await asyncio.sleep(0.05)
        assert limits._requests == {}
        taken: list[Any] = []

        async def take() -> None:
            while (answer := await stream.read()) is not grpc.aio.EOF:
                taken.append(answer)

        async with asyncio.timeout(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await take()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(taken) < 60
