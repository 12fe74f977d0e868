"""A request that whoever watches follows by its id: it is told in full, whatever the sample is."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from grpc import StatusCode

from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.tracing.span_bytes import SPAN_BYTES, TRACE_ID_BYTES
from fuseline.serve.tracing.tracing import RequestTrace

_FOLLOWED_ID = re.compile(r"console-([0-9a-f]{32})")


class FollowedRequest:
    """A `RequestTrace` that tells a feed where the time of one request went, beside the trace that it may have."""

    def __init__(
        self,
        source: FeedSource,
        request_id: str,
        key: str,
        traced: RequestTrace | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with a request that has just come.

        `key`, 32 hexadecimal digits, names its batches, unless `traced` does: its own trace; None: it has none.
        """
        self._source = source
        self._clock = clock
        self._request_id = request_id
        self._traced = traced
        self._key = key if traced is None else traced.trace_id
        self._arrived = clock()
        self._decoded: tuple[float, float] | None = None
        self._submitted: float | None = None

    @property
    def trace_id(self) -> str:
        """See `RequestTrace.trace_id`; empty: the request can't be found in any trace."""
        return "" if self._traced is None else self._traced.trace_id

    @property
    def span_bytes(self) -> bytes:
        """See `RequestTrace.span_bytes`: those of the trace, else a span without an id of its own."""
        if self._traced is not None:
            return self._traced.span_bytes
        return bytes.fromhex(self._key).ljust(SPAN_BYTES, b"\0")

    def batched(self, batches: bytes) -> None:
        """See `RequestTrace.batched`."""
        if self._traced is not None:
            self._traced.batched(batches)

    def decoded(self, seconds: float) -> None:
        """See `RequestTrace.decoded`."""
        self._decoded = self._clock(), seconds
        if self._traced is not None:
            self._traced.decoded(seconds)

    def submitted(self, pending: asyncio.Future[BatchedRows]) -> None:
        """See `RequestTrace.submitted`."""
        self._submitted = self._clock()
        self._source.follow(pending, self._key)
        if self._traced is not None:
            self._traced.submitted(pending)

    def end(self, code: StatusCode, model: str, batched: BatchedRows | None) -> None:
        """See `RequestTrace.end`."""
        decoded, decode = self._decoded or (None, None)
        facts: dict[str, Any] = {
            "id": self._request_id,
            "key": self._key,
            "model": model,
            "code": code.name,
            "arrived": self._arrived,
            "decoded": decoded,
            "decode": decode,
            "submitted": self._submitted,
            "answered": self._clock(),
        }
        self._source.note_followed(facts)
        if self._traced is not None:
            self._traced.end(code, model, batched)


def followed_key(request_id: str) -> str | None:
    """Return the key of a request that asks by its id to be followed; None: it doesn't."""
    found = _FOLLOWED_ID.fullmatch(request_id)
    return None if found is None else found[1]


def has_span(span_bytes: bytes) -> bool:
    """Return whether there is a span by these `SPAN_BYTES`, and not only the key of a request that is followed."""
    return any(span_bytes[TRACE_ID_BYTES:])


def key_of(span_bytes: bytes) -> str:
    """Return the key of a request that is followed, of another process, by its `RequestTrace.span_bytes`."""
    return span_bytes[:TRACE_ID_BYTES].hex()
