"""Buffers the records for the backend process, and sends them in one piece for each burst of requests."""

import asyncio
from collections.abc import Callable

from fuseline.serve.batching.policy import QUIET_TURNS

_ENOUGH_RECORDS = 64


class RecordBuffer:
    """Holds records back while more of them come with every few turns of the event loop.

    So a burst of requests arrives in the backend process as one piece, is computed as one batch, and comes back as one
    piece: waking another process for each request costs more than all else that is done for it. An event loop with
    nothing to do makes these turns in well below 0.1 ms.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """Begin empty. `send` takes bytes, in order."""
        self._send = send
        self._records: list[bytes] = []
        self._seen = self._quiet_turns = 0

    def write(self, record: bytes) -> None:
        """Send `record` soon, after those before it."""
        if not self._records:
            self._seen = self._quiet_turns = 0
            asyncio.get_running_loop().call_soon(self._turn)
        self._records.append(record)

    def _turn(self) -> None:
        count = len(self._records)
        if count > self._seen:
            self._seen, self._quiet_turns = count, 0
        else:
            self._quiet_turns += 1
        if self._quiet_turns < QUIET_TURNS and count < _ENOUGH_RECORDS:
            asyncio.get_running_loop().call_soon(self._turn)
            return
        records, self._records = self._records, []
        self._send(b"".join(records))
