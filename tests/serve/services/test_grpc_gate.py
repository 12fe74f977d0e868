"""Tokens over gRPC: every method of every service, by a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.protos.open_inference_pb2 import LogSettingsRequest, ServerLiveRequest, ServerReadyRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.access.roles import OPEN, ROLE_OF_RPC, Role
from fuseline.serve.access.token_file import new_token
from fuseline.serve.batching.requests import Caller
from fuseline.serve.services.inference_calls import InferenceCalls
from tests.fakes.colours import plain
from tests.serve.access.token_files import TokenFile, bearer
from tests.serve.conftest import Served, StartServer

SERVICES = {
    "fuseline.v1.Classifier",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
}


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Every method of the services, by its full name."""
    for service in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method


async def refusal(served: Served, method: str, token: str | None) -> grpc.StatusCode | None:
    """The status by which a call without any message is refused; None: it is still open after it began."""
    call: Any = served.channel.stream_stream(method)(metadata=() if token is None else bearer(token), timeout=30)
    try:
        return await call.code()
    finally:
        call.cancel()


async def test_the_services_are_those_that_are_walked(guarded: Served, tokens: TokenFile) -> None:
    async def asked() -> AsyncIterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")

    stub: Any = ServerReflectionStub(guarded.channel)
    async for answer in stub.ServerReflectionInfo(asked(), metadata=bearer(tokens.infer)):
        assert {service.name for service in answer.list_services_response.service} == SERVICES


async def test_open_reflection_takes_no_thread_of_those_that_others_need(guarded: Served, tokens: TokenFile) -> None:
    stub: Any = ServerReflectionStub(guarded.channel)
    streams = [stub.ServerReflectionInfo(metadata=bearer(tokens.infer)) for _ in range(50)]
    for stream in streams:
        await stream.write(ServerReflectionRequest(list_services=""))
        async with asyncio.timeout(20):
            assert (await stream.read()).list_services_response.service
    async with asyncio.timeout(20):
        await asyncio.to_thread(lambda: None)


async def test_every_method_is_in_the_table_and_refused_to_who_may_not_call_it(
    guarded: Served, tokens: TokenFile
) -> None:
    walked = dict(methods())
    assert set(walked) <= set(ROLE_OF_RPC)
    for method in walked:
        role = ROLE_OF_RPC[method]
        if role is OPEN:
            continue
        assert await refusal(guarded, method, None) is grpc.StatusCode.UNAUTHENTICATED, method
        assert await refusal(guarded, method, new_token()) is grpc.StatusCode.UNAUTHENTICATED, method
        if role is Role.ADMIN:
            assert await refusal(guarded, method, tokens.infer) is grpc.StatusCode.PERMISSION_DENIED, method


async def test_health_liveness_and_readiness_need_no_token(guarded: Served) -> None:
    health: Any = HealthStub(guarded.channel)  # type: ignore[no-untyped-call]
    assert (await health.Check(HealthCheckRequest())).status == 1
    watch = health.Watch(HealthCheckRequest())
    assert (await watch.read()).status == 1
    watch.cancel()
    inference: Any = GRPCInferenceServiceStub(guarded.channel)  # type: ignore[no-untyped-call]
    assert (await inference.ServerLive(ServerLiveRequest())).live
    assert (await inference.ServerReady(ServerReadyRequest(), metadata=bearer("nonsense"))).ready


async def test_a_method_that_is_in_no_role_is_refused_even_to_an_admin(
    guarded: Served, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ROLE_OF_RPC, "/fuseline.v1.Classifier/GetModel")  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.stub.GetModel(GetModelRequest(), metadata=bearer(tokens.admin))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "is in no role" in str(caught.value.details())
    assert await refusal(guarded, "/no.such.Service/Method", tokens.admin) is grpc.StatusCode.PERMISSION_DENIED
    assert await refusal(guarded, "/no.such.Service/Method", None) is grpc.StatusCode.UNAUTHENTICATED


async def test_each_role_is_answered_and_the_error_names_its_class(guarded: Served, tokens: TokenFile) -> None:
    request = ClassifyRequest(images=[Image(raw=plain("red").tobytes())])
    for token in (tokens.infer, tokens.admin):
        assert (await guarded.stub.Classify(request, metadata=bearer(token))).results[0].predictions
    inference: Any = GRPCInferenceServiceStub(guarded.channel)  # type: ignore[no-untyped-call]
    assert (await inference.LogSettings(LogSettingsRequest(), metadata=bearer(tokens.admin))).settings
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.LogSettings(LogSettingsRequest(), metadata=bearer(tokens.infer))
    assert ("fuseline-error", "ForbiddenError") in tuple(caught.value.trailing_metadata())


async def test_the_name_of_the_token_is_the_client_and_without_tokens_the_peer_is(
    guarded: Served, start_server: StartServer, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Caller] = []
    run = InferenceCalls.run

    async def noted(self: Any, method: Any, codec: Any, request: Any, call: Any) -> Any:
        seen.append(call.caller)
        return await run(self, method, codec, request, call)

    monkeypatch.setattr(InferenceCalls, "run", noted)
    request = ClassifyRequest(images=[Image(raw=plain("red").tobytes())])
    await guarded.stub.Classify(request, metadata=bearer(tokens.infer))
    await guarded.stub.Classify(request, metadata=bearer(tokens.admin))
    await (await start_server()).stub.Classify(request, metadata=bearer(tokens.infer))
    assert [caller.client for caller in seen] == ["token:shop", "token:deployer", "127.0.0.1"]


async def test_refusals_are_counted(guarded: Served, tokens: TokenFile) -> None:
    await refusal(guarded, "/fuseline.v1.Classifier/Classify", None)
    await refusal(guarded, "/inference.GRPCInferenceService/LogSettings", tokens.infer)
    text = (await guarded.server._source.metrics()).decode()
    assert 'fuseline_access_events_total{event="unauthenticated"} 1.0' in text
    assert 'fuseline_access_events_total{event="forbidden"} 1.0' in text


async def test_a_refused_call_gets_its_request_id_back(guarded: Served) -> None:
    call = guarded.stub.Classify(ClassifyRequest(), metadata=(("x-request-id", "mine-1"),), timeout=30)
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ("x-request-id", "mine-1") in tuple(await call.trailing_metadata() or ())
