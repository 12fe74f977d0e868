"""What a process tells of its batches and requests, in virtual time."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.feed.source import BATCH_FIELDS, REQUEST_FIELDS, FeedSource
from tests.fakes.virtual_time import VirtualLoop, run_in_virtual_time

LOGITS = np.zeros((1, 4), np.float32)
ANSWERED = BatchedRows(LOGITS, 2.0, 5.0, 3, LOGITS, 0)


class Told:
    """A source, and the chunks that it told."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.totals: list[tuple[str, str, str, str, int]] = []
        self.queued: list[tuple[str, str, int]] = []
        self.chunks: list[dict[str, Any]] = []
        self.source = FeedSource(lambda: self.totals, lambda: self.queued, process="p", clock=loop.time)
        self.loop = loop

    def start(self, rate: float = 200.0) -> None:
        self.source.start(lambda text: self.chunks.append(json.loads(text)), rate)

    def batch(self, number: int, *, shares: Any = (), rows: int = 3) -> None:
        stats = BatchStats(rows, 4, 2.0, 5.0, False, "full", 1, self.loop.time() - 0.006, shares)
        self.source.note_batch("m", "1", number, stats)

    def request(self, code: str = "OK", error: tuple[str, str] | None = None, timeout_s: float | None = None) -> None:
        answered = ANSWERED if code == "OK" else None
        self.source.note_request("Classify", "m", "1", code, 0.02, answered, timeout_s, error)

    def of(self, name: str) -> list[Any]:
        return [item for chunk in self.chunks for item in chunk.get(name, [])]


def test_batches_and_requests_are_told_with_all_their_members() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start()
        await asyncio.sleep(0.05)
        told.batch(7)
        told.request(timeout_s=0.5)
        await asyncio.sleep(0.1)
        (batch,) = told.of("batches")
        expected = [7, "m", "1", 1, 0.044, 0.05, 0.005, 3, 4, 0.002, "full", False]
        assert batch == expected
        assert len(BATCH_FIELDS) == len(batch) + 1
        (request,) = told.of("requests")
        assert dict(zip(REQUEST_FIELDS, request, strict=True)) == {
            "method": "Classify",
            "model": "m",
            "version": "1",
            "code": "OK",
            "seconds": 0.02,
            "queue": 0.002,
            "compute": 0.005,
            "batch_rows": 3,
            "deadline": 0.5,
        }
        assert told.chunks[-1]["process"] == "p"

    run_in_virtual_time(main)


@pytest.mark.parametrize("timeout_s", [None, 1e9, float("inf")])
def test_a_deadline_that_never_comes_is_none(timeout_s: float | None) -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start()
        told.request(timeout_s=timeout_s)
        await asyncio.sleep(0.1)
        assert told.of("requests")[0][-1] is None

    run_in_virtual_time(main)


def test_a_busy_server_tells_of_two_hundred_a_second_and_how_many_there_were() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start()
        for number in range(3000):
            await asyncio.sleep(0.001)
            told.batch(number)
            told.request()
        await asyncio.sleep(0.2)
        for kind in ("batches", "requests"):
            assert 590 <= len(told.of(kind)) <= 610
            assert sum(chunk.get(f"{kind}_seen", 0) for chunk in told.chunks) == 3000
        # Those that are told of follow each other.
        numbers = [batch[0] for batch in told.of("batches")]
        assert sum(after - before == 1 for before, after in pairwise(numbers)) > 0.9 * len(numbers)

    run_in_virtual_time(main)


def test_the_batches_of_a_request_that_is_followed_are_told_whatever_the_sample_is() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start(rate=10)
        pending: asyncio.Future[BatchedRows] = loop.create_future()
        other: asyncio.Future[BatchedRows] = loop.create_future()
        told.source.follow(pending, "ab")
        for number in range(100):
            told.batch(number, shares=((other, 0, 1), (pending, 0, 2)) if number in {0, 50} else ((other, 0, 3),))
        pending.set_result(ANSWERED)
        await asyncio.sleep(0.11)
        assert sorted(batch[0] for batch in told.of("batches") if batch[-1] == ["ab"]) == [0, 50]
        numbers = [batch[0] for batch in told.of("batches")]
        assert numbers == [0, 50]
        told.batch(101, shares=((pending, 0, 2),))
        await asyncio.sleep(0.11)
        assert told.of("batches")[-1] == told.chunks[-1]["batches"][-1]
        assert len(told.of("batches")[-1]) == len(BATCH_FIELDS) - 1, "nobody follows a request that was answered"

    run_in_virtual_time(main)


def test_refusals_are_counted_by_their_reason_and_only_the_servers_own_words_are_told() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start(rate=10)
        for number in range(500):
            told.request("RESOURCE_EXHAUSTED", ("OverloadedError", f"no room for {number}"))
        told.request("INVALID_ARGUMENT", ("RequestError", "the parameter 'secret' is not known"))
        await asyncio.sleep(0.11)
        assert told.of("refusals") == [
            ["Classify", "m", "RESOURCE_EXHAUSTED", "OverloadedError", 500, "no room for 499"],
            ["Classify", "m", "INVALID_ARGUMENT", "RequestError", 1, ""],
        ]

    run_in_virtual_time(main)


def test_each_second_it_gives_a_sign_of_life_with_the_counts_of_all_requests() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.totals = [("Classify", "m", "1", "OK", 3)]
        told.start()
        await asyncio.sleep(3.05)
        assert [chunk["now"] for chunk in told.chunks] == [0.0, 1.0, 2.0, 3.0]
        assert told.of("totals") == [["Classify", "m", "1", "OK", 3]] * 4
        assert all(chunk["resident_bytes"] > 2**20 for chunk in told.chunks)

    run_in_virtual_time(main)


def test_the_queue_is_told_when_it_changes() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.queued = [("m", "1", 0)]
        told.start()
        await asyncio.sleep(0.25)
        told.queued = [("m", "1", 5)]
        await asyncio.sleep(0.25)
        assert told.of("queued") == [["m", "1", 0], ["m", "1", 5]]

    run_in_virtual_time(main)


def test_nothing_is_told_after_the_end_and_a_new_begin_has_nothing_of_before() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        assert not told.source.is_watched
        told.source.stop()
        told.start()
        told.batch(1)
        told.source.stop()
        assert not told.source.is_watched
        await asyncio.sleep(5)
        assert told.of("batches") == []
        told.start()
        told.batch(2)
        await asyncio.sleep(0.15)
        assert [batch[0] for batch in told.of("batches")] == [2]

    run_in_virtual_time(main)


def test_what_nobody_takes_is_bounded() -> None:
    async def main(loop: VirtualLoop) -> None:
        told = Told(loop)
        told.start()
        for number in range(1000):
            told.source.follow(loop.create_future(), f"{number:032x}")
            told.source.note_followed({"id": number})
            told.request("UNAVAILABLE", (f"Error{number}", "x" * 10_000))
        await asyncio.sleep(0.11)
        assert len(told.of("followed")) == 256
        assert len(told.of("refusals")) == 50
        assert max(len(json.dumps(chunk)) for chunk in told.chunks) < 100_000

    run_in_virtual_time(main)
