"""Messages between the supervisor and one of its processes: each is a line of JSON, over a Unix socket pair."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

_MAX_LINE_BYTES = 64 * 2**20
"""Longest line: about a thousand times the size of a report, which grows with the models and statuses counted."""


_MOST_UNREAD_BYTES = 2**20


class ControlChannel:
    """One end of the channel. A message is a dict with `kind`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, kind: str, **contents: Any) -> None:
        """Send a message; it is dropped if the other end has gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"kind": kind, **contents}).encode() + b"\n")

    def send_if_room(self, kind: str, **contents: Any) -> None:
        """Send a message, unless the other end is far behind with reading: such a message may be lost."""
        if self._writer.transport.get_write_buffer_size() < _MOST_UNREAD_BYTES:
            self.send(kind, **contents)

    async def finish(self) -> None:
        """Close this end, and return once every message has left this process."""
        self._writer.close()
        await self._writer.wait_closed()

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the other end's messages until it closes."""
        try:
            while line := await self._reader.readline():
                yield json.loads(line)
        except ConnectionError:
            return

    def close(self) -> None:
        """Close this end, and return at once."""
        self._writer.close()


async def open_control_channel(end: socket.socket) -> ControlChannel:
    """Return a channel over one end of a socket pair, which belongs to the channel from now on."""
    return ControlChannel(*await asyncio.open_unix_connection(sock=end, limit=_MAX_LINE_BYTES))
