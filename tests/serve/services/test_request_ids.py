"""`x-request-id`, from the call through the log to the answer."""

import asyncio
import logging
import re
from http.client import HTTPConnection

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest
from fuseline.protos.open_inference_pb2 import ModelMetadataRequest, ServerLiveRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.request_ids import MOST_CHARACTERS, kept_or_made, request_id_of
from tests.fakes.colours import encoded, noise, plain
from tests.serve.conftest import StartServer
from tests.serve.processes import free_port
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

MADE = re.compile("[0-9a-f]{32}")


async def id_returned(call: grpc.aio.Call) -> str | None:
    values = [value for key, value in await call.trailing_metadata() or () if key == "x-request-id"]
    assert len(values) <= 1
    return values[0] if values else None


def failing(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise RuntimeError("broken")


@pytest.mark.parametrize("text", ["7", "a" * MOST_CHARACTERS, "5f0c-99/x:y=,~!", "{}[]\"'"])
def test_an_id_of_visible_ascii_is_kept(text: str) -> None:
    assert kept_or_made(text) == text
    assert kept_or_made(text.encode()) == text


@pytest.mark.parametrize("text", ["", " ", "a b", "a\nb", "a\n", "\x00", "é", "a" * (MOST_CHARACTERS + 1), "\u2028"])
def test_any_other_is_replaced(text: str) -> None:
    assert MADE.fullmatch(kept_or_made(text))
    assert MADE.fullmatch(kept_or_made(text.encode()))


def test_without_one_none_is_made_until_something_needs_it() -> None:
    assert request_id_of((("user-agent", "grpc"),)) == ""
    assert request_id_of(()) == ""
    assert CallContext().exemplar is None


@pytest.mark.parametrize(("length", "named"), [(118, True), (119, False)])
def test_an_exemplar_holds_an_id_as_long_as_openmetrics_allows(length: int, named: bool) -> None:
    assert CallContext(request_id="x" * length).exemplar == ({"request_id": "x" * length} if named else {})


async def test_every_rpc_returns_its_caller_s_id_whether_it_succeeds_or_fails(start_server: StartServer) -> None:
    served = await start_server()
    inference = GRPCInferenceServiceStub(served.channel)
    metadata = (("x-request-id", "mine-1"),)
    calls = [
        served.stub.Classify(raw_request(noise(1)), metadata=metadata),
        served.stub.Classify(ClassifyRequest(model="cats"), metadata=metadata),
        served.stub.GetModel(GetModelRequest(), metadata=metadata),
        inference.ModelInfer(infer_request(noise(1)), metadata=metadata),
        inference.ServerLive(ServerLiveRequest(), metadata=metadata),
        inference.ModelMetadata(ModelMetadataRequest(name="cats"), metadata=metadata),
    ]
    assert [await id_returned(call) for call in calls] == ["mine-1"] * 6
    stream = served.stub.ClassifyStream(iter([raw_request(noise(1))]), metadata=metadata)
    assert len([answer async for answer in stream]) == 1
    assert await id_returned(stream) == "mine-1"


async def test_a_call_without_an_id_gets_none_and_one_with_a_bad_one_another(start_server: StartServer) -> None:
    served = await start_server()
    assert await id_returned(served.stub.Classify(raw_request(noise(1)))) is None
    replaced = await id_returned(served.stub.Classify(raw_request(noise(1)), metadata=(("x-request-id", "a b"),)))
    assert replaced is not None
    assert MADE.fullmatch(replaced)


async def test_the_log_names_each_request_that_an_error_befell_and_the_error_once(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    served = await start_server()
    held = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    calls = [
        served.stub.Classify(raw_request(noise(1)), metadata=(("x-request-id", f"mine-{number}"),))
        for number in range(3)
    ]
    await served.until(lambda: served.queued_rows == 3)
    served.backend.replacement = failing
    served.backend.release()
    answers = await asyncio.gather(held, *calls, return_exceptions=True)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    of_batch = [record for record in errors if getattr(record, "request_id", "")]
    assert sorted(getattr(record, "request_id", "") for record in of_batch) == ["mine-0", "mine-1", "mine-2"]
    (error_id,) = {getattr(record, "error_id", "") for record in of_batch}
    assert sum(record.exc_info is not None for record in of_batch) == 1
    for answer in answers[1:]:
        assert isinstance(answer, grpc.aio.AioRpcError)
        assert error_id in (answer.details() or "")


async def test_http_takes_and_returns_it_likewise_whatever_the_answer(start_server: StartServer) -> None:
    served = await start_server(http_port=free_port())

    def asked(method: str, path: str, body: bytes | None = None, request_id: str | None = "mine-1") -> str | None:
        connection = HTTPConnection("127.0.0.1", served.server.http_port or 0, timeout=10)
        try:
            headers = {"content-type": "application/octet-stream"}
            connection.request(
                method, path, body, headers | ({} if request_id is None else {"X-Request-ID": request_id})
            )
            answer = connection.getresponse()
            answer.read()
            return answer.headers["x-request-id"]
        finally:
            connection.close()

    picture = encoded(plain("blue"))
    for arguments in (
        ("POST", "/v1/classify", picture),
        ("POST", "/v1/classify", b"no picture"),
        ("POST", "/v2/models/colours/infer", b"{"),
        ("GET", "/nowhere"),
        ("GET", "/v1/models"),
    ):
        assert await asyncio.to_thread(asked, *arguments) == "mine-1"
    assert await asyncio.to_thread(asked, "POST", "/v1/classify", picture, None) is None
    replaced = await asyncio.to_thread(asked, "POST", "/v1/classify", picture, "a b")
    assert replaced is not None
    assert MADE.fullmatch(replaced)
