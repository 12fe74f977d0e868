"""The calls under way in one service, so that a drain refuses new ones and waits for the rest."""

import asyncio

from fuseline.serve.errors import ShuttingDownError


class Calls:
    """Counts calls, each of which is `with calls:`. All of it on one event loop."""

    def __init__(self) -> None:
        self.refused = False
        """Whether `refuse` was called."""
        self._under_way = 0
        self._idle = asyncio.Event()

    @property
    def refusal(self) -> ShuttingDownError:
        """What to tell a call that comes after `refuse`."""
        return ShuttingDownError(
            "the server is shutting down and takes nothing new; send this to another server, or again later"
        )

    def __enter__(self) -> None:
        """Begin a call. Raises `ShuttingDownError` after `refuse`."""
        if self.refused:
            raise self.refusal
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if self.refused and not self._under_way:
            self._idle.set()

    def refuse(self) -> None:
        """Let no call begin from now on."""
        self.refused = True

    async def idle(self) -> None:
        """Return, after `refuse`, once every call that began has ended."""
        if self._under_way:
            await self._idle.wait()
