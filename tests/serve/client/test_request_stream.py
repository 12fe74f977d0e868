"""Requests that travel by stream: what each gets is what a call of its own gets."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest
from fuseline.serve import errors
from fuseline.serve.client import AsyncClient, open_stream, request_stream
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.serve.conftest import Served, StartServer


def streaming(served: Served, **options: object) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{served.server.port}", by_stream=True, **options)


def messages_of(monkeypatch: pytest.MonkeyPatch) -> list[ClassifyRequest]:
    """The messages that are written to streams from now on."""
    written: list[ClassifyRequest] = []
    tail = open_stream.OpenStream._tail

    def noted(stream: open_stream.OpenStream, id: str, requests: list[open_stream.StreamedRequest]) -> bytes:
        end = tail(stream, id, requests)
        written.append(ClassifyRequest.FromString(b"".join([*(its.message for its in requests), end])))
        return end

    monkeypatch.setattr(open_stream.OpenStream, "_tail", noted)
    return written


async def test_requests_that_wait_together_share_a_message_and_each_gets_its_own_answer(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server()
    written = messages_of(monkeypatch)
    pixels = noise(40)
    async with streaming(served) as client:
        await client.model()
        answers = await asyncio.gather(*(client.classify(row, return_logits=True) for row in pixels))
    np.testing.assert_allclose([answer.results[0].logits for answer in answers], expected_logits(pixels), atol=1e-5)
    assert all(len(answer.results) == 1 for answer in answers)
    assert len(written) < 10
    assert max(len(message.images) for message in written) == open_stream.MOST_IMAGES
    assert len({message.id for message in written}) == len(written)


async def test_requests_of_several_images_are_taken_apart_again(start_server: StartServer) -> None:
    served = await start_server()
    counts = [1, 3, 2, 5, 1, 17, 2]
    pixels = [noise(count, seed) for seed, count in enumerate(counts)]
    async with streaming(served) as client:
        answers = await asyncio.gather(*(client.classify(list(rows), return_logits=True) for rows in pixels))
    for answer, rows in zip(answers, pixels, strict=True):
        np.testing.assert_allclose([result.logits for result in answer.results], expected_logits(rows), atol=1e-5)


async def test_only_requests_of_one_kind_and_one_hurry_share_a_message(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server()
    written = messages_of(monkeypatch)
    kinds = [
        {},
        {"top_k": 2},
        {"return_logits": True},
        {"priority": "bulk"},
        {"model": "colours"},
        {"version": "1"},
        {"timeout_s": 5.0},
        {"timeout_s": None},
    ]
    async with streaming(served) as client:
        image = encoded(plain("red"))
        answers = await asyncio.gather(*(client.classify(image, **kind) for kind in kinds for _ in range(2)))
    assert [len(message.images) for message in written] == [2] * len(kinds)
    assert [len(answer.results[0].predictions) for answer in answers] == [1, 1, 2, 2] + [1] * 12
    assert [message.timeout_ms > 0 for message in written] == [True] * 7 + [False]


async def test_one_bad_request_fails_alone(start_server: StartServer) -> None:
    served = await start_server()
    async with streaming(served) as client:
        images = [encoded(plain(colour)) for colour in LABELS] * 3
        images[5] = b"GIF89a"
        calls = [client.classify(image) for image in images]
        calls.append(client.classify([]))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results.pop(5), errors.ImageError)
        assert isinstance(results.pop(), errors.RequestError)
        labels = Counter(result.results[0].predictions[0].label for result in results)
        assert labels == Counter(LABELS * 3) - Counter([LABELS[1]])


async def test_errors_are_those_of_calls(start_server: StartServer) -> None:
    served = await start_server(max_images_per_request=8)
    bad = [
        ((b"GIF89a",), {}),
        ((plain("red"),), {"top_k": 9}),
        ((plain("red"),), {"model": "cats"}),
        ((encoded(plain("red")),), {"version": "7"}),
        ((list(noise(9)),), {}),
        ((encoded(plain("red")),), {"priority": "soon"}),
        ((encoded(plain("red")),), {"timeout_s": -1.0}),
    ]
    async with streaming(served) as stream, AsyncClient(stream.address) as calls:
        for arguments, options in bad:
            for count in (1, 3):
                by_call, *by_stream = await asyncio.gather(
                    calls.classify(*arguments, **options),
                    *(stream.classify(*arguments, **options) for _ in range(count)),
                    return_exceptions=True,
                )
                for each in by_stream:
                    assert (type(each), str(each)) == (type(by_call), str(by_call))
        # More images together than one request may have: each is sent alone.
        assert len(await asyncio.gather(*(stream.classify(plain("red")) for _ in range(16)))) == 16


async def test_a_request_too_large_for_a_stream_is_a_call(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server()
    written = messages_of(monkeypatch)
    async with streaming(served) as client:
        with pytest.raises(errors.ImageError):
            await client.classify(bytes(request_stream.LARGEST_BYTES))
        assert not written
        await client.classify(plain("red"))
        assert len(written) == 1


async def test_a_deadline_is_each_request_s_own(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    async with streaming(served) as client:
        patient = asyncio.create_task(client.classify(plain("blue"), timeout_s=60))
        await served.until_busy()
        with pytest.raises(errors.DeadlineError):
            await client.classify(plain("red"), timeout_s=0.05)
        served.backend.release()
        assert (await patient).results[0].predictions[0].label == "blue"


async def test_a_cancelled_request_that_waits_to_be_sent_is_not_sent(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server()
    written = messages_of(monkeypatch)
    async with streaming(served) as client:
        await client.classify(plain("red"))
        left, kept = (asyncio.create_task(client.classify(plain(colour))) for colour in ("red", "blue"))
        await asyncio.sleep(0)
        left.cancel()
        assert (await kept).results[0].predictions[0].label == "blue"
    assert [len(message.images) for message in written] == [1, 1]


async def test_a_stream_is_renewed_and_the_old_one_answers_what_it_has(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_stream, "RENEW_EVERY_S", 0.05)
    served = await start_server()
    served.backend.hold()
    async with streaming(served) as client:
        first = asyncio.create_task(client.classify(plain("red")))
        await served.until_busy()
        (link,) = client._servers._links.values()
        old = link.requests._current
        await served.until(lambda: not old.is_open)
        second = asyncio.create_task(client.classify(plain("blue")))
        await served.until(lambda: link.requests._current is not old)
        served.backend.release()
        assert [(await each).results[0].predictions[0].label for each in (first, second)] == ["red", "blue"]
        await asyncio.wait_for(old.reader, 10)
        await served.until(lambda: old not in link.requests._streams)


async def test_a_client_that_is_closed_cancels_what_waits(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    client = streaming(served)
    call = asyncio.create_task(client.classify(plain("red")))
    await served.until_busy()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_token_goes_with_the_stream(guarded: Served) -> None:
    async with streaming(guarded, token="unknown") as client:
        with pytest.raises(errors.UnauthenticatedError):
            await client.classify(encoded(plain("red")))


async def test_a_stream_that_no_server_takes_is_the_error_of_a_call() -> None:
    async with AsyncClient("127.0.0.1:1", by_stream=True, retries=0) as client:
        with pytest.raises(errors.InputError, match=r"no server answers at 127\.0\.0\.1:1 .*Connection refused"):
            await client.classify(b"x")


async def test_requests_that_have_room_only_alone_are_answered(start_server: StartServer) -> None:
    served = await start_server(max_queue_rows=4, max_images_per_request=4)
    async with streaming(served, retries=0) as client:
        await client.model()
        results = await asyncio.gather(*(client.classify(plain("red")) for _ in range(16)), return_exceptions=True)
    answered = [each for each in results if not isinstance(each, BaseException)]
    assert len(answered) >= 4
    assert {type(each) for each in results} <= {type(answered[0]), errors.OverloadedError}
