"""What a backend process serves that is started again, when packages were broken or deleted meanwhile."""

import asyncio
import shutil
from pathlib import Path

import pytest

from fuseline.serve.errors import BackendUnavailableError, UnknownModelError
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.model_package import MANIFEST_NAME
from tests.fakes.colours import write_colours_package
from tests.serve.model_control.conftest import StartControl
from tests.serve.model_control.repositories import put, take_away

READY, UNAVAILABLE = ModelState.READY, ModelState.UNAVAILABLE


class Pauses:
    """Virtual time: each pause lasts until the test ends it."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[float] = asyncio.Queue()
        self._end = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.begun.put_nowait(seconds)
        await self._end.acquire()

    def end(self) -> None:
        self._end.release()

    async def next(self) -> float:
        async with asyncio.timeout(30):
            return await self.begun.get()


def damage(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"no graph")


@pytest.mark.parametrize("broken", ["overwritten", "deleted", "not readable"])
async def test_a_package_that_is_broken_is_tried_with_growing_pauses_until_it_is_whole(
    start_control: StartControl, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    package = write_colours_package(tmp_path / "colours")
    shutil.copytree(package, tmp_path / "whole")
    if broken == "overwritten":
        damage(package)
    elif broken == "deleted":
        take_away(package)
    else:
        (package / MANIFEST_NAME).unlink()
        (package / MANIFEST_NAME).mkdir()
    pauses, waiting = Pauses(), list[list[IndexEntry]]()
    starting = asyncio.create_task(
        start_control(packages=(package,), again=(), model_repository=(), sleep=pauses, on_wait=waiting.append)
    )
    for expected in (1, 2, 4, 8, 16, 30, 30):
        assert await pauses.next() == expected
        if expected == 30:
            shutil.rmtree(package, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", package)
        assert not starting.done()
        pauses.end()
        if expected == 30:
            break
    controlled = await starting
    assert await controlled.content("colours") == 0
    assert (await controlled.index()).keys() == {("colours", "1")}
    assert {line.state for line in waiting[0]} == {UNAVAILABLE}
    (line,) = waiting[0]
    assert line.name == "colours"
    assert line.reason in caplog.text
    assert ("sha256" in line.reason) == (broken == "overwritten")
    assert caplog.text.count("it is tried again in") == 6
    labels = {"model": "colours", "outcome": "refused", "error": "PackageError"}
    assert controlled.sample("fuseline_model_loads_total", **labels) == 6


@pytest.mark.parametrize("mode", ["none", "explicit"])
async def test_one_of_three_that_is_broken_keeps_no_other_one_up_and_comes_back_once_it_is_whole(
    start_control: StartControl, root: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("birds", "cats", "dogs"):
        put(root, name, 1)
    damage(root / "cats" / "1")
    pauses = Pauses()
    controlled = await start_control(again=("birds", "cats", "dogs"), model_control_mode=mode, sleep=pauses)
    assert [await controlled.content(name) for name in ("birds", "dogs")] == [1, 1]
    with pytest.raises(UnknownModelError, match="served: birds, dogs"):
        controlled.repository.find("cats")
    index = await controlled.index()
    assert index["cats", "1"].state is UNAVAILABLE
    assert "sha256" in index["cats", "1"].reason
    assert "version 1 of cats is refused" in caplog.text
    labels = {"model": "cats", "outcome": "refused", "error": "PackageError"}
    assert controlled.sample("fuseline_model_loads_total", **labels) == 1
    assert await pauses.next() == 1
    put(root, "cats", 1, content=5)
    pauses.end()
    while not any(model.name == "cats" for model in controlled.repository):  # noqa: ASYNC110 nothing tells of it
        await asyncio.sleep(0)
    assert await controlled.content("cats") == 5
    assert (await controlled.index())["cats", "1"][2:] == (READY, "")


async def test_a_model_whose_folder_was_deleted_is_in_the_index_until_a_request_unloads_it(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    pauses = Pauses()
    controlled = await start_control(again=("cats", "gone"), model_control_mode="explicit", sleep=pauses)
    assert "has no model 'gone'" in (await controlled.index())["gone", ""].reason
    # Loaded by request meanwhile, it is loaded once.
    put(root, "gone", 1)
    await controlled.control.load("gone", {})
    assert await pauses.next() == 1
    pauses.end()
    await controlled.control.load("cats", {})
    assert controlled.loads == [("cats", "1"), ("gone", "1")]
    assert (await controlled.index()).keys() == {("cats", "1"), ("gone", "1")}


async def test_what_is_unloaded_by_request_does_not_come_back(start_control: StartControl, root: Path) -> None:
    for name in ("cats", "dogs"):
        put(root, name, 1)
    damage(root / "cats" / "1")
    pauses = Pauses()
    controlled = await start_control(again=("cats", "dogs"), model_control_mode="explicit", sleep=pauses)
    await controlled.control.unload("cats")
    put(root, "cats", 1)
    assert await pauses.next() == 1
    pauses.end()
    await controlled.control.load("dogs", {})
    assert controlled.loads == [("cats", "1"), ("dogs", "1")]
    assert [model.name for model in controlled.repository] == ["dogs"]


async def test_a_repository_that_is_looked_at_is_waited_for_while_nothing_of_it_can_be_served(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    damage(root / "cats" / "1")
    pauses, waiting = Pauses(), list[list[IndexEntry]]()
    starting = asyncio.create_task(
        start_control(
            again=(), model_control_mode="poll", repository_poll_secs=3600, sleep=pauses, on_wait=waiting.append
        )
    )
    assert await pauses.next() == 1
    assert [(line.name, line.version, line.state) for line in waiting[0]] == [("cats", "1", UNAVAILABLE)]
    shutil.move(root, root.with_name("moved"))
    pauses.end()
    # A repository that can't be read at all is waited for as well.
    assert await pauses.next() == 2
    shutil.move(root.with_name("moved"), root)
    put(root, "cats", 1)
    pauses.end()
    assert await (await starting).content("cats") == 1


async def test_what_only_a_new_process_can_mend_ends_this_one(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    with pytest.raises(BackendUnavailableError):
        await start_control(again=("cats",), backend="tensorrt")
