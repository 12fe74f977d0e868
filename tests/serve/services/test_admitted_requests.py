"""A stream's requests, ended at each moment of its reader's life."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fuseline.serve.errors import UnauthenticatedError
from fuseline.serve.services.admitted_requests import AdmittedRequests

GONE = UnauthenticatedError("gone")


class Source:
    """Requests as the test sends them, and whether anyone has begun to read."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[str | None] = asyncio.Queue()
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[str]:
        self.begun = True
        while (request := await self.sent.get()) is not None:
            yield request

    def admitted(self) -> AdmittedRequests[str]:
        return AdmittedRequests(self)  # type: ignore[arg-type]


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def read(admitted: AdmittedRequests[str], taken: list[str]) -> None:
    async for request in admitted:
        taken.append(request)  # noqa: PERF401 what was taken is looked at before the end


async def test_requests_come_through_until_the_client_ends_them() -> None:
    source, taken = Source(), list[str]()
    for request in ("a", "b", None):
        source.sent.put_nowait(request)
    await read(source.admitted(), taken)
    assert taken == ["a", "b"]


async def test_a_reader_that_waits_meets_the_error_at_once() -> None:
    source, taken = Source(), list[str]()
    admitted = source.admitted()
    reader = asyncio.create_task(read(admitted, taken))
    source.sent.put_nowait("a")
    await turns()
    admitted.end(GONE)
    with pytest.raises(UnauthenticatedError, match="gone"):
        await reader
    assert taken == ["a"]
    assert not reader.cancelling()


async def test_a_reader_that_does_something_else_is_not_disturbed_and_takes_nothing_further() -> None:
    source, go = Source(), asyncio.Event()
    admitted = source.admitted()
    source.sent.put_nowait("a")
    source.sent.put_nowait("b")
    done: list[str] = []

    async def work() -> None:
        async for request in admitted:
            await go.wait()
            done.append(request)

    worker = asyncio.create_task(work())
    await turns()
    admitted.end(GONE)
    await turns()
    assert not worker.done()
    go.set()
    with pytest.raises(UnauthenticatedError):
        await worker
    assert done == ["a"]


@pytest.mark.parametrize("between", range(4))
async def test_a_request_that_comes_as_the_end_does_is_taken_whole_or_not_at_all(between: int) -> None:
    source, taken = Source(), list[str]()
    admitted = source.admitted()
    reader = asyncio.create_task(read(admitted, taken))
    await turns()
    source.sent.put_nowait("a")
    await turns(between)
    admitted.end(GONE)
    with pytest.raises(UnauthenticatedError):
        await reader
    assert taken + [source.sent.get_nowait() for _ in range(source.sent.qsize())] in (["a"], [])


async def test_an_end_before_the_first_request_leaves_the_source_alone() -> None:
    source = Source()
    admitted = source.admitted()
    admitted.end(GONE)
    with pytest.raises(UnauthenticatedError):
        await read(admitted, [])
    # gRPC's own warns when it was made and not used.
    assert not source.begun


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_reader_that_is_cancelled_too_is_cancelled(cancelled_first: bool) -> None:
    source = Source()
    admitted = source.admitted()
    reader = asyncio.create_task(read(admitted, []))
    await turns()
    if cancelled_first:
        reader.cancel()
        admitted.end(GONE)
    else:
        admitted.end(GONE)
        reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
