"""Shared memory of a server of several processes: the supervisor's part and workers' parts, over real channels."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fuseline.serve.errors import (
    RegionExistsError,
    RequestError,
    SharedMemoryUnavailableError,
    ShuttingDownError,
)
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registration import CudaRegistration, SystemRegistration
from fuseline.serve.workers import region_authority, worker_registrar
from fuseline.serve.workers.control_channel import ControlChannel, open_control_channel
from fuseline.serve.workers.region_authority import RegionAuthority
from fuseline.serve.workers.worker_registrar import WorkerRegistrar
from tests.serve.shared_memory.objects import open_files, shared_object, unused_path

CONTENT = bytes(range(256))


class Worker:
    """A worker, and what the supervisor has of it."""

    def __init__(self, title: str, authority: RegionAuthority, ours: ControlChannel, theirs: ControlChannel) -> None:
        self.title = title
        self.authority = authority
        self.registrar = WorkerRegistrar(theirs, SharedMemoryRegions(), os.getpid())
        self.answers_at_once = asyncio.Event()
        """While it is not set, the worker reads nothing."""
        self.answers_at_once.set()
        self._ours, self._theirs = ours, theirs
        self._reading = [asyncio.create_task(self._supervise()), asyncio.create_task(self._follow())]

    def send_regions(self, **contents: Any) -> None:
        self._ours.send("regions", **contents)

    async def end(self) -> None:
        """End as a process does that has died."""
        for task in self._reading:
            task.cancel()
        await asyncio.wait(self._reading)
        for channel in (self._ours, self._theirs):
            channel.close()
        self.authority.leave(self)  # type: ignore[arg-type]

    def names(self) -> set[str]:
        return {region.registration.name for region in self.registrar.regions}

    async def _supervise(self) -> None:
        async for message in self._ours.messages():
            self.authority.take(self, message)  # type: ignore[arg-type]

    async def _follow(self) -> None:
        async for message in self._theirs.messages():
            await self.answers_at_once.wait()
            self.registrar.take(message)


class Processes:
    """A supervisor and its workers."""

    def __init__(self, stack: AsyncExitStack, why_off: str | None = None) -> None:
        self.authority = RegionAuthority(why_off)
        self._stack = stack

    async def started(self, title: str) -> Worker:
        """A worker that has not joined yet."""
        ours, theirs = [await open_control_channel(end) for end in socket.socketpair()]
        worker = Worker(title, self.authority, ours, theirs)
        self._stack.push_async_callback(worker.end)
        return worker

    async def worker(self, title: str) -> Worker:
        worker = await self.started(title)
        await worker.registrar.join()
        return worker


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        yield Processes(stack)


def mine(path: Path, name: str = "mine") -> SystemRegistration:
    return SystemRegistration(name, path.name, 0, 100)


async def until_applied(worker: Worker) -> None:
    while not worker.names():  # noqa: ASYNC110 what is waited for lies in the worker, which tells no one
        await asyncio.sleep(0)


def first_byte(worker: Worker, name: str = "mine") -> int:
    out = bytearray(1)
    worker.registrar.regions.read(name, 0, 1, out)
    return out[0]


async def test_every_worker_knows_a_region_once_it_is_registered_and_none_once_it_is_not(processes: Processes) -> None:
    workers = [await processes.worker(f"worker {number}") for number in range(3)]
    with shared_object(CONTENT) as path:
        await workers[0].registrar.register(mine(path))
        assert [worker.registrar.regions.status("") for worker in workers] == [[mine(path)]] * 3
        workers[1].registrar.regions.writable("mine", 0, 1).write(b"x")
        assert [first_byte(worker) for worker in workers] == [ord("x")] * 3
        assert open_files(path) == 4
        await workers[2].registrar.unregister("mine", "cuda")
        assert workers[0].names() == {"mine"}
        await workers[2].registrar.unregister("mine", "system")
        assert not any(worker.names() for worker in workers)
        assert open_files(path) == 0


async def test_it_waits_for_the_slowest_worker(processes: Processes) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]
    with shared_object(CONTENT) as path:
        two.answers_at_once.clear()
        registering = asyncio.create_task(one.registrar.register(mine(path)))
        await until_applied(one)
        assert not registering.done()
        two.answers_at_once.set()
        await registering
        assert two.names() == {"mine"}


@pytest.mark.parametrize("ends", [True, False])
async def test_a_worker_that_dies_or_hangs_holds_it_up_for_a_bounded_time(
    processes: Processes, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ends:
        monkeypatch.setattr(region_authority, "_APPLIED_WITHIN_S", 0.05)
    one, two = [await processes.worker(title) for title in ("one", "two")]
    with shared_object(CONTENT) as path:
        two.answers_at_once.clear()
        registering = asyncio.create_task(one.registrar.register(mine(path)))
        await until_applied(one)
        if ends:
            await two.end()
        await registering
        two.answers_at_once.set()


async def test_of_workers_that_register_one_name_at_the_same_time_one_wins(processes: Processes) -> None:
    workers = [await processes.worker(f"worker {number}") for number in range(4)]
    with shared_object(CONTENT) as path, shared_object(CONTENT) as other:
        attempts = await asyncio.gather(
            *(worker.registrar.register(mine(path if n % 2 else other)) for n, worker in enumerate(workers)),
            return_exceptions=True,
        )
        assert attempts.count(None) == 1
        assert sum(isinstance(attempt, RegionExistsError) for attempt in attempts) == 3
        won = mine(path if attempts.index(None) % 2 else other)
        assert [worker.registrar.regions.status("") for worker in workers] == [[won]] * 4


async def test_changes_reach_every_worker_in_their_order(processes: Processes) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]
    with shared_object(CONTENT) as path:
        for _ in range(5):
            await asyncio.gather(
                one.registrar.register(mine(path)),
                one.registrar.unregister("mine", "system"),
                two.registrar.register(mine(path, "other")),
                two.registrar.unregister("", "system"),
            )
            assert one.names() == two.names()
            await one.registrar.unregister("", "system")
        assert open_files(path) == 0


async def test_a_worker_that_starts_later_finds_the_objects_that_were_registered(processes: Processes) -> None:
    one = await processes.worker("one")
    late = await processes.started("late")
    with shared_object(CONTENT) as path:
        await one.registrar.register(mine(path))
        path.unlink()
        path.write_bytes(b"another object of that name")
        await late.registrar.join()
        assert first_byte(late) == CONTENT[0]
        one.registrar.regions.writable("mine", 0, 1).write(b"x")
        assert first_byte(late) == ord("x")
        await late.registrar.unregister("mine", "system")
        assert not one.names()


async def test_a_region_outlives_the_worker_that_registered_it(processes: Processes) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]
    with shared_object(CONTENT) as path:
        await one.registrar.register(mine(path))
        await one.end()
        assert first_byte(two) == CONTENT[0]
        assert first_byte(await processes.worker("one again")) == CONTENT[0]


async def test_the_supervisor_refuses_what_a_server_of_one_process_does(processes: Processes) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]
    with shared_object(CONTENT) as path:
        wrong = [
            (SystemRegistration("", path.name, 0, 1), "can't be named"),
            (SystemRegistration("x" * 2**20, path.name, 0, 1), "can't be named"),
            (SystemRegistration("\ud800", path.name, 0, 1), "can't be named"),
            (SystemRegistration("mine", "/../../etc/passwd", 0, 1), "names no POSIX shared memory object"),
            (SystemRegistration("mine", "x" * 2**27, 0, 1), "names no POSIX shared memory object"),
            (SystemRegistration("mine", unused_path().name, 0, 1), "there is no shared memory object"),
            (SystemRegistration("mine", path.name, 2**64 - 1, 2**64 - 1), "are not within"),
            (CudaRegistration("mine", bytes(63), 0, 1), "the raw_handle has 63 bytes"),
        ]
        for registration, message in wrong:
            with pytest.raises(RequestError, match=message):
                await one.registrar.register(registration)
        await one.registrar.unregister("x" * 2**27, "system")
        assert one.names() == two.names() == set()
        assert open_files(path) == 0


async def test_what_one_worker_cannot_open_is_registered_nowhere(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]
    reopen = worker_registrar.reopen_system_region
    attempts = 0

    def fail_once(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            raise RequestError("its object can't be opened (Too many open files)")
        return reopen(*arguments)

    monkeypatch.setattr(worker_registrar, "reopen_system_region", fail_once)
    with shared_object(CONTENT) as path:
        with pytest.raises(RequestError, match="Too many open files"):
            await one.registrar.register(mine(path))
        assert one.names() == two.names() == set()
        assert open_files(path) == 0
        await one.registrar.register(mine(path))
        assert one.names() == two.names() == {"mine"}


async def test_a_worker_that_starts_later_and_cannot_open_a_region_says_so_to_who_uses_it(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await processes.worker("one")
    with shared_object(CONTENT) as path:
        await one.registrar.register(mine(path))

        def fail(*_: Any) -> Any:
            raise RequestError("its object can't be opened (Too many open files)")

        monkeypatch.setattr(worker_registrar, "reopen_system_region", fail)
        late = await processes.worker("late")
        assert late.registrar.regions.status("") == [mine(path)]
        with pytest.raises(RequestError, match="'mine' has vanished: .*Too many open files.*register it again"):
            first_byte(late)
        assert first_byte(one) == CONTENT[0]


async def test_without_a_gpu_in_the_workers_its_memory_is_refused_with_the_reason(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = [await processes.worker(title) for title in ("one", "two")]

    async def none_here(_: object) -> Any:
        raise SharedMemoryUnavailableError("no NVIDIA driver")

    monkeypatch.setattr(worker_registrar, "open_region", none_here)
    with pytest.raises(SharedMemoryUnavailableError, match="no NVIDIA driver"):
        await one.registrar.register(CudaRegistration("gpu", bytes(64), 0, 1))
    await two.registrar.unregister("", "cuda")
    assert one.names() == two.names() == set()


async def test_a_draining_worker_refuses_to_register(processes: Processes) -> None:
    one = await processes.worker("one")
    one.answers_at_once.clear()
    with shared_object(CONTENT) as path:
        registering = asyncio.create_task(one.registrar.register(mine(path)))
        await asyncio.sleep(0)
        one.registrar.stop()
        stopping: list[Callable[[], Any]] = [
            lambda: registering,
            lambda: one.registrar.register(mine(path)),
            lambda: one.registrar.unregister("", "system"),
        ]
        for call in stopping:
            with pytest.raises(ShuttingDownError, match="shutting down"):
                await call()
        one.answers_at_once.set()
