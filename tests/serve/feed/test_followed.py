"""Requests that the page follows, through the processes of a server."""

import asyncio
import json
from typing import Any

import pytest
from grpc import StatusCode

from fuseline.serve.feed.followed import FollowedRequest, followed_key, has_span, key_of
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.tracing.span_bytes import SPAN_BYTES
from tests.serve.workers.test_remote_batcher import JoinedWorkers, row
from tests.serve.workers.test_traced_requests import Traced

KEY = "00112233445566778899aabbccddeeff"


class Told:
    """A source, and the chunks that it told."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.source = FeedSource(list, list)
        self.source.start(lambda text: self.chunks.put_nowait(json.loads(text)))

    async def of(self, name: str) -> list[Any]:
        """What the first chunk that has `name` says of it."""
        async with asyncio.timeout(10):
            while name not in (chunk := await self.chunks.get()):
                pass
        self.source.stop()
        found: list[Any] = chunk[name]
        return found


@pytest.mark.parametrize(
    "request_id", ["", "console-", f"console-{KEY}0", f"console-{KEY.upper()}", KEY, f" console-{KEY}"]
)
def test_only_an_id_of_the_pages_own_form_is_followed(request_id: str) -> None:
    assert followed_key(request_id) is None
    assert followed_key(f"console-{KEY}") == KEY


async def test_a_batch_in_the_backend_is_named_by_the_key_of_the_workers_request() -> None:
    worker, backend = Told(), Told()
    joined = JoinedWorkers(workers=2, feed=backend.source)
    trace = FollowedRequest(worker.source, f"console-{KEY}", KEY, None)
    request = joined.remotes[0].submit([row(1)], trace=trace)
    other = joined.remotes[1].submit([row(2)])
    trace.submitted(request)
    await joined.run_batch()
    await other
    trace.end(StatusCode.OK, "m", await request)
    (batch,) = await backend.of("batches")
    assert batch[-1] == [KEY]
    (told,) = await worker.of("followed")
    assert (told["id"], told["key"], told["code"], told["decoded"]) == (f"console-{KEY}", KEY, "OK", None)
    assert told["arrived"] <= told["submitted"] <= told["answered"]


async def test_a_request_that_is_traced_too_is_known_by_its_trace_and_linked_as_ever() -> None:
    worker, backend = Told(), Told()
    spans, spans_of_backend = Traced(), Traced()
    joined = JoinedWorkers(tracer=spans_of_backend.tracer, feed=backend.source)
    trace = FollowedRequest(worker.source, f"console-{KEY}", KEY, spans.begin())
    request = joined.remotes[0].submit([row(1)], trace=trace)
    trace.submitted(request)
    await joined.run_batch()
    trace.end(StatusCode.OK, "m", await request)
    (batch,) = await backend.of("batches")
    (told,) = await worker.of("followed")
    assert batch[-1] == [told["key"]] == [trace.trace_id]
    assert len(spans_of_backend.named("batch")[0].links) == 1
    assert len(spans.named("compute")[0].links) == 1


async def test_a_request_that_is_only_followed_makes_no_link_and_no_exemplar() -> None:
    spans_of_backend = Traced()
    joined = JoinedWorkers(tracer=spans_of_backend.tracer)
    trace = FollowedRequest(FeedSource(list, list), f"console-{KEY}", KEY, None)
    request = joined.remotes[0].submit([row(1)], trace=trace)
    await joined.run_batch()
    await request
    assert spans_of_backend.named("batch") == [], "a span without a request that is traced"
    assert len(trace.span_bytes) == SPAN_BYTES
    assert key_of(trace.span_bytes) == KEY
    assert not has_span(trace.span_bytes)
    assert CallContext(request_id="r", trace=trace).exemplar == {"request_id": "r"}
