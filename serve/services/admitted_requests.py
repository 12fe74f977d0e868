"""The requests of a stream, for as long as its token lets it go on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from fuseline.serve.errors import FuselineError

RequestT = TypeVar("RequestT")


class AdmittedRequests(Generic[RequestT]):
    """Iterates over requests until `end`, then raises its error. Everything happens on one event loop.

    Whoever waits for the next request meets the error at once; whoever does something else, when it comes for the next.
    A request that was returned stays the caller's, and none that is there after `end` is returned.
    """

    # To wait for the request and for the end, whichever comes first, would cost each request a task. A cancelled wait
    # that tells this cancellation from others, as asyncio.timeout does, costs it half a microsecond.

    def __init__(self, requests: AsyncIterator[RequestT]) -> None:
        self._requests = requests
        self._next: Callable[[], Awaitable[RequestT]] | None = None
        self._waiting: asyncio.Task[object] | None = None
        self.error: FuselineError | None = None
        """Error of `end`; None before."""

    def end(self, error: FuselineError) -> None:
        """Return no further request: raise `error`. Called once."""
        self.error = error
        if self._waiting is not None:
            self._waiting.cancel()

    def __aiter__(self) -> "AdmittedRequests[RequestT]":
        return self

    async def __anext__(self) -> RequestT:
        if self.error is not None:
            raise self.error
        if self._next is None:
            # Not before: gRPC's own iterator must be used once it is made.
            self._next = aiter(self._requests).__anext__
        self._waiting = task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            return await self._next()
        except asyncio.CancelledError:
            # Where the caller is cancelled too, that goes before.
            if self.error is not None and task.uncancel() <= cancelling:
                raise self.error from None
            raise
        finally:
            self._waiting = None
