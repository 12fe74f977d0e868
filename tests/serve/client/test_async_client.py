"""What only the asynchronous client does; `test_clients` has what both do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.client import AsyncClient
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.serve.conftest import StartServer


async def test_many_calls_are_under_way_at_once_and_share_batches(start_server: StartServer) -> None:
    served = await start_server()
    pixels = noise(40)
    served.backend.hold()
    async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
        calls = [asyncio.create_task(client.classify(row, return_logits=True)) for row in pixels]
        await served.until(lambda: served.queued_rows + sum(served.backend.calls) >= len(pixels))
        served.backend.release()
        answers = await asyncio.gather(*calls)
    assert len(served.backend.calls) < len(pixels)
    np.testing.assert_allclose([a.results[0].logits for a in answers], expected_logits(pixels), atol=1e-5)


async def test_a_cancelled_call_leaves_the_server_s_queue_and_others_are_answered(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
        computed = asyncio.create_task(client.classify(plain("red")))
        await served.until_busy()
        left, waiting = (asyncio.create_task(client.classify(plain("blue"))) for _ in range(2))
        await served.until(lambda: served.queued_rows == 2)
        left.cancel()
        await served.until(lambda: served.queued_rows == 1)
        served.backend.release()
        assert (await waiting).results[0].predictions[0].label == "blue"
        assert (await computed).results[0].predictions[0].label == "red"
        with pytest.raises(asyncio.CancelledError):
            await left


async def test_a_stream_takes_images_of_an_asynchronous_iterable(start_server: StartServer, tmp_path: Path) -> None:
    served = await start_server()
    path = tmp_path / "green.png"
    path.write_bytes(encoded(plain("green", 20, 30)))

    async def images() -> AsyncIterator[Path | bytes]:
        for colour in LABELS:
            await asyncio.sleep(0)
            yield path if colour == "green" else encoded(plain(colour))
        raise ZeroDivisionError

    labels = {}

    async def classify_all(client: AsyncClient) -> None:
        async for item in client.classify_stream(images()):
            assert item.answer is not None
            labels[item.position] = item.answer.results[0].predictions[0].label

    async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
        with pytest.raises(ZeroDivisionError):
            await classify_all(client)
    assert labels == dict(enumerate(LABELS))


async def test_a_client_that_is_made_outside_of_the_event_loop_belongs_to_that_of_its_first_call(
    live_address: str,
) -> None:
    client = await asyncio.to_thread(AsyncClient, live_address)
    assert (await client.classify(plain("red"))).results
    await client.close()


async def test_a_call_under_way_when_the_client_is_closed_is_cancelled(start_server: StartServer) -> None:
    served = await start_server()
    served.backend.hold()
    client = AsyncClient(f"127.0.0.1:{served.server.port}")
    call = asyncio.create_task(client.classify(plain("red")))
    await served.until_busy()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call
