"""The supervisor's part in shared memory: it decides what is registered, and its workers follow."""

import asyncio
import itertools
import logging
from collections.abc import Coroutine
from typing import Any

from fuseline.serve.errors import FuselineError
from fuseline.serve.shared_memory.region import Region, UnreachableRegion
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registration import RegionKind, Registration, SystemRegistration, check_registration
from fuseline.serve.shared_memory.system_region import SystemRegion, open_system_region
from fuseline.serve.workers.region_messages import (
    Message,
    error_from_message,
    message_from_error,
    message_from_registration,
    registration_from_message,
)
from fuseline.serve.workers.supervised import SupervisedProcess

_APPLIED_WITHIN_S = 10.0
"""Longest time that a change waits for a worker: CUDA may take some seconds to start. A worker that is later than that
hangs, and answers nothing before it has seen the change."""

_log = logging.getLogger(__name__)


class RegionAuthority:
    """The regions of a server of several processes.

    Whoever registers or unregisters is answered once every worker has done so. A worker joins before it accepts
    requests, and then has all that was registered before. System regions are open here, so that a worker which starts
    later finds the same object, whatever has its name by then.
    """

    def __init__(self, why_off: str | None) -> None:
        """Begin without regions. `why_off`: the reason why there are none; None: there may be."""
        self._regions = SharedMemoryRegions(why_off)
        # Of each worker that has joined, the changes that it has still to apply, by number.
        self._workers: dict[SupervisedProcess, dict[int, asyncio.Future[Message | None]]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, worker: SupervisedProcess, message: Message) -> None:
        """Receive a worker's message."""
        match message["action"]:
            case "join":
                self._workers.setdefault(worker, {})
                regions = [_message_from_region(region) for region in self._regions]
                worker.send_regions(action="table", number=message["number"], regions=regions)
            case "applied":
                applied = self._workers.get(worker, {}).pop(message["number"], None)
                if applied is not None and not applied.done():
                    applied.set_result(message["error"])
            case "register":
                registration = registration_from_message(message["registration"])
                self._answer(worker, message["number"], self._register(registration))
            case "unregister":
                work = self._unregister(message["name"], message["region_kind"])
                self._answer(worker, message["number"], work)

    def leave(self, worker: SupervisedProcess) -> None:
        """Forget a worker, which has ended."""
        for applied in self._workers.pop(worker, {}).values():
            if not applied.done():
                applied.set_result(None)

    def _answer(self, worker: SupervisedProcess, number: int, work: Coroutine[Any, Any, None]) -> None:
        async def answer() -> None:
            error = None
            try:
                await work
            except Exception as raised:  # noqa: BLE001 the boundary: the worker that asked raises it
                error = message_from_error(raised)
            worker.send_regions(action="answer", number=number, error=error)

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _register(self, registration: Registration) -> None:
        self._regions.check_room(registration.name)
        region = _opened(registration)
        self._regions.add(region)
        refusals = await self._tell(action="add", region=_message_from_region(region))
        if refusals:
            if self._regions.discard(region):
                await self._tell(action="remove", name=registration.name, region_kind=registration.kind)
            # Were it left in the list, this frame and the error would keep each other, and the region open.
            raise refusals.pop()

    async def _unregister(self, name: str, kind: RegionKind) -> None:
        if self._regions.unregister(name, kind):
            await self._tell(action="remove", name=name, region_kind=kind)

    async def _tell(self, **change: Any) -> list[FuselineError]:
        """Have every worker apply a change, and return the errors of those that can't.

        The messages leave before anything else happens, so that workers see changes in the order in which they were
        made here.
        """
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        applied: dict[asyncio.Future[Message | None], SupervisedProcess] = {}
        for worker, changes in self._workers.items():
            changes[number] = future = loop.create_future()
            applied[future] = worker
            worker.send_regions(number=number, **change)
        if not applied:
            return []
        done, late = await asyncio.wait(applied, timeout=_APPLIED_WITHIN_S)
        for future in late:
            _log.warning("%s has not followed a change of shared memory yet; it hangs", applied[future].title)
        refusals = [future.result() for future in done]
        return [error_from_message(refusal) for refusal in refusals if refusal is not None]


def _opened(registration: Registration) -> Region:
    if isinstance(registration, SystemRegistration):
        return open_system_region(registration)
    # Only workers copy, so CUDA need not start here.
    check_registration(registration)
    return UnreachableRegion(registration, "the supervisor uses no GPU")


def _message_from_region(region: Region) -> Message:
    message: Message = {"registration": message_from_registration(region.registration)}
    if isinstance(region, SystemRegion):
        message |= {"file": region.file, "identity": region.identity}
    return message
