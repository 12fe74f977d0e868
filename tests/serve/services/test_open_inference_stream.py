"""inference.GRPCInferenceService/ModelStreamInfer against a server with a tiny real model."""

import asyncio
import re

import grpc
import numpy as np
import pytest

import fuseline.serve.lanes.warm_lanes
from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.backends import slow_warm_up
from tests.fakes.colours import expected_logits, noise
from tests.serve.conftest import Served, StartServer
from tests.serve.failures import refusal
from tests.serve.services.open_inference_requests import infer_request, logits_of

Stream = grpc.aio.StreamStreamCall


def stream_to(served: Served, **options: object) -> Stream:
    return GRPCInferenceServiceStub(served.channel).ModelStreamInfer(**options)


async def test_answers_are_in_the_order_of_the_requests_errors_among_them(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    stream = stream_to(served)
    for seed in range(6):
        await stream.write(infer_request(noise(1 + seed % 3, seed), id=str(seed)))
        if seed == 2:
            await stream.write(ModelInferRequest(id="bad"))
            await stream.write(infer_request(noise(1), id="unknown", model_name="cats"))
    await stream.done_writing()
    answers: list[ModelStreamInferResponse] = [answer async for answer in stream]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "bad", "unknown", "3", "4", "5"]
    bad, unknown = answers.pop(3), answers.pop(3)
    assert re.match("INVALID_ARGUMENT: .*takes 'image'", bad.error_message)
    assert re.match("NOT_FOUND: .*served: colours", unknown.error_message)
    for seed, answer in enumerate(answers):
        assert answer.error_message == ""
        expected = expected_logits(noise(1 + seed % 3, seed))
        np.testing.assert_allclose(logits_of(answer.infer_response), expected, atol=1e-5)
    assert served.server.answers() == "1 INVALID_ARGUMENT, 1 NOT_FOUND, 6 OK"


async def test_each_answer_says_that_it_is_the_last_of_its_request_asked_or_not(start_server: StartServer) -> None:
    served = await start_server()
    asked = {"triton_enable_empty_final_response": {"bool_param": True}}
    stream = stream_to(served)
    for parameters in ({}, asked):
        await stream.write(infer_request(noise(1), parameters=parameters))
    await stream.done_writing()
    answers = [answer.infer_response async for answer in stream]
    assert [answer.parameters["triton_final_response"].bool_param for answer in answers] == [True, True]
    unary = await GRPCInferenceServiceStub(served.channel).ModelInfer(infer_request(noise(1), parameters=asked))
    assert "triton_final_response" not in unary.parameters


async def test_requests_of_a_stream_share_a_batch_and_never_overfill_the_queue(start_server: StartServer) -> None:
    served = await start_server(max_batch=4, max_queue_rows=4, max_images_per_request=4)
    served.backend.hold()
    stream = stream_to(served)
    # One alone, so that the first batch holds one row and the other three of the bound wait.
    await stream.write(infer_request(noise(1)))
    await served.until_busy()
    for seed in range(1, 20):
        await stream.write(infer_request(noise(1, seed)))
    await stream.done_writing()
    await served.until(lambda: served.queued_rows == 3)
    served.backend.release()
    assert [answer.error_message async for answer in stream] == [""] * 20
    assert 4 in served.backend.calls


async def test_a_cancelled_stream_leaves_the_queue(start_server: StartServer) -> None:
    served = await start_server()
    first = await served.busy_with(GRPCInferenceServiceStub(served.channel).ModelInfer(infer_request(noise(1))))
    stream = stream_to(served)
    for seed in range(3):
        await stream.write(infer_request(noise(1, seed)))
    await served.until(lambda: served.queued_rows == 3)
    stream.cancel()
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    assert logits_of(await first).shape == (1, 4)
    assert served.backend.calls == [1]
    await served.until(lambda: served.server.answers() == "3 CANCELLED, 1 OK")


async def test_the_deadline_of_a_stream_is_that_of_its_requests(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuseline.serve.lanes.warm_lanes, "warm_up", slow_warm_up)
    served = await start_server()
    first = await served.busy_with(GRPCInferenceServiceStub(served.channel).ModelInfer(infer_request(noise(1))))
    stream = stream_to(served, timeout=500)
    await stream.write(infer_request(noise(1)))
    assert (await stream.read()).error_message.startswith("DEADLINE_EXCEEDED: ")
    stream.cancel()
    served.backend.release()
    await first


async def test_a_drain_answers_what_was_read_then_ends_the_stream(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    stream = stream_to(served)
    for seed in range(3):
        await stream.write(infer_request(noise(1, seed), id=str(seed)))
    await served.until_busy()
    batcher = next(iter(served.server.repository)).batcher
    await served.until(lambda: batcher.queued_rows + batcher.running_rows == 3)
    draining = asyncio.create_task(served.server.drain())
    late = await refusal(stream_to(served).read())
    served.backend.release()
    assert [(await stream.read()).infer_response.id for _ in range(3)] == ["0", "1", "2"]
    for code, details in (late, await refusal(stream.read())):
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in details
    await draining
    assert served.server.answers() == "3 OK, 2 UNAVAILABLE"
