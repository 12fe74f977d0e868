"""What was served before the backend process was started again, and can't be served yet."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fuseline.serve.errors import FuselineError, InputError, ModelControlError, VerificationError

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 30.0

_MENDABLE = (InputError, ModelControlError, VerificationError)
"""Errors that another content of the disk, or more memory, can end; others are left to a new process."""

Lost = Path | str
"""A package that the command line names, or the name of a repository's model."""

_log = logging.getLogger(__name__)


class LostModels:
    """Tries to bring models back, after pauses that double up to `MOST_PAUSE_S`."""

    def __init__(
        self, bring: Mapping[Lost, Callable[[], Awaitable[None]]], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """`bring` serves each model, or raises `FuselineError`."""
        self._bring = dict(bring)
        self._sleep = sleep
        self._pause_s = FIRST_PAUSE_S
        self.reasons: dict[Lost, FuselineError] = {}
        """Reason why each that was tried in vain is not served."""

    def __bool__(self) -> bool:
        """Return whether any is lost."""
        return bool(self._bring)

    @property
    def unmendable(self) -> FuselineError | None:
        """A reason that only a new process can mend, if there is one."""
        return next((reason for reason in self.reasons.values() if not isinstance(reason, _MENDABLE)), None)

    def forget(self, lost: Lost) -> None:
        """Try it no more: it is served, or is to be served no more."""
        self._bring.pop(lost, None)
        self.reasons.pop(lost, None)

    async def try_all(self) -> None:
        """Try each once; the log says why one is not back."""
        for lost in list(self._bring):
            # Another may have been forgotten meanwhile.
            if (bring := self._bring.get(lost)) is None:
                continue
            try:
                await bring()
            except FuselineError as error:
                if lost in self._bring:
                    self.reasons[lost] = error
                    _log.error(
                        "%s was served before the backend process ended, and can't be now: %s; it is tried again in "
                        "%g s",
                        lost,
                        error,
                        self._pause_s,
                    )
            else:
                self.forget(lost)

    async def pause(self) -> None:
        """Wait until they are to be tried again."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MOST_PAUSE_S)
        await self._sleep(pause_s)

    async def bring_back(self) -> None:
        """Try until none is lost."""
        while self._bring:
            await self.pause()
            await self.try_all()


def nothing_lost() -> LostModels:
    """Return the state of a process that is started for the first time."""
    return LostModels({}, asyncio.sleep)
