"""Loads and unloads that a worker asks the supervisor for, which asks the backend process; the test plays both ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fuseline.serve.errors import (
    BackendError,
    BackendLostError,
    ModelControlError,
    OverloadedError,
    RequestError,
    UnknownModelError,
)
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.workers.control_relay import ControlRelay
from fuseline.serve.workers.error_text import text_from_error
from fuseline.serve.workers.remote_control import RemoteModelControl

Message = dict[str, Any]


class Process:
    """A worker or backend process, as the supervisor has it."""

    def __init__(self, receive: Callable[[Message], None]) -> None:
        self._receive = receive

    def send_control(self, **contents: Any) -> None:
        self._receive({"kind": "control", **contents})


class Server:
    """A worker's control, and a backend process that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self._came: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self.backend: Process | None = Process(self._came.put_nowait)
        self._worker = Process(lambda message: self._answers[message["number"]].set_result(message))
        self.relay = ControlRelay(lambda: self.backend)  # type: ignore[arg-type,return-value]
        self.control = RemoteModelControl(self._ask, list)

    async def _ask(self, kind: str, **question: Any) -> Message:
        # A worker numbers its questions by itself.
        number = len(self._answers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        self.relay.take(self._worker, {"kind": kind, "number": number, **question})  # type: ignore[arg-type]
        return await answer

    async def questions(self, count: int) -> list[Message]:
        """The questions that the backend process was asked, once there are `count`."""
        while len(self.asked) < count:
            self.asked.append(await self._came.get())
        assert self._came.empty()
        return self.asked

    def answer(self, question: Message, error: Exception | None = None, **more: Any) -> None:
        text = None if error is None else text_from_error(error)
        message = {"kind": "control", "number": question["number"], "error": text, "entries": [], **more}
        self.relay.take(self.backend, message)  # type: ignore[arg-type]


async def test_questions_are_answered_in_any_order_each_to_who_asked() -> None:
    server = Server()
    loading = asyncio.create_task(server.control.load("shapes", {"a": "b"}))
    unloading = asyncio.create_task(server.control.unload("colours", unload_dependents=True))
    listing = asyncio.create_task(server.control.index(ready=True))
    load, unload, index = await server.questions(3)
    assert (load["action"], load["name"], load["parameters"]) == ("load", "shapes", {"a": "b"})
    assert (unload["action"], unload["name"], unload["unload_dependents"]) == ("unload", "colours", True)
    assert (index["action"], index["ready"]) == ("index", True)
    server.answer(index, entries=[["shapes", "3", "LOADING", "since now"]])
    assert await listing == [IndexEntry("shapes", "3", ModelState.LOADING, "since now")]
    server.answer(unload)
    await unloading
    assert not loading.done()
    server.answer(load)
    await loading


@pytest.mark.parametrize(
    "error",
    [
        ModelControlError("version 3 is refused"),
        UnknownModelError("there is no such model"),
        RequestError("no parameters"),
        OverloadedError("too much", 0.5),
    ],
)
async def test_an_error_comes_back_as_it_was_raised(error: Exception) -> None:
    server = Server()
    loading = asyncio.create_task(server.control.load("shapes", {}))
    (load,) = await server.questions(1)
    server.answer(load, error)
    with pytest.raises(type(error)) as raised:
        await loading
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "retry_after_s", None) == getattr(error, "retry_after_s", None)


async def test_an_unexpected_error_is_logged_where_it_was_raised_and_comes_back_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    loading = asyncio.create_task(server.control.load("shapes", {}))
    (load,) = await server.questions(1)
    server.answer(load, KeyError("a defect"))
    with pytest.raises(BackendError) as raised:
        await loading
    (record,) = caplog.records
    assert str(raised.value.error_id) in record.getMessage()


async def test_a_backend_that_ends_or_is_not_there_is_an_error_at_once_and_nothing_is_ready_then() -> None:
    server = Server()
    loading = asyncio.create_task(server.control.load("shapes", {}))
    (load,) = await server.questions(1)
    ended = server.backend
    server.backend = None
    server.relay.lose()
    with pytest.raises(BackendLostError, match="is being started again"):
        await loading
    with pytest.raises(BackendLostError, match="is being started again"):
        await server.control.unload("shapes")
    assert await server.control.index(ready=True) == []
    # What it had sent before is read when nobody waits any more.
    server.backend = ended
    server.answer(load)


async def test_what_was_loaded_by_request_is_remembered_for_the_next_backend() -> None:
    server = Server()
    relay = server.relay
    assert relay.wanted is None
    relay.begin(["colours"])
    for number, (work, error) in enumerate(
        [
            (server.control.load("shapes", {}), None),
            (server.control.load("signs", {}), ModelControlError("it is broken")),
            (server.control.load("colours", {}), ModelControlError("it is broken, the old version is served still")),
            (server.control.load("shapes", {}), None),
        ]
    ):
        task = asyncio.create_task(work)
        server.answer((await server.questions(number + 1))[-1], error)
        await asyncio.gather(task, return_exceptions=True)
    assert relay.wanted == ["colours", "shapes"]
    # The next backend process has no say in it: a model that it can't load may be sound again for the one after.
    relay.begin(["colours"])
    unloading = asyncio.create_task(server.control.unload("colours"))
    server.answer((await server.questions(5))[-1])
    await unloading
    assert relay.wanted == ["shapes"]


async def test_nothing_is_remembered_where_models_are_not_loaded_by_request() -> None:
    server = Server()
    server.relay.begin(None)
    loading = asyncio.create_task(server.control.load("shapes", {}))
    server.answer((await server.questions(1))[0])
    await loading
    assert server.relay.wanted is None


async def test_a_question_of_any_length_does_not_reach_the_supervisor() -> None:
    server = Server()
    with pytest.raises(UnknownModelError, match="at most 255 characters, this one has 1000"):
        await server.control.load("n" * 1000, {})
    with pytest.raises(UnknownModelError, match="at most 255 characters"):
        await server.control.unload("n" * 256)
    with pytest.raises(RequestError, match="at most 1048576 are taken; send none"):
        await server.control.load("shapes", {"config": "x" * 2**20})
    assert await server.questions(0) == []
