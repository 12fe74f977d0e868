"""Models that come and go in a backend process, and a worker's repository that follows, both in this process."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuseline.serve.batching.admission import Ready
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.errors import BackendLostError, UnknownModelError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model, load_model
from fuseline.serve.repository import Repository
from fuseline.serve.workers import worker_doors
from fuseline.serve.workers.backend_door import backend_door, connect_through
from fuseline.serve.workers.backend_link import BackendLink
from fuseline.serve.workers.worker_doors import WorkerConnection, WorkerDoors
from fuseline.serve.workers.worker_memory import WorkerMemory
from tests.fakes.colours import BIASES, expected_logits, noise, write_colours_package
from tests.serve.conftest import settings

AT_ONCE = Ready(0.0, 0.0)

Door = tuple[socket.socket, socket.socket]
"""Both ends of a `backend_door`."""


class Doors(WorkerDoors):
    """Knows its connections, which end with the process otherwise."""

    def __init__(self, retire_within_s: float) -> None:
        super().__init__(Repository(), retire_within_s)
        self.transports: list[asyncio.BaseTransport] = []
        self.came: asyncio.Queue[WorkerConnection] = asyncio.Queue()

    def connected(self, worker: WorkerConnection) -> None:
        super().connected(worker)
        self.transports.append(worker.transport)
        self.came.put_nowait(worker)


class Backend:
    """A backend process's models and doors."""

    def __init__(self, stack: AsyncExitStack, packages: Path, door: Door, retire_within_s: float = 30) -> None:
        self.doors = Doors(retire_within_s)
        self._stack = stack
        self._packages = packages
        self.door = door
        self._accepting = asyncio.create_task(self.doors.accept(door[1]))

    def load(self, version: int, name: str = "colours") -> Model:
        """The version's logits are higher by ten times its number."""
        folder = self._packages / f"{name}-{version}"
        if not folder.exists():
            write_colours_package(folder, name=name, biases=BIASES + 10 * version)
        loading = partial(load_model, folder, settings(max_batch=4, lanes=1), version=str(version))
        model = self.doors.load(loading, Metrics())
        self._stack.push_async_callback(model.close)
        return model

    async def close(self) -> None:
        """End as a process does: its connections with it."""
        self._accepting.cancel()
        for transport in self.doors.transports:
            transport.close()
        await asyncio.sleep(0)


class Worker:
    """A worker's repository and its link."""

    def __init__(self, door: Door) -> None:
        self.repository = Repository()
        self.link = BackendLink(door[0], self.repository)

    async def answered_by(self, name: str = "", version: str = "") -> int:
        """The number of the version that answers now."""
        return await self.submit(name, version)

    def submit(self, name: str = "", version: str = "", **how: Any) -> Awaitable[int]:
        model = self.repository.find(name, version)
        request = model.batcher.submit(list(noise(3)), **how)

        async def answer() -> int:
            surplus = (await request).logits - expected_logits(noise(3))
            np.testing.assert_allclose(surplus, np.round(surplus), atol=1e-3)
            assert len(set(np.round(surplus).ravel())) == 1
            assert str(round(surplus[0, 0] / 10)) == model.version
            return int(model.version)

        return asyncio.ensure_future(answer())

    @property
    def files(self) -> int:
        return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def joined(
    packages: Path, workers: int = 2, retire_within_s: float = 30
) -> AsyncIterator[tuple[Backend, list[Worker]]]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        door = backend_door()
        for end in door:
            stack.callback(end.close)
        backend = Backend(stack, packages, door, retire_within_s)
        stack.push_async_callback(backend.close)
        ends = [Worker(door) for _ in range(workers)]
        for worker in ends:
            await worker.link.open()
            stack.callback(worker.link.close)
        yield backend, ends


async def swap(backend: Backend, old: Model, *new: Model) -> None:
    """What a control does with its doors."""
    await backend.doors.publish(new)
    await backend.doors.retire(old)
    await old.close()


async def test_every_worker_has_what_is_published_when_that_returns(tmp_path: Path) -> None:
    async with joined(tmp_path) as (backend, workers):
        assert [list(worker.repository) for worker in workers] == [[], []]
        first, other = backend.load(1), backend.load(2, "shapes")
        await backend.doors.publish([first])
        assert [await worker.answered_by() for worker in workers] == [1, 1]
        await backend.doors.publish([first, other])
        assert [await worker.answered_by("shapes") for worker in workers] == [2, 2]
        second = backend.load(2)
        await swap(backend, first, second, other)
        assert [await worker.answered_by("colours") for worker in workers] == [2, 2]
        with pytest.raises(UnknownModelError, match="no version '1' of colours here; served: '2'"):
            workers[0].submit("colours", "1")
        await swap(backend, other, second)
        with pytest.raises(UnknownModelError, match="no model 'shapes' here; served: colours"):
            workers[1].submit("shapes")
        late = Worker(backend.door)
        await late.link.open()
        assert [model.version for model in late.repository] == ["2"]
        assert await late.answered_by() == 2
        late.link.close()


async def test_a_model_is_retired_once_all_that_found_it_is_answered(tmp_path: Path) -> None:
    async with joined(tmp_path) as (backend, (one, other)):
        first, second = backend.load(1), backend.load(2)
        await backend.doors.publish([first])
        reservation = one.repository.find("").batcher.reserve(3, ready=AT_ONCE)
        found = one.repository.find("")
        running = one.submit()
        await backend.doors.publish([second])
        retiring = asyncio.create_task(backend.doors.retire(first))
        assert await other.answered_by() == await one.answered_by() == 2
        # The images of one request are decoded still.
        for _ in range(50):
            await asyncio.sleep(0)
        assert not retiring.done()
        late = found.batcher.submit(list(noise(3)), reservation=reservation)
        await retiring
        await first.close()
        assert await running == 1
        np.testing.assert_allclose((await late).logits, expected_logits(noise(3), biases=BIASES + 10), atol=1e-4)


async def test_many_swaps_under_load_answer_every_request_by_the_version_that_it_found(tmp_path: Path) -> None:
    async with joined(tmp_path) as (backend, workers):
        model = backend.load(0)
        await backend.doors.publish([model])
        stop = asyncio.Event()

        async def call(worker: Worker) -> list[int]:
            answers = []
            while not stop.is_set():
                answers.append(await worker.answered_by())
            return answers

        calling = [asyncio.create_task(call(worker)) for worker in workers for _ in range(3)]
        files = []
        for version in range(1, 21):
            new = await asyncio.to_thread(backend.load, version)
            await swap(backend, model, new)
            model = new
            assert min([await worker.answered_by() for worker in workers]) == version
            files.append(workers[0].files)
        stop.set()
        for answers in await asyncio.gather(*calling):
            assert answers == sorted(answers)
            assert answers[0] == 0
            assert answers[-1] == 20
        # Each end of a model's memory takes a descriptor; a model that went has none.
        assert max(files[10:]) <= max(files[:10])


async def test_a_worker_that_connects_during_a_change_has_what_is_served_then(tmp_path: Path) -> None:
    async with joined(tmp_path, workers=1) as (backend, (worker,)):
        first, second = backend.load(1), backend.load(2)
        await backend.doors.publish([first])
        late = Worker(backend.door)
        opening = asyncio.create_task(late.link.open())
        publishing = asyncio.create_task(backend.doors.publish([second]))
        await asyncio.gather(opening, publishing)
        assert await worker.answered_by() == await late.answered_by() == 2
        await backend.doors.retire(first)
        await first.close()
        assert await late.answered_by() == 2
        late.link.close()


async def test_what_was_reserved_for_a_model_that_went_with_its_backend_is_no_other_models_matter(
    tmp_path: Path,
) -> None:
    """The next backend's models take the memory that it had."""
    async with joined(tmp_path, workers=1) as (backend, (worker,)), AsyncExitStack() as stack:
        first, second = backend.load(1), backend.load(2)
        await backend.doors.publish([first])
        batcher = worker.repository.find("").batcher
        reservations = [batcher.reserve(rows, ready=AT_ONCE) for rows in (2, 3)]
        await backend.doors.publish([second])
        retiring = asyncio.create_task(backend.doors.retire(first))
        await asyncio.sleep(0)
        await backend.close()
        await retiring
        again = Backend(stack, tmp_path, backend.door)
        stack.push_async_callback(again.close)
        await again.doors.publish([third := again.load(3)])
        await worker.link.open()
        with pytest.raises(BackendLostError):
            batcher.submit(list(noise(2)), reservation=reservations[0])
        reservations[1].release()
        assert await worker.answered_by() == 3
        assert isinstance(third.batcher, Batcher)
        assert third.batcher.load(time.monotonic()).waiting_rows == 0


async def test_a_backend_that_comes_back_with_other_models_is_followed(tmp_path: Path) -> None:
    async with joined(tmp_path, workers=1) as (backend, (worker,)), AsyncExitStack() as stack:
        await backend.doors.publish([backend.load(1), backend.load(3, "shapes")])
        told: asyncio.Queue[bool] = asyncio.Queue()
        keeping = asyncio.create_task(worker.link.keep_connected(told.put))
        same = worker.repository.find("shapes").batcher
        waiting = worker.submit("colours", deadline=None)
        await backend.close()
        with pytest.raises(BackendLostError):
            await waiting
        assert await told.get() is False
        with pytest.raises(BackendLostError):
            worker.submit("shapes")
        reserved = worker.repository.find("colours")
        again = Backend(stack, tmp_path, backend.door)
        stack.push_async_callback(again.close)
        # What is served stays known by another number, what is not goes, and what is new comes.
        models = [again.load(7), again.load(3, "shapes"), again.load(2)]
        await again.doors.publish(models)
        assert await told.get() is True
        assert [(model.name, model.version) for model in worker.repository] == [
            ("colours", "7"),
            ("colours", "2"),
            ("shapes", "3"),
        ]
        assert worker.repository.find("shapes").batcher is same
        assert [await worker.answered_by(*its) for its in (("colours", ""), ("colours", "2"), ("shapes", "3"))] == [
            7,
            2,
            3,
        ]
        with pytest.raises(BackendLostError):
            reserved.batcher.submit(list(noise(1)))
        keeping.cancel()


def silent_worker(door: Door) -> socket.socket:
    """A worker that connects, and then hangs."""
    memory = WorkerMemory()
    connection = connect_through(door[0], memory.file)
    memory.close()
    return connection


async def test_a_worker_that_ends_during_a_change_is_waited_for_no_more(tmp_path: Path) -> None:
    async with joined(tmp_path, workers=1) as (backend, (kept,)):
        first, second = backend.load(1), backend.load(2)
        await backend.doors.publish([first])
        with silent_worker(backend.door):
            while len(backend.doors.transports) < 2:
                await backend.doors.came.get()
            publishing = asyncio.create_task(backend.doors.publish([second]))
            while await kept.answered_by() != 2:
                pass
            retiring = asyncio.create_task(backend.doors.retire(first))
            await kept.answered_by()
            assert not publishing.done()
            assert not retiring.done()
        await publishing
        await retiring
        await first.close()
        assert await kept.answered_by() == 2


async def test_a_worker_that_hangs_holds_a_change_up_for_a_bounded_time_and_the_log_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_doors, "TAKEN_WITHIN_S", 0.05)
    async with joined(tmp_path, workers=1, retire_within_s=0.05) as (backend, (kept,)):
        first, second = backend.load(1), backend.load(2)
        await backend.doors.publish([first])
        with silent_worker(backend.door):
            while len(backend.doors.transports) < 2:
                await backend.doors.came.get()
            await swap(backend, first, second)
            assert await kept.answered_by() == 2
    changed, retired = caplog.messages
    assert f"the worker with process id {os.getpid()} has not followed a change of the models yet" in changed
    assert f"process id {os.getpid()} still has requests for version 1 of colours, which goes" in retired
