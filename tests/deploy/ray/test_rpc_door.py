import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from fuseline.deploy.ray.rpc_context import CallEnded
from fuseline.deploy.ray.rpc_door import NOTHING, RpcDoor
from fuseline.protos import classify_pb2, open_inference_pb2
from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.protos.open_inference_pb2 import ModelReadyRequest
from fuseline.serve.errors import OverloadedError
from fuseline.serve.server_core import ServerCore
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, retry_after_from_metadata
from tests.deploy.ray.conftest import StartCore
from tests.serve.access.token_files import bearer, written_token_file
from tests.serve.services.classify_requests import raw_request

RED = np.full((1, 8, 8, 3), (255, 0, 0), np.uint8)


class Proxied:
    """What Ray's proxy tells of a call, and what it is told."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str | bytes] = {}

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.7:50000"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailing = dict(trailing_metadata)


def door_of(core: ServerCore) -> RpcDoor:
    return RpcDoor(core.add_services, core.gate, max_message_bytes=2000, last_answers_s=5)


def red(**fields: Any) -> ClassifyRequest:
    return raw_request(RED, **fields)


async def test_every_rpc_is_answered_by_its_name(start_core: StartCore) -> None:
    methods = door_of(await start_core()).methods
    services = (classify_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    expected = {
        method.name: f"/{service.full_name}/{method.name}"
        for file in services
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert methods == expected


@pytest.mark.parametrize("as_bytes", [True, False])
async def test_a_request_is_answered_read_by_the_proxy_or_not(as_bytes: bool, start_core: StartCore) -> None:
    door, proxied = door_of(await start_core()), Proxied()
    request = red(model="colours")
    answer = await door.answer("Classify", request.SerializeToString() if as_bytes else request, proxied)
    assert answer.results[0].predictions[0].label == "red"
    assert proxied.code is None
    ready = await door.answer("ModelReady", ModelReadyRequest(name="colours").SerializeToString(), proxied)
    assert ready.ready


async def test_a_model_answers_by_the_name_that_it_was_given(start_core: StartCore) -> None:
    door = door_of(await start_core(name="shades"))
    answer = await door.answer("Classify", red(model="shades"), Proxied())
    assert answer.model == "shades"
    proxied = Proxied()
    assert await door.answer("Classify", red(model="colours"), proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.NOT_FOUND


async def test_an_error_reaches_the_client_with_its_class_and_its_request_id(start_core: StartCore) -> None:
    door, proxied = door_of(await start_core()), Proxied(("x-request-id", "mine"))
    answer = await door.answer("Classify", red(model="nope"), proxied)
    assert answer.SerializeToString() == b""
    assert (proxied.code, proxied.details) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no model 'nope' here; served: colours",
    )
    assert proxied.trailing == {ERROR_METADATA_KEY: "UnknownModelError", "x-request-id": "mine"}


async def test_bytes_that_are_no_message_are_the_clients_error(start_core: StartCore) -> None:
    door = door_of(await start_core())
    for method in ("Classify", "GetModel", "ModelInfer", "ServerLive", "Check"):
        proxied = Proxied()
        assert await door.answer(method, b"\xff\xff", proxied) is NOTHING
        assert proxied.code is grpc.StatusCode.INVALID_ARGUMENT, method
        assert proxied.details.startswith("what came is no message of this method")


async def test_a_message_above_the_limit_is_the_clients_error(start_core: StartCore) -> None:
    door, large = door_of(await start_core()), red(id="x" * 2000).SerializeToString()
    proxied = Proxied()
    assert await door.answer("Classify", large, proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.INVALID_ARGUMENT
    assert proxied.details.startswith(f"the message has {len(large)} bytes, more than 2000, the most that is taken")
    proxied = Proxied()
    with pytest.raises(CallEnded):
        await anext(door.answers("ClassifyStream", requests_of([large]), proxied))
    assert proxied.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_overload_tells_when_there_is_room(start_core: StartCore) -> None:
    core = await start_core()
    (model,) = core.repository
    refusal = OverloadedError("the queue is full", 0.25)

    def refuse(*_: object, **__: object) -> Any:
        raise refusal

    model.batcher.submit = refuse  # type: ignore[method-assign]
    proxied = Proxied()
    assert await door_of(core).answer("Classify", red(), proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after_from_metadata(proxied.trailing.items()) == 0.25


async def test_a_fault_of_the_server_is_told_by_an_id_only(
    start_core: StartCore, caplog: pytest.LogCaptureFixture
) -> None:
    def add(server: Any) -> None:
        async def fail(_request: bytes, _context: Any) -> Any:
            raise ZeroDivisionError("a secret of the server's")

        handler = grpc.unary_unary_rpc_method_handler(fail, bytes, bytes)
        server.add_registered_method_handlers("some.Service", {"Fail": handler})

    proxied = Proxied()
    assert await RpcDoor(add, None, max_message_bytes=10, last_answers_s=1).answer("Fail", b"", proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.INTERNAL
    assert "secret" not in proxied.details
    assert "a secret of the server's" in caplog.text


async def requests_of(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


@pytest.mark.parametrize("as_bytes", [True, False])
async def test_a_stream_is_answered_message_by_message(as_bytes: bool, start_core: StartCore) -> None:
    door = door_of(await start_core())
    sent: list[Any] = [red(id=f"{n}", model="nope" if n == 2 else "") for n in range(4)]
    if as_bytes:
        sent = [request.SerializeToString() for request in sent]
    answers = [a async for a in door.answers("ClassifyStream", requests_of(sent), Proxied())]
    by_id = {answer.id: answer for answer in answers}
    assert sorted(by_id) == ["0", "1", "2", "3"]
    assert by_id["2"].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert by_id["3"].results[0].predictions[0].label == "red"


async def test_a_stream_with_bytes_that_are_no_message_ends_after_what_came_before(start_core: StartCore) -> None:
    door, proxied = door_of(await start_core()), Proxied()
    sent = requests_of([red(id="a").SerializeToString(), b"\xff\xff"])
    answers: list[ClassifyResponse] = []
    with pytest.raises(CallEnded):
        answers.extend([a async for a in door.answers("ClassifyStream", sent, proxied)])
    assert proxied.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_ends_when_the_replica_does(start_core: StartCore) -> None:
    core = await start_core()
    door, proxied, more = door_of(core), Proxied(), asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield red(id="a").SerializeToString()
        await more.wait()

    answers = door.answers("ClassifyStream", requests(), proxied)
    assert (await anext(answers)).id == "a"
    finishing = asyncio.create_task(core.finish())
    with pytest.raises(CallEnded, match="the server is shutting down"):
        await anext(answers)
    assert proxied.code is grpc.StatusCode.UNAVAILABLE
    await finishing


async def test_a_client_that_leaves_a_stream_ends_its_requests(start_core: StartCore) -> None:
    core = await start_core()
    door, closed = door_of(core), asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield red(id="a").SerializeToString()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    answers: Any = door.answers("ClassifyStream", requests(), Proxied())
    await anext(answers)
    await answers.aclose()
    async with asyncio.timeout(5):
        await closed.wait()


async def test_health_is_that_of_the_model(start_core: StartCore) -> None:
    core = await start_core()
    door, proxied = door_of(core), Proxied()
    request = HealthCheckRequest().SerializeToString()
    assert (await door.answer("Check", request, proxied)).status == HealthCheckResponse.SERVING
    watched: Any = door.answers("Watch", request, Proxied())
    assert (await anext(watched)).status == HealthCheckResponse.SERVING
    await core.set_health(serving=False)
    assert (await anext(watched)).status == HealthCheckResponse.NOT_SERVING
    await watched.aclose()
    unknown = HealthCheckRequest(service="nope").SerializeToString()
    assert await door.answer("Check", unknown, proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.NOT_FOUND


async def test_where_tokens_are_asked_for_calls_and_streams_need_one(start_core: StartCore, tmp_path: Path) -> None:
    tokens = written_token_file(tmp_path)
    core = await start_core(token_hashes=tokens.path)
    door = door_of(core)
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        (bearer("wrong"), grpc.StatusCode.UNAUTHENTICATED),
        (bearer(tokens.infer), None),
    ):
        proxied = Proxied(*metadata)
        answer = await door.answer("Classify", red(), proxied)
        assert (answer is NOTHING, proxied.code) == (code is not None, code)
        proxied = Proxied(*metadata)
        try:
            answers = [a async for a in door.answers("ClassifyStream", requests_of([red()]), proxied)]
            assert len(answers) == 1
        except CallEnded:
            assert code is not None
        assert proxied.code is code
    proxied = Proxied(*bearer(tokens.infer))
    assert await door.answer("RepositoryModelLoad", b"", proxied) is NOTHING
    assert proxied.code is grpc.StatusCode.PERMISSION_DENIED
