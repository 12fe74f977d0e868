"""Loads, swaps and unloads models in the process that owns them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fuseline.serve.errors import (
    FuselineError,
    InputError,
    ModelControlError,
    PackageError,
    ShuttingDownError,
    log_once,
)
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.model_control.doors import Doors
from fuseline.serve.model_control.fixed_models import refused_by_mode
from fuseline.serve.model_control.load_parameters import check_load_parameters
from fuseline.serve.model_control.lost_models import Lost, LostModels, nothing_lost
from fuseline.serve.model_control.memory_check import free_bytes
from fuseline.serve.model_control.model_folders import ModelFolders, ModelOnDisk
from fuseline.serve.model_control.served_versions import NamedVersions
from fuseline.serve.model_control.version_loader import LoadPackage, VersionLoader
from fuseline.serve.model_package import load_package
from fuseline.serve.settings import EVERY_MODEL, Settings
from fuseline.serve.version_policy import VersionPolicies

_REPOSITORY = "the model repository"
"""What is lost of a repository that is looked at: no model has such a name."""

_log = logging.getLogger(__name__)


class LocalModelControl:
    """A `ModelControl` for the models of packages and repositories. All but loading happens on one event loop.

    - What is served changes only once every new version is ready: loaded, warmed, and held against its reference beside
      what is served. A version that is refused changes nothing.
    - Requests find the old models or the new ones, never none in between. An old model answers what it has admitted,
      then its backend closes.
    - One load runs at a time. It comes to its end even if nobody waits for it any more.
    """

    def __init__(
        self,
        packages: Sequence[Path],
        settings: Settings,
        metrics: Metrics,
        load: LoadPackage,
        *,
        free: Callable[[], int] = free_bytes,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve `packages` for ever, and the models of the settings' repositories as their mode says.

        `load` is called in a thread. `free` returns the bytes of memory that this process may take yet. `sleep` waits
        for so many seconds before models that were lost are tried again; `clock` tells seconds.
        """
        self._packages = packages
        self._settings = settings
        self._metrics = metrics
        self._loader = VersionLoader(settings, metrics, load, free, clock)
        self._mode = settings.model_control_mode
        self._folders = ModelFolders(settings.model_repository)
        self._policies = VersionPolicies.from_texts(settings.version_policy)
        self._doors: Doors | None = None
        self._fixed: list[Model] = []
        self._named: dict[str, NamedVersions] = {}
        # Names and versions that the last look at the repository missed for the first time.
        self._missed: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None
        self._sleep = sleep
        self._lost = nothing_lost()
        self._bringing_back: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def is_loading(self) -> bool:
        """Whether a thread loads a model, which nothing can interrupt."""
        return self._loader.is_loading

    async def start(self, doors: Doors) -> None:
        """Load what the settings say, publish it to `doors`, and begin to look at the repository if they say so.

        Raises:
            InputError: two models have the same name and version, or the repository has none to begin with.
            FuselineError: a model can't be served here; in the mode `poll` only a package that was named is.
        """
        self._doors = doors
        for folder in self._packages:
            await self._serve_package(folder)
        if self._settings.model_repository:
            await self._start_repository()
        if self._mode == "poll":
            self._polling = asyncio.create_task(self._poll_for_ever())

    async def start_again(
        self, doors: Doors, names: Sequence[str], on_wait: Callable[[list[IndexEntry]], None] = lambda _: None
    ) -> None:
        """Serve what a process that has ended had served, as it is on disk now; `start` is called for the first one.

        `names` are those of the repository's models; in the mode `poll` the repository tells them. A model that can't
        be served keeps no other one up. It is tried again after pauses that grow, until it is served or unloaded by
        request; the log, the index and a metric say why. This returns once a model is served, in the mode `explicit`
        at once. `on_wait` is called with the index before each pause until then.

        Raises:
            FuselineError: no model can be served, for a reason that nothing but a new process can end.
        """
        self._doors = doors
        bring: dict[Lost, Callable[[], Awaitable[None]]] = {}
        for folder in self._packages:
            bring[folder] = partial(self._serve_package_again, folder)
        if self._mode == "poll":
            bring[_REPOSITORY] = self._look_again
        else:
            bring |= {name: partial(self._serve_name, name) for name in names}
        self._lost = LostModels(bring, self._sleep)
        await self._lost.try_all()
        while self._lost and self._mode != "explicit" and not self._serves:
            if (error := self._lost.unmendable) is not None:
                raise error
            on_wait(await self.index(ready=False))
            await self._lost.pause()
            await self._lost.try_all()
        self._bringing_back = asyncio.create_task(self._lost.bring_back())
        if self._mode == "poll":
            self._polling = asyncio.create_task(self._poll_for_ever())

    async def load(self, name: str, parameters: Mapping[str, str]) -> None:
        """See `ModelControl.load`."""
        self._check_mode("load", name)
        check_load_parameters(parameters)
        await self._carried_through(self._load_anew(name))

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:  # noqa: ARG002
        """See `ModelControl.unload`."""
        self._check_mode("unload", name)
        await self._carried_through(self._unload(name))

    async def index(self, *, ready: bool) -> list[IndexEntry]:
        """See `ModelControl.index`."""
        lines = [IndexEntry(model.name, model.version, ModelState.READY, "") for model in self._fixed]
        names = dict(self._named)
        if self._mode == "explicit" and not ready:
            for name in await asyncio.to_thread(self._names_on_disk):
                names.setdefault(name, NamedVersions(name))
        for lost, reason in self._lost.reasons.items():
            if lost != _REPOSITORY and (lost not in self._named):
                name = await asyncio.to_thread(_name_of, lost)
                names[name] = NamedVersions(name, problem=str(reason))
        lines += [line for name in sorted(names) for line in names[name].index()]
        return [line for line in lines if line.state is ModelState.READY or not ready]

    async def poll(self) -> None:
        """Look at the repository, and serve what it has now.

        A model or version that is gone is unloaded when it is gone in two looks, as folders that are replaced by
        renaming are missing for a moment.
        """
        try:
            await self._look()
        except PackageError as error:
            _log.error("the model repository can't be read, and what is served stays: %s", error)

    async def _look(self) -> None:
        """Do what `poll` says. Raises `PackageError` if the repository can't be read."""
        async with self._turn:
            on_disk = await asyncio.to_thread(self._folders.read_all)
            missed = self._missing_from(on_disk)
            confirmed, self._missed = missed & self._missed, missed
            for name in sorted(on_disk.keys() | self._named.keys()):
                if self._loader.closing:
                    return
                gone = {version for each, version in missed if each == name}
                if gone and not all((name, version) in confirmed for version in gone):
                    continue
                if name not in on_disk:
                    self._named[name].was_unloaded = True
                    await self._replace(self._named[name], [])
                    if not self._named[name].retiring:
                        del self._named[name]
                elif self._why_not_ours(name) is None:
                    await self._bring(on_disk[name], retry=False)

    async def close(self) -> None:
        """Load nothing more, and return once every model that was replaced has answered its last request.

        A load that is under way goes on in its thread, and its model is given up.
        """
        self._loader.closing = True
        for task in (self._polling, self._bringing_back):
            if task is not None:
                task.cancel()
        while self._retiring:
            await asyncio.gather(*self._retiring, return_exceptions=True)

    @property
    def _serves(self) -> bool:
        return bool(self._fixed) or any(named.served for named in self._named.values())

    async def _serve_package(self, folder: Path) -> None:
        """Serve a package that the command line names. Raises what `start` does."""
        model = await self._loader.loaded(folder, self._settings.name or "")
        try:
            self._check_is_new(model)
        except InputError:
            await model.close()
            raise
        self._fixed.append(model)
        self._metrics.watch(model)
        await self._publish()

    async def _serve_package_again(self, folder: Path) -> None:
        began = time.monotonic()
        try:
            await self._serve_package(folder)
        except FuselineError as error:
            seconds = time.monotonic() - began
            self._metrics.count_load(self._settings.name or _name_of(folder), "refused", type(error).__name__, seconds)
            raise

    async def _serve_name(self, name: str) -> None:
        """Serve a model of the repository. Raises why no version of it can be served."""
        async with self._turn:
            refusals = await self._bring(await asyncio.to_thread(self._folders.read, name), retry=True)
        if not self._named[name].served and refusals:
            raise refusals[0]

    async def _look_again(self) -> None:
        """Serve what the repository has. Raises why none of its models can be served."""
        await self._look()
        entries = [line for named in self._named.values() for line in named.index()]
        if entries and not any(line.state is ModelState.READY for line in entries):
            raise PackageError("; ".join(f"{line.name}: {line.reason}" for line in entries))

    async def _start_repository(self) -> None:
        on_disk = await asyncio.to_thread(self._folders.read_all)
        names = list(on_disk)
        if self._mode == "explicit" and self._settings.load_model != (EVERY_MODEL,):
            names = list(dict.fromkeys(self._settings.load_model))
        if self._mode == "none" and not names:
            roots = ", ".join(map(str, self._settings.model_repository))
            raise InputError(f"{roots} has no model; put packages there, or serve with --model-control-mode poll")
        for name in names:
            if name not in on_disk:
                raise InputError(f"--load-model {name}: the model repository has {', '.join(on_disk) or 'no model'}")
            if (reason := self._why_not_ours(name)) is not None:
                raise InputError(reason)
            async with self._turn:
                refusals = await self._bring(on_disk[name], retry=True)
            if not self._named[name].served and refusals and self._mode != "poll":
                raise refusals[0]

    async def _poll_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.repository_poll_secs)
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001 the loop is its own boundary: the error is logged, and it goes on
                log_once(error)

    async def _load_anew(self, name: str) -> None:
        async with self._turn:
            refusals = await self._bring(await asyncio.to_thread(self._folders.read, name), retry=True)
        if refusals:
            served = ", ".join(self._named[name].served)
            kept = f"version {served} is served still" if served else "no version of it is served"
            raise ModelControlError(f"failed to load {name!r}, {kept}: {'; '.join(map(str, refusals))}")

    async def _unload(self, name: str) -> None:
        async with self._turn:
            if (named := self._named.get(name)) is None:
                # Raises where the repository has no such model.
                await asyncio.to_thread(self._folders.read, name)
                return
            self._lost.forget(name)
            named.was_unloaded = True
            named.refused.clear()
            named.problem = ""
            retiring = await self._replace(named, [])
        await asyncio.gather(*retiring)

    async def _bring(self, on_disk: ModelOnDisk, *, retry: bool) -> list[FuselineError]:
        """Serve of a model what its policy says of the packages that are on disk, and return why others were refused.

        With `retry`, packages that were refused are tried again though they are what they were. Where none can be
        served while one was refused, what is served stays.
        """
        named = self._named.setdefault(on_disk.name, NamedVersions(on_disk.name))
        if named.problem != on_disk.problem and on_disk.problem:
            _log.error("model %s: %s", on_disk.name, on_disk.problem)
        named.problem = on_disk.problem
        policy = self._policies.of(on_disk.name)
        packages = {package.version: package for package in on_disk.packages}
        refusals: list[FuselineError] = [PackageError(on_disk.problem)] if on_disk.problem else []
        wanted: list[Model] = []
        candidates = policy.candidates(packages)
        named.refused = {version: refusal for version, refusal in named.refused.items() if version in candidates}
        try:
            for version in candidates:
                if policy.count is not None and len(wanted) >= policy.count:
                    break
                package, served = packages[version], named.served.get(version)
                if served is not None and served.manifest == package.manifest:
                    named.refused.pop(version, None)
                    wanted.append(served)
                    continue
                model, error = await self._loader.tried(named, package, retry=retry)
                refusals += [] if error is None else [error]
                if model is not None:
                    model.version_policy = policy
                if (model := model or served) is not None:
                    wanted.append(model)
        except BaseException:
            for model in wanted:
                if model not in named.served.values():
                    await model.close()
            raise
        if wanted or not refusals:
            await self._replace(named, wanted)
        return refusals

    async def _replace(self, named: NamedVersions, wanted: Sequence[Model]) -> list[asyncio.Task[None]]:
        """Serve `wanted` under that name and nothing else; return what is done once each of the others has gone."""
        before = list(named.served.values())
        gone = [model for model in before if model not in wanted]
        new = [model for model in wanted if model not in before]
        named.served = {model.version: model for model in wanted}
        named.was_unloaded = named.was_unloaded and not wanted
        if not gone and not new:
            return []
        for model in new:
            self._metrics.watch(model)
        named.retiring += gone
        await self._publish()
        if new or gone:
            _log.info("%s: %s", named.name, f"version {', '.join(named.served)} is served" if wanted else "unloaded")
        retiring = [asyncio.create_task(self._retire(named, model)) for model in gone]
        for task in retiring:
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return retiring

    async def _retire(self, named: NamedVersions, model: Model) -> None:
        """Let a model that is published no more answer what it has, and release it."""
        assert self._doors is not None
        began = time.monotonic()
        await self._doors.retire(model)
        await model.close()
        named.retiring.remove(model)
        self._metrics.unwatch(model)
        self._metrics.count_load(named.name, "unloaded", "", time.monotonic() - began)
        _log.info("version %s of %s has answered its last request and is released", model.version, model.name)

    async def _publish(self) -> None:
        assert self._doors is not None
        await self._doors.publish(
            [*self._fixed, *(model for named in self._named.values() for model in named.served.values())]
        )

    async def _carried_through(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` to its end, even if this call is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def _check_mode(self, operation: str, name: str) -> None:
        if self._loader.closing:
            raise ShuttingDownError(f"the server is shutting down and can't {operation} a model")
        if self._mode != "explicit":
            raise refused_by_mode(self._mode)
        if (reason := self._why_not_ours(name)) is not None:
            raise ModelControlError(reason)

    def _why_not_ours(self, name: str) -> str | None:
        if any(model.name == name for model in self._fixed) or name in self._lost_packages:
            return f"{name!r} is served from a package that the command line names, so it stays as it is"
        return None

    @property
    def _lost_packages(self) -> list[str]:
        return [_name_of(lost) for lost in self._lost.reasons if isinstance(lost, Path)]

    def _check_is_new(self, model: Model) -> None:
        if any((other.name, other.version) == (model.name, model.version) for other in self._fixed):
            raise InputError(
                f"two packages are named {model.name!r} and have version {model.version!r}; export one of them again "
                "with another --name, or serve them apart"
            )

    def _missing_from(self, on_disk: Mapping[str, ModelOnDisk]) -> set[tuple[str, str]]:
        return {
            (name, version)
            for name, named in self._named.items()
            for version in named.served or [""]
            if name not in on_disk or (version and _lacks(on_disk[name], version))
        }

    def _names_on_disk(self) -> list[str]:
        try:
            return list(self._folders.read_all())
        except PackageError as error:
            _log.error("the model repository can't be read: %s", error)
            return []


def _name_of(lost: Lost) -> str:
    """Return the name of a lost model; of a package whose manifest can't be read, that of its folder."""
    if isinstance(lost, str):
        return lost
    try:
        return load_package(lost).manifest.name
    except PackageError:
        return lost.name


def _lacks(on_disk: ModelOnDisk, version: str) -> bool:
    """Return whether the folder of a version is missing."""
    return on_disk.has_versions and all(version != package.version for package in on_disk.packages)
