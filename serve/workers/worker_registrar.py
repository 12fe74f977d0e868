"""A worker's part in shared memory: it asks the supervisor, and does what that tells all workers."""

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

from fuseline.serve.errors import ShuttingDownError
from fuseline.serve.shared_memory.region import Region, UnreachableRegion
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registrar import open_region
from fuseline.serve.shared_memory.registration import (
    MOST_NAME_BYTES,
    RegionKind,
    Registration,
    SystemRegistration,
    check_registration,
)
from fuseline.serve.shared_memory.system_region import reopen_system_region
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.region_messages import (
    Message,
    error_from_message,
    message_from_error,
    message_from_registration,
    registration_from_message,
)


class WorkerRegistrar:
    """The `Registrar` of a worker. `take` receives what the supervisor's `RegionAuthority` sends."""

    def __init__(
        self, channel: ControlChannel, regions: SharedMemoryRegions, supervisor_pid: int | None = None
    ) -> None:
        """Keep `regions` as the supervisor has them. `supervisor_pid`: None stands for this process's parent."""
        self.regions = regions
        self._channel = channel
        self._supervisor_files = Path(f"/proc/{supervisor_pid or os.getppid()}/fd")
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[Message | None]] = {}
        self._in_order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def join(self) -> None:
        """Return once the regions of the server are those of this worker, which follows every change from then on."""
        if self.regions.is_on:
            await self._ask(action="join")

    async def register(self, registration: Registration) -> None:
        """See `Registrar.register`."""
        self.regions.check_on()
        check_registration(registration)
        await self._ask(action="register", registration=message_from_registration(registration))

    async def unregister(self, name: str, kind: RegionKind) -> None:
        """See `Registrar.unregister`."""
        self.regions.check_on()
        # No region has a longer name, and a message to the supervisor must not be of any length.
        if len(name) <= MOST_NAME_BYTES:
            await self._ask(action="unregister", name=name, region_kind=kind)

    def take(self, message: Message) -> None:
        """Receive a message of the supervisor. Changes are applied in their order."""
        if message["action"] == "answer":
            self._answered(message["number"], message["error"])
            return
        task = asyncio.create_task(self._apply(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Refuse what is asked from now on, and what still waits: the supervisor is not listened to any more."""
        self._stopped = True
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(_stopping())

    async def _ask(self, **question: Any) -> None:
        if self._stopped:
            raise _stopping()
        number = next(self._numbers)
        self._questions[number] = answer = asyncio.get_running_loop().create_future()
        try:
            self._channel.send("regions", number=number, **question)
            error = await answer
        finally:
            self._questions.pop(number, None)
        if error is not None:
            raise error_from_message(error)

    def _answered(self, number: int, error: Message | None) -> None:
        if (answer := self._questions.get(number)) is not None and not answer.done():
            answer.set_result(error)

    async def _apply(self, message: Message) -> None:
        number = message["number"]
        async with self._in_order:
            match message["action"]:
                case "table":
                    for region in message["regions"]:
                        await self._add(region)
                    self._answered(number, None)
                case "add":
                    error = await self._add(message["region"])
                    self._channel.send("regions", action="applied", number=number, error=error)
                case "remove":
                    self.regions.unregister(message["name"], message["region_kind"])
                    self._channel.send("regions", action="applied", number=number, error=None)

    async def _add(self, message: Message) -> Message | None:
        """Add a region as the supervisor has it, and return the error of one that can't be opened, which says so."""
        registration = registration_from_message(message["registration"])
        error = None
        try:
            region = await self._opened(registration, message)
        except Exception as raised:  # noqa: BLE001 the boundary: the worker that asked raises it
            error = message_from_error(raised)
            region = UnreachableRegion(registration, error["message"])
        self.regions.add(region)
        return error

    async def _opened(self, registration: Registration, message: Message) -> Region:
        if isinstance(registration, SystemRegistration):
            device, inode = message["identity"]
            return reopen_system_region(registration, self._supervisor_files / str(message["file"]), (device, inode))
        return await open_region(registration)


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down, and registers no shared memory any more")
