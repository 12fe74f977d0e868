"""Priorities that requests ask for, by every door, and what they come to."""

import asyncio
import json

import grpc
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.open_inference_pb2 import InferParameter, ModelConfigRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import AsyncClient
from fuseline.serve.errors import RequestError
from fuseline.serve.services.priority import priority_from_text, priority_parameter, priority_text
from tests.fakes.colours import noise, plain
from tests.serve.conftest import Served, StartServer
from tests.serve.failures import failure
from tests.serve.processes import free_port
from tests.serve.services.open_inference_requests import infer_request

IMAGE = Image(raw=plain("red").tobytes())
BULK = (("priority", "bulk"),)


async def queued(served: Served, call: grpc.aio.UnaryUnaryCall | asyncio.Future, rows: int) -> asyncio.Future:
    future = asyncio.ensure_future(call)
    await served.until(lambda: served.queued_rows == rows)
    return future


async def order_of_answers(served: Served, waiting: dict[str, asyncio.Future]) -> list[str]:
    order: list[str] = []
    for name, future in waiting.items():
        future.add_done_callback(lambda _, name=name: order.append(name))
    served.backend.release()
    await asyncio.gather(*waiting.values())
    return order


async def test_an_interactive_request_is_answered_before_bulk_ones_that_came_earlier(start_server: StartServer) -> None:
    served = await start_server(max_batch=1)
    inference = GRPCInferenceServiceStub(served.channel)
    running = await served.busy_with(asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE]))))
    client = AsyncClient(f"127.0.0.1:{served.server.port}")
    waiting = {
        "metadata": await queued(served, served.stub.Classify(ClassifyRequest(images=[IMAGE]), metadata=BULK), 1),
        "field": await queued(served, served.stub.Classify(ClassifyRequest(images=[IMAGE], priority="2")), 2),
        "parameter": await queued(
            served,
            inference.ModelInfer(infer_request(noise(1), parameters={"priority": InferParameter(uint64_param=2)})),
            3,
        ),
        "client": await queued(served, client.classify(plain("red"), priority="bulk"), 4),
        "interactive": await queued(served, served.stub.Classify(ClassifyRequest(images=[IMAGE])), 5),
    }
    assert (await order_of_answers(served, waiting))[0] == "interactive"
    await running
    await client.close()


async def test_a_requests_own_priority_goes_before_that_of_its_call(start_server: StartServer) -> None:
    served = await start_server(max_batch=1)
    running = await served.busy_with(asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE]))))
    stub = served.stub
    waiting = {
        "bulk": await queued(served, stub.Classify(ClassifyRequest(images=[IMAGE]), metadata=BULK), 1),
        "own": await queued(
            served, stub.Classify(ClassifyRequest(images=[IMAGE], priority="interactive"), metadata=BULK), 2
        ),
    }
    assert await order_of_answers(served, waiting) == ["own", "bulk"]
    await running


async def test_a_priority_that_is_none_is_refused_with_those_that_there_are(start_server: StartServer) -> None:
    served = await start_server()
    for call in (
        served.stub.Classify(ClassifyRequest(images=[IMAGE], priority="urgent" * 99)),
        served.stub.Classify(ClassifyRequest(images=[IMAGE]), metadata=(("x-priority", "3"),)),
    ):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected interactive, 1, bulk, 2" in error.details()
        assert len(error.details()) < 200
    assert served.backend.calls == []


async def test_the_configuration_tells_the_levels(start_server: StartServer) -> None:
    served = await start_server()
    config = await GRPCInferenceServiceStub(served.channel).ModelConfig(ModelConfigRequest(name="colours"))
    batching = config.config.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 1)


async def test_http_has_it_as_a_header_and_as_a_parameter_of_the_query(start_server: StartServer) -> None:
    served = await start_server(max_batch=1, http_port=free_port())
    port = served.server.http_port
    body = infer_request(noise(1))
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(body.inputs[0].shape)}
    pixels = json.dumps({"inputs": [tensor | {"data": noise(1).ravel().tolist()}]}).encode()

    async def post(path: str, content: bytes, *headers: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(content)}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    running = await served.busy_with(asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE]))))
    infer = "/v2/models/colours/infer"
    waiting = {
        "bulk": await queued(served, post(infer, pixels, "x-priority: bulk"), 1),
        "browser": await queued(served, post(infer, pixels, "priority: u=1, i"), 2),
    }
    assert await order_of_answers(served, waiting) == ["browser", "bulk"]
    assert all(future.result().startswith(b"HTTP/1.1 200") for future in waiting.values())
    await running
    refused = await post("/v1/classify?priority=urgent", b"\x89PNG")
    assert refused.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ([], ""),
        ([("user-agent", "x"), ("priority", "bulk")], "bulk"),
        ([("x-priority", b"1")], "1"),
        ([("priority", "u=1, i"), ("x-priority", "bulk")], "bulk"),
        ([("priority", "i"), ("priority", "")], ""),
        ([("priority", "high")], "high"),
    ],
)
def test_headers_of_another_standard_are_left_alone(headers: list[tuple[str, str | bytes]], text: str) -> None:
    assert priority_text(headers) == text


def test_levels_have_names_and_numbers() -> None:
    assert [priority_from_text(text) for text in ("interactive", "1", "bulk", "2")] == [1, 1, 2, 2]
    with pytest.raises(RequestError, match="the priority is 'Bulk'"):
        priority_from_text("Bulk")


@pytest.mark.parametrize(("sent", "level"), [(0, 1), (1, 1), (2, 2), (3, 1), (2**63, 1)])
def test_a_parameter_above_the_levels_is_the_default_as_in_triton(sent: int, level: int) -> None:
    request = infer_request(noise(1), parameters={"priority": InferParameter(uint64_param=sent)})
    assert priority_parameter(request) == level


def test_an_absent_parameter_leaves_the_level_to_the_call() -> None:
    assert priority_parameter(infer_request(noise(1), parameters={"mine": InferParameter(bool_param=True)})) == 0
