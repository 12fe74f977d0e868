"""Models that are loaded, swapped and unloaded in one process."""

import asyncio
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.serve.batching.admission import AT_ONCE
from fuseline.serve.errors import InputError, ModelControlError, PackageError, RequestError, UnknownModelError
from fuseline.serve.metrics.expiring_registry import KEPT_S
from fuseline.serve.model_control.control import ModelState
from fuseline.serve.model_package import MANIFEST_NAME, ModelPackage, PackageFile
from fuseline.serve.services.call_context import NO_CONTEXT
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.classify_codec import ClassifyCodec
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.inference import Inference
from tests.fakes.colours import encoded, noise, write_colours_package
from tests.serve.conftest import settings
from tests.serve.disks import mounted
from tests.serve.model_control.conftest import Controlled, StartControl
from tests.serve.model_control.repositories import put, take_away

READY, UNAVAILABLE = ModelState.READY, ModelState.UNAVAILABLE


def damage(folder: Path) -> None:
    """Cut the graph short, as a copy that is under way is."""
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-10])


async def test_the_folders_name_and_number_are_those_of_requests_whatever_the_manifest_says(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 3, manifest_name="other")
    put(root, "dogs", content=7, manifest_name="other", manifest_version="1.5")
    controlled = await start_control()
    assert [(model.name, model.version) for model in controlled.repository] == [("cats", "3"), ("dogs", "1.5")]
    assert await controlled.content("cats") == 3
    assert await controlled.content("dogs", "1.5") == 7
    with pytest.raises(UnknownModelError):
        controlled.repository.find("other")


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ((), ["10"]),
        (("latest:2",), ["10", "9"]),
        (("all",), ["10", "9", "2"]),
        (("specific:2,9,77",), ["9", "2"]),
        (("latest:3", "cats=specific:2"), ["2"]),
        (("cats=all", "dogs=latest"), ["10", "9", "2"]),
    ],
)
async def test_the_version_policy_says_which_versions_are_served(
    start_control: StartControl, root: Path, policy: tuple[str, ...], served: list[str]
) -> None:
    for version in (2, 9, 10):
        put(root, "cats", version)
    controlled = await start_control(version_policy=policy)
    assert list(controlled.repository.versions("cats")) == served
    assert await controlled.content("cats") == int(served[0])
    for version in served:
        assert await controlled.content("cats", version) == int(version)


async def test_packages_of_the_command_line_and_several_repositories_are_served_side_by_side(
    start_control: StartControl, root: Path, tmp_path: Path
) -> None:
    fixed = write_colours_package(tmp_path / "fixed", name="fixed")
    put(root, "cats", 1)
    second = tmp_path / "second"
    put(second, "dogs", 1)
    controlled = await start_control(
        packages=(fixed,), model_repository=(root, second), model_control_mode="explicit", load_model=("*",)
    )
    assert [model.name for model in controlled.repository] == ["fixed", "cats", "dogs"]
    with pytest.raises(ModelControlError, match="'fixed' is served from a package that the command line names"):
        await controlled.control.unload("fixed")


async def test_a_name_in_two_repositories_is_refused(start_control: StartControl, root: Path, tmp_path: Path) -> None:
    put(root, "cats", 1)
    second = tmp_path / "second"
    put(second, "cats", 2)
    with pytest.raises(PackageError, match="both have a model of this name"):
        await start_control(model_repository=(root, second))


async def test_each_explicit_load_reads_the_repository_anew(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    put(root, "dogs", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("cats",))
    assert [model.name for model in controlled.repository] == ["cats"]
    # A version that was added takes over.
    put(root, "cats", 2)
    await controlled.control.load("cats", {})
    assert controlled.repository.versions("cats") == ("2",)
    assert await controlled.content("cats") == 2
    # One that was removed falls back.
    take_away(root / "cats/2")
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 1
    # Another content under the same version counts as a new one.
    put(root, "cats", 1, content=5)
    await controlled.control.load("cats", {})
    assert await controlled.content("cats", "1") == 5
    # One that has not changed is not loaded again.
    loads = len(controlled.loads)
    (root / "cats/1" / MANIFEST_NAME).touch()
    await controlled.control.load("cats", {})
    assert len(controlled.loads) == loads == 4
    await controlled.control.load("dogs", {})
    assert await controlled.content("dogs") == 1
    await controlled.control.unload("cats")
    with pytest.raises(UnknownModelError, match="served: dogs"):
        controlled.repository.find("cats")
    index = await controlled.index()
    assert index["cats", ""][2:] == (UNAVAILABLE, "unloaded")
    assert index["dogs", "1"].state is READY
    assert (await controlled.index(ready=True)).keys() == {("dogs", "1")}


async def test_a_model_that_was_never_loaded_is_in_the_index_and_an_unknown_one_is_refused(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit")
    assert (await controlled.index()).keys() == {("cats", "")}
    for call in (controlled.control.load("birds", {}), controlled.control.unload("birds")):
        with pytest.raises(UnknownModelError, match="the model repository has no model 'birds'"):
            await call
    await controlled.control.unload("cats")
    with pytest.raises(UnknownModelError):
        await controlled.control.load("../models/cats", {})


@pytest.mark.parametrize("mode", ["none", "poll"])
async def test_loads_by_request_are_for_the_mode_explicit(start_control: StartControl, root: Path, mode: str) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode=mode)
    for call in (controlled.control.load("cats", {}), controlled.control.unload("cats")):
        with pytest.raises(ModelControlError, match="explicit model load / unload is not allowed"):
            await call


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "other"])
async def test_overrides_are_refused_clearly(start_control: StartControl, root: Path, name: str) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit")
    with pytest.raises(RequestError, match=re.escape(repr(name))):
        await controlled.control.load("cats", {name: "{}"})
    assert controlled.loads == []


async def test_a_broken_package_is_refused_and_index_log_and_metric_say_why(
    start_control: StartControl, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))
    served = controlled.repository.find("cats")
    damage(put(root, "cats", 2))
    with pytest.raises(ModelControlError, match=r"failed to load 'cats', version 1 is served still: .*model.onnx has"):
        await controlled.control.load("cats", {})
    assert controlled.repository.find("cats") is served
    assert await controlled.content("cats") == 1
    index = await controlled.index()
    assert index["cats", "1"][2:] == (READY, "")
    assert index["cats", "2"].state is UNAVAILABLE
    assert "model.onnx has" in index["cats", "2"].reason
    assert "version 2 of cats is refused" in caplog.text
    labels = {"model": "cats", "outcome": "refused", "error": "PackageError"}
    assert controlled.sample("fuseline_model_loads_total", **labels) == 1
    assert controlled.sample("fuseline_model_load_seconds_count", model="cats", outcome="refused") == 1
    # The same version broken in its place: what is served stays, and the index says what its folder has.
    damage(put(root, "cats", 1, content=9))
    with pytest.raises(ModelControlError):
        await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 1
    assert "was refused" in (await controlled.index())["cats", "1"].reason
    # Mended, it is served.
    put(root, "cats", 2)
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 2


async def test_a_broken_latest_version_falls_back_at_the_start_and_one_alone_ends_it(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    damage(put(root, "cats", 2))
    controlled = await start_control()
    assert await controlled.content("cats") == 1
    assert (await controlled.index())["cats", "2"].state is UNAVAILABLE
    damage(put(root, "dogs", 1))
    with pytest.raises(PackageError, match=r"model\.onnx has"):
        await start_control()
    # While the repository is looked at again and again, the others are served.
    polling = await start_control(model_control_mode="poll")
    assert [model.name for model in polling.repository] == ["cats"]


async def test_polling_serves_what_is_added_changed_and_mended(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="poll")
    poll = controlled.control.poll
    await poll()
    assert controlled.loads == [("cats", "1")]
    put(root, "cats", 2)
    put(root, "dogs", content=4)
    await poll()
    assert (await controlled.content("cats"), await controlled.content("dogs")) == (2, 4)
    put(root, "dogs", content=6)
    await poll()
    assert await controlled.content("dogs") == 6
    # A copy that is under way is refused, and tried again only when it has changed.
    whole = put(root, "whole", 3)
    (root / "cats/3").mkdir()
    await poll()
    assert "has no manifest.json" in (await controlled.index())["cats", "3"].reason
    shutil.copy(whole / MANIFEST_NAME, root / "cats/3")
    (root / "cats/3/model.onnx").write_bytes((whole / "model.onnx").read_bytes()[:100])
    tried = len(controlled.loads)
    for _ in range(2):
        await poll()
        assert "model.onnx has 100 bytes" in (await controlled.index())["cats", "3"].reason
    assert len(controlled.loads) == tried + 1
    assert await controlled.content("cats") == 2
    shutil.copytree(whole, root / "cats/3", dirs_exist_ok=True)
    await poll()
    assert await controlled.content("cats") == 3
    assert (await controlled.index())["cats", "3"][2:] == (READY, "")


async def test_polling_unloads_only_what_is_gone_in_two_looks(start_control: StartControl, root: Path) -> None:
    for name, version in (("cats", 1), ("cats", 2), ("dogs", 1)):
        put(root, name, version)
    controlled = await start_control(model_control_mode="poll")
    poll = controlled.control.poll
    # A folder that is replaced by renaming is away for a moment.
    (root / "cats/2").rename(root / "cats/.2")
    (root / "dogs").rename(root / ".dogs")
    await poll()
    assert (await controlled.content("cats"), await controlled.content("dogs")) == (2, 1)
    (root / "cats/.2").rename(root / "cats/2")
    (root / ".dogs").rename(root / "dogs")
    await poll()
    loads = len(controlled.loads)
    take_away(root / "cats/2")
    take_away(root / "dogs")
    await poll()
    assert (await controlled.content("cats"), await controlled.content("dogs")) == (2, 1)
    assert len(controlled.loads) == loads
    await poll()
    assert await controlled.content("cats") == 1
    with pytest.raises(UnknownModelError):
        controlled.repository.find("dogs")


async def test_a_repository_that_cannot_be_read_changes_nothing(
    start_control: StartControl, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="poll")
    take_away(root)
    for _ in range(3):
        await controlled.control.poll()
    assert await controlled.content("cats") == 1
    assert "can't be read, and what is served stays" in caplog.text


@contextmanager
def unprivileged() -> Iterator[None]:
    """Meanwhile be a user to whom permissions apply: they don't to root."""
    before = os.geteuid()
    os.seteuid(before or 65_534)
    try:
        yield
    finally:
        os.seteuid(before)


async def test_a_model_that_cannot_be_read_stays_as_it_is_and_keeps_no_other_one_up(folder: Path) -> None:
    folder.chmod(0o755)  # noqa: ASYNC240
    root = folder / "models"
    for name, version in (("cats", 1), ("cats", 2), ("dogs", 1)):
        put(root, name, version)
    (root / "birds").symlink_to(root / "dogs" / "1")
    controlled = Controlled(root, None, (), model_control_mode="poll")
    await controlled.start()
    try:
        (root / "dogs").chmod(0)
        (root / "cats" / "2").chmod(0)
        put(root, "fish", 3)
        with unprivileged():
            for _ in range(3):
                await controlled.control.poll()
        contents = [await controlled.content(name) for name in ("birds", "cats", "dogs", "fish")]
        assert contents == [1, 2, 1, 3]
        index = await controlled.index()
        assert "Permission denied" in index["dogs", ""].reason
        assert "Permission denied" in index["birds", ""].reason
        assert "what its folder has now was refused: " in index["cats", "2"].reason
    finally:
        (root / "dogs").chmod(0o755)
        (root / "cats" / "2").chmod(0o755)
        await controlled.control.close()
        await controlled.repository.close()


async def test_a_repository_that_is_unmounted_changes_nothing(
    start_control: StartControl, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted(root) as unmount:
        put(root, "cats", 1)
        controlled = await start_control(model_control_mode="poll")
        unmount()
        for _ in range(3):
            await controlled.control.poll()
        assert await controlled.content("cats") == 1
        assert "is empty, and on another file system than its models were; mount that again" in caplog.text


@pytest.mark.parametrize("unreadable", ["manifest", "graph"])
async def test_what_a_fault_of_the_disk_refused_is_served_once_that_has_passed_though_no_file_changes(
    start_control: StartControl, root: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    now = 0.0
    controlled = await start_control(model_control_mode="poll", clock=lambda: now)
    put(root, "cats", 1)
    poll, faulty, read_text = controlled.control.poll, True, Path.read_text

    def fail(*_: object) -> None:
        if faulty:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read_faulty(path: Path, *args: Any, **names: Any) -> str:
        fail()
        return read_text(path, *args, **names)

    if unreadable == "manifest":
        monkeypatch.setattr(Path, "read_text", read_faulty)
    else:
        controlled.during_load = fail
    tries = []
    for second in range(200):
        now = float(second)
        before = controlled.refusals()
        await poll()
        tries += [second] * round(controlled.refusals() - before)
    # The pauses double.
    assert tries == [0, 10, 30, 70, 150]
    assert [line.state for line in (await controlled.index()).values()] == [UNAVAILABLE]
    faulty = False
    now = 310.0
    await poll()
    assert await controlled.content("cats") == 1


async def test_a_package_that_is_replaced_while_it_is_loaded_is_served_as_what_it_is_or_refused(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", content=1, manifest_version="1")
    controlled = await start_control(model_control_mode="explicit")

    def replace() -> None:
        controlled.during_load = lambda: None
        put(root, "cats", content=2, manifest_version="2")

    controlled.during_load = replace
    with pytest.raises(ModelControlError, match=r"cats was replaced while it was loaded; load it once its files stay"):
        await controlled.control.load("cats", {})
    assert list(controlled.repository) == []
    await controlled.control.load("cats", {})
    assert controlled.repository.versions("cats") == ("2",)
    assert await controlled.content("cats", "2") == 2


async def test_a_package_that_is_replaced_between_its_manifest_and_its_graph_is_refused(
    start_control: StartControl, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit")
    read, exchanged = ModelPackage.read, []

    def read_after_an_exchange(package: ModelPackage, file: PackageFile) -> bytes:
        if not exchanged:
            exchanged.append(put(root, "cats", 1, content=2))
        return read(package, file)

    monkeypatch.setattr(ModelPackage, "read", read_after_an_exchange)
    with pytest.raises(ModelControlError, match=r"no version of it is served: .* has \d+ bytes with sha256"):
        await controlled.control.load("cats", {})
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 2


async def test_files_that_are_overwritten_or_deleted_change_nothing_for_who_is_served(
    start_control: StartControl, root: Path
) -> None:
    folder = put(root, "cats", 1)
    controlled = await start_control()
    for path in folder.iterdir():
        path.write_bytes(b"x")
    assert await controlled.content("cats") == 1
    shutil.rmtree(folder)
    assert await controlled.content("cats") == 1


async def test_too_little_memory_for_two_at_a_time_is_said_before_anything_is_loaded(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    free = 2**30
    controlled = await start_control(free=lambda: free, model_control_mode="explicit", load_model=("*",))
    put(root, "cats", 2)
    free = 2**20
    loads = len(controlled.loads)
    with pytest.raises(
        ModelControlError,
        match=r"loading version 2 of cats beside version 1 is expected to take \d+ MiB, and 1 are free; .*unload cats",
    ):
        await controlled.control.load("cats", {})
    assert len(controlled.loads) == loads
    assert await controlled.content("cats") == 1
    # What the message offers works: what was served makes room.
    await controlled.control.unload("cats")
    free = 2**30
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 2


async def test_an_old_model_answers_what_it_has_admitted_reservations_included_then_closes(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))
    old = controlled.repository.find("cats")
    pixels = noise(1)
    reservation = old.batcher.reserve(1, ready=AT_ONCE)
    put(root, "cats", 2)
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 2
    assert (await controlled.index())["cats", "1"].state is ModelState.UNLOADING
    batched = await old.batcher.submit(list(pixels), reservation=reservation)
    assert batched.logits[0, 0] < 15, "the old version answers"
    await controlled.control.close()
    assert ("cats", "1") not in await controlled.index()
    assert controlled.sample("fuseline_model_loads_total", model="cats", outcome="unloaded", error="") == 1


async def test_what_went_is_in_no_metric(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))
    about = {"model": "cats", "backend": "onnxruntime", "device": "CPU", "precision": "fp32"}
    assert controlled.sample("fuseline_model_info", version="1", **about) == 1
    put(root, "cats", 2)
    await controlled.control.load("cats", {})
    await controlled.content("cats")
    await controlled.control.unload("cats")
    assert controlled.sample("fuseline_model_info", version="1", **about) is None
    assert controlled.sample("fuseline_model_info", version="2", **about) is None
    assert controlled.sample("fuseline_queued_rows", model="cats", version="2") is None


async def test_counts_of_a_version_that_went_are_dropped_after_a_while(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))

    def batches(version: str) -> float | None:
        return controlled.sample("fuseline_batch_rows_count", model="cats", version=version)

    await controlled.content("cats")
    await controlled.control.unload("cats")
    put(root, "cats", 2)
    await controlled.control.load("cats", {})
    await controlled.content("cats")
    controlled.clock.now += KEPT_S - 1
    assert (batches("1"), batches("2")) == (1, 1)
    controlled.clock.now += 1
    # This drops what went before, though nobody collects.
    await controlled.control.unload("cats")
    assert set(controlled.metrics.statistics) == {"cats/2"}
    assert (batches("1"), batches("2")) == (None, 1)


async def test_whoever_stops_waiting_for_a_load_stops_nothing(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit")
    load = asyncio.create_task(controlled.control.load("cats", {}))
    await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    # Another operation waits for its turn.
    await controlled.control.load("cats", {})
    assert await controlled.content("cats") == 1
    assert controlled.loads == [("cats", "1")]


async def test_settings_of_one_model_come_from_its_manifest_and_the_command_line_wins(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1, serving={"max_batch": 8, "max_queue_rows": 256})
    put(root, "dogs", 1)
    controlled = await start_control(set=("cats.max_batch=2",))
    cats, dogs = (controlled.repository.find(name) for name in ("cats", "dogs"))
    assert (cats.backend.buckets[-1], cats.batcher.policy.max_queue_rows) == (2, 256)
    assert (dogs.backend.buckets[-1], dogs.batcher.policy.max_queue_rows) == (4, 1024)


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ({"max_bacth": 8}, "'max_bacth' is no setting of a model; there are backend, precision, max_batch"),
        ({"port": 8}, "'port' is no setting of a model"),
        ({"max_batch": 0}, "max_batch was given 0: input should be greater than or equal to 1"),
        ({"lanes": True}, "lanes was given true"),
        ({"max_queue_rows": 8}, r"max_images_per_request \(128\) is above max_queue_rows \(8\)"),
    ],
)
async def test_a_wrong_setting_in_a_manifest_is_refused_at_load_with_what_is_allowed(
    start_control: StartControl, root: Path, serving: dict[str, object], message: str
) -> None:
    put(root, "cats", 1, serving=serving)
    with pytest.raises(InputError, match=message):
        await start_control()


def test_a_manifest_without_settings_is_one_that_earlier_servers_read(root: Path) -> None:
    folder = put(root, "cats", 1)
    assert "serving" not in json.loads((folder / MANIFEST_NAME).read_bytes())


async def test_folders_that_are_no_models_are_passed_over(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    for name in ("cats/02", "cats/old", "cats/0", "cats/-1", ".hidden/1", "a b"):
        (root / name).mkdir(parents=True)
    (root / "README").write_text("none of them")
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))
    assert (await controlled.index()).keys() == {("cats", "1")}
    (root / "empty").mkdir()
    with pytest.raises(ModelControlError, match=r"neither a manifest\.json nor a folder whose name is a version"):
        await controlled.control.load("empty", {})


async def test_a_repository_without_models_can_be_polled_and_is_refused_otherwise(start_control: StartControl) -> None:
    with pytest.raises(InputError, match=r"has no model; put packages there, or serve with --model-control-mode poll"):
        await start_control()
    controlled = await start_control(model_control_mode="poll")
    assert list(controlled.repository) == []


async def test_a_name_to_load_at_the_start_must_be_there(start_control: StartControl, root: Path) -> None:
    put(root, "cats", 1)
    with pytest.raises(InputError, match="--load-model birds: the model repository has cats"):
        await start_control(model_control_mode="explicit", load_model=("birds",))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
async def test_no_file_of_a_package_is_mapped_so_that_none_can_end_the_process(
    start_control: StartControl, root: Path, backend: str
) -> None:
    folder = put(root, "cats", 1)
    controlled = await start_control(backend=backend, lanes=2)
    maps = await asyncio.to_thread(Path("/proc/self/maps").read_text)
    assert str(folder) not in maps
    # Lanes are opened while loading, and none reads a file again later.
    await asyncio.to_thread(shutil.rmtree, folder)
    assert await controlled.content("cats") == 1


async def test_a_picture_that_found_its_model_before_a_swap_is_answered_by_the_successor(
    start_control: StartControl, root: Path
) -> None:
    put(root, "cats", 1)
    controlled = await start_control(model_control_mode="explicit", load_model=("*",))
    # One request of a client at a time: handing it on does not count it twice.
    its_settings = settings(max_batch=4, max_requests_per_client=1)
    request = ClassifyRequest(images=[Image(encoded=encoded(noise(1)[0]))], return_logits=True)
    with ThreadPoolExecutor(1) as pool:
        codec = ClassifyCodec(controlled.repository, ImageRows(pool, its_settings))
        inference = Inference(
            "Classify", codec, request, NO_CONTEXT, controlled.metrics, time.monotonic, CallLimits(its_settings)
        )
        # A stream makes a task of what `submit` returns, which begins in a later turn of the event loop.
        submitted = inference.submit()
        assert not isinstance(submitted, asyncio.Future)
        put(root, "cats", 2)
        await controlled.control.load("cats", {})
        assert inference.model is not controlled.repository.find("cats")
        inference.settle(await submitted)
    assert isinstance(inference.answer, ClassifyResponse)
    assert inference.answer.model_version == "2"
