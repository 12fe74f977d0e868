"""How many requests of one client, and how many streams of all, are under way at a time in this process."""

from contextlib import AbstractContextManager
from types import TracebackType

from fuseline.serve.errors import OverloadedError
from fuseline.serve.settings import Settings

_RETRY_AFTER_S = 0.1
"""Seconds after which a refused client may come again. When its own answers will come is not known here."""


class CallLimits(AbstractContextManager[None]):
    """Counts what is under way; a stream runs in `with limits:`. Everything happens on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._most_streams = settings.max_streams
        self._most_requests = settings.max_requests_per_client
        self._streams = 0
        self._requests: dict[str, int] = {}

    def __enter__(self) -> None:
        """Begin a stream. Raises `OverloadedError` when too many are open."""
        if self._streams >= self._most_streams:
            raise OverloadedError(
                f"{self._streams} streams are open, the most that are; close some, send single requests, or start the "
                "server with a larger --max-streams",
                _RETRY_AFTER_S,
            )
        self._streams += 1

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """End a stream."""
        self._streams -= 1

    def begin(self, client: str) -> None:
        """Begin a request of `client`. Raises `OverloadedError` when too many of its own are under way."""
        under_way = self._requests.get(client, 0)
        if under_way >= self._most_requests:
            raise OverloadedError(
                f"{under_way} requests of this client are under way, the most that may be; wait for answers, or start "
                "the server with a larger --max-requests-per-client",
                _RETRY_AFTER_S,
            )
        self._requests[client] = under_way + 1

    def end(self, client: str) -> None:
        """End a request of `client` that began."""
        left = self._requests[client] - 1
        if left:
            self._requests[client] = left
        else:
            # Clients come and go; the names of those that went are not kept.
            del self._requests[client]
