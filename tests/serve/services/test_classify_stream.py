"""ClassifyStream, through a real server and a real runtime in this process."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import load_model
from fuseline.serve.repository import Repository
from fuseline.serve.services.classify import ClassifyService
from fuseline.serve.services.image_rows import ImageRows
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.fakes.servicer_context import ServicerContext
from tests.serve.conftest import StartServer, settings
from tests.serve.failures import refusal

BOUND = 64


def stream_request(id: int, colour: str = "red", **fields: object) -> ClassifyRequest:
    return ClassifyRequest(id=str(id), images=[Image(raw=plain(colour).tobytes())], **fields)


async def test_every_request_is_answered_after_half_close_each_by_its_id(start_server: StartServer) -> None:
    served = await start_server(max_batch=8)
    pixels = noise(300)
    stream = served.stub.ClassifyStream()

    async def send() -> None:
        for position, row in enumerate(pixels):
            image = Image(raw=row.tobytes()) if position % 3 else Image(encoded=encoded(row))
            await stream.write(ClassifyRequest(id=str(position), images=[image], return_logits=True))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    logits = {int(r.id): np.frombuffer(r.results[0].logits, "<f4") async for r in stream}
    await sending
    assert sorted(logits) == list(range(300))
    np.testing.assert_allclose(np.stack([logits[i] for i in range(300)]), expected_logits(pixels), atol=1e-5)


async def test_an_answer_comes_before_the_stream_ends(start_server: StartServer) -> None:
    served = await start_server()
    stream = served.stub.ClassifyStream()
    for position, colour in enumerate(LABELS):
        await stream.write(stream_request(position, colour))
        assert (await stream.read()).results[0].predictions[0].label == colour
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_a_bad_request_is_answered_by_its_error_and_the_stream_goes_on(start_server: StartServer) -> None:
    served = await start_server()
    stream = served.stub.ClassifyStream()
    bad = {
        0: (stream_request(0, top_k=9), grpc.StatusCode.INVALID_ARGUMENT, "top_k is 9"),
        1: (stream_request(1, model="cats"), grpc.StatusCode.NOT_FOUND, "cats"),
        2: (ClassifyRequest(id="2"), grpc.StatusCode.INVALID_ARGUMENT, "no image"),
        3: (ClassifyRequest(id="3", images=[Image(encoded=b"GIF89a")]), grpc.StatusCode.INVALID_ARGUMENT, "GIF"),
    }
    for request, _, _ in bad.values():
        await stream.write(request)
    await stream.write(stream_request(4))
    await stream.done_writing()
    answers = {int(response.id): response async for response in stream}
    assert answers[4].results[0].predictions[0].label == "red"
    for position, (_, code, reason) in bad.items():
        assert answers[position].error.code == code.value[0]
        assert reason in answers[position].error.message
        assert not answers[position].results


async def test_a_bounded_number_of_requests_is_under_way(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    served.backend.hold()
    stream = served.stub.ClassifyStream()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for position in range(1, 3 * BOUND):
            await stream.write(stream_request(position))
            sent += 1
        await stream.done_writing()

    # One alone, so that no row of the first batch is padding.
    await stream.write(stream_request(0))
    await served.until_busy()
    sent += 1
    sending = asyncio.create_task(send())
    await served.until(lambda: sent == 3 * BOUND and served.queued_rows >= 4)
    # Were there no bound, the requests sent would be read in these turns of the loop.
    for _ in range(200):
        await asyncio.sleep(0)
    # The next batch, behind which other callers come.
    assert served.queued_rows == 4
    served.backend.release()
    assert sorted([int(response.id) async for response in stream]) == list(range(3 * BOUND))
    await sending


async def test_requests_with_timeouts_are_bounded_by_the_queue_alone(start_server: StartServer) -> None:
    served = await start_server(max_batch=4, max_queue_rows=100, max_images_per_request=16)
    served.backend.hold()
    stream = served.stub.ClassifyStream()
    for position in range(150):
        await stream.write(stream_request(position, timeout_ms=60_000))
    await served.until(lambda: served.queued_rows >= 99 - 4)
    for _ in range(200):
        await asyncio.sleep(0)
    # Of 100 in flight some run.
    assert served.queued_rows + served.backend.calls[0] == 100
    served.backend.release()
    await stream.done_writing()
    assert sorted([int(response.id) async for response in stream]) == list(range(150))


async def test_a_stream_of_single_images_never_overloads_a_queue_smaller_than_its_bound(
    start_server: StartServer,
) -> None:
    served = await start_server(max_batch=4, max_queue_rows=3, max_images_per_request=3)
    served.backend.hold()
    stream = served.stub.ClassifyStream()

    async def send() -> None:
        for position in range(60):
            await stream.write(stream_request(position))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    await served.until_busy()
    await served.until(lambda: served.queued_rows + served.backend.calls[0] >= 3)
    # Were the bound larger, requests that the queue has no room for would be read in these turns of the loop.
    for _ in range(200):
        await asyncio.sleep(0)
    served.backend.release()
    answers = [response async for response in stream]
    await sending
    assert [answer.error.message for answer in answers if answer.HasField("error")] == []
    assert sorted(int(answer.id) for answer in answers) == list(range(60))


async def test_a_cancelled_stream_leaves_the_queue(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    served.backend.hold()
    stream = served.stub.ClassifyStream()
    await stream.write(stream_request(0))
    await served.until_busy()
    for position in range(1, 10):
        await stream.write(stream_request(position))
    await served.until(lambda: served.queued_rows == 4)
    stream.cancel()
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    response = await served.stub.Classify(stream_request(1, "blue"))
    assert response.results[0].predictions[0].label == "blue"
    assert served.backend.calls == [1, 1]


async def one_and_then_silence() -> AsyncIterator[ClassifyRequest]:
    yield stream_request(0)
    await asyncio.Event().wait()


async def test_at_whatever_moment_a_drain_begins_the_stream_ends(package: Path) -> None:
    model = await asyncio.to_thread(load_model, package, settings(), Metrics())
    with ThreadPoolExecutor(1) as pool:
        for turns in range(8):
            service = ClassifyService(Repository([model]), ImageRows(pool, settings()), Metrics(), settings())
            stream = asyncio.create_task(service.ClassifyStream(one_and_then_silence(), ServicerContext()))
            for _ in range(turns):
                await asyncio.sleep(0)
            service.refuse()
            async with asyncio.timeout(10):
                await service.idle()
                with pytest.raises(grpc.aio.AbortError, match="UNAVAILABLE"):
                    await stream
    await model.close()


async def test_however_a_stream_is_cancelled_the_server_knows_that_it_ended(package: Path) -> None:
    model = await asyncio.to_thread(load_model, package, settings(), Metrics())
    with ThreadPoolExecutor(1) as pool:
        service = ClassifyService(Repository([model]), ImageRows(pool, settings()), Metrics(), settings())
        for first, second in itertools.product(range(12), range(4)):
            stream = asyncio.create_task(service.ClassifyStream(one_and_then_silence(), ServicerContext()))
            for turns in (first, second):
                for _ in range(turns):
                    await asyncio.sleep(0)
                stream.cancel()
            with suppress(asyncio.CancelledError):
                await stream
    service.refuse()
    async with asyncio.timeout(10):
        await service.idle()
    await model.close()


async def test_a_draining_server_answers_what_it_has_read_and_ends_the_stream(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    stream = served.stub.ClassifyStream()
    await stream.write(stream_request(0))
    await served.until_busy()
    await stream.write(stream_request(1))
    await served.until(lambda: served.queued_rows == 1)
    draining = asyncio.create_task(served.server.drain())
    await served.until(lambda: not served.server.ready)
    served.backend.release()
    assert {(await stream.read()).id, (await stream.read()).id} == {"0", "1"}
    code, details = await refusal(stream.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in details
    await draining


async def test_a_draining_server_ends_a_stream_that_has_sent_its_last_request_as_if_it_went_on(
    start_server: StartServer,
) -> None:
    served = await start_server(drain_timeout_s=5)
    served.backend.hold()
    stream = served.stub.ClassifyStream()
    await stream.write(stream_request(0))
    await stream.done_writing()
    await served.until_busy()
    for _ in range(10):
        # An answer over the same connection: the server has received the end of the stream.
        await served.stub.GetModel(GetModelRequest())
    draining = asyncio.create_task(served.server.drain())
    await served.until(lambda: not served.server.ready)
    served.backend.release()
    assert (await stream.read()).id == "0"
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    await draining


async def test_a_message_over_the_limit_ends_the_stream_with_the_limit(start_server: StartServer) -> None:
    served = await start_server(max_message_mb=1)
    stream = served.stub.ClassifyStream()
    await stream.write(ClassifyRequest(images=[Image(raw=bytes(2**20))]))
    code, details = await refusal(stream.read())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(2**20) in details
    assert (await served.stub.Classify(stream_request(0))).results
