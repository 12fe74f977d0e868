"""Loads one version of a model beside what is served, and notes why it is refused if it is."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fuseline.serve.errors import FuselineError, ModelControlError, PackageError, ShuttingDownError, log_once
from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.model_control.memory_check import MemoryMeter, expected_bytes
from fuseline.serve.model_control.model_folders import PackageOnDisk
from fuseline.serve.model_control.served_versions import NamedVersions, Refusal
from fuseline.serve.settings import Settings

LoadPackage = Callable[[Path, str, str, LaneChoice | None], Model]
"""Loads the package in a folder under a name and a version, empty ones being the manifest's, beside one that is served
if it is told that one's lanes, as `load_model` does."""

FIRST_PAUSE_S = 10.0
"""Seconds after which a repository that is looked at has a refused package tried again though its files stay: a disk or
a shortage of memory may have been the reason."""
MOST_PAUSE_S = 300.0
"""Bound of that pause, which doubles each time."""

_SWITCH_INTERVAL_S = 0.0005

_log = logging.getLogger(__name__)


class VersionLoader:
    """Loads packages, one at a time, each in a thread, which nothing can interrupt."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        load_package: LoadPackage,
        free: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load_package` is called in a thread. `free` returns the bytes of memory that this process may take yet."""
        self._settings = settings
        self._metrics = metrics
        self._load_package = load_package
        self._free = free
        self._clock = clock
        self._has_loaded = False
        self.closing = False
        """Whether nothing more is to be served: what is loaded from now on is given up."""
        self.is_loading = False
        """Whether a thread loads a model."""

    async def tried(
        self, named: NamedVersions, package: PackageOnDisk, *, retry: bool
    ) -> tuple[Model | None, FuselineError | None]:
        """Load `package` and return the model, or why it is refused; the index, the log and a metric say so too."""
        known = named.refused.get(package.version)
        known = known if known is not None and known.package == package else None
        if known is not None and not retry and self._clock() < known.again_at:
            return None, PackageError(known.reason)
        began = time.monotonic()
        named.loading = package.version
        try:
            if package.manifest is None:
                raise PackageError(package.problem)
            if any(alias.name == named.name for alias in self._settings.aliases):
                raise ModelControlError(
                    f"--alias {named.name} leads to other models, so no model of that name can be served; rename one"
                )
            if self._has_loaded:
                self._check_memory(named, package)
            with MemoryMeter() as meter:
                model = await self.loaded(package.folder, named.name, package.version, named.served)
            if model.manifest != package.manifest:
                # Served under the version that was read, it would be told as what it isn't.
                await model.close()
                raise PackageError(
                    f"{package.folder} was replaced while it was loaded; load it once its files stay as they are"
                )
        except Exception as error:
            if self.closing:
                raise
            refusal = error if isinstance(error, FuselineError) else _unexpected(error)
            pause_s = FIRST_PAUSE_S if known is None else min(2 * known.pause_s, MOST_PAUSE_S)
            named.refused[package.version] = Refusal(package, str(refusal), pause_s, self._clock() + pause_s)
            self._metrics.count_load(named.name, "refused", type(error).__name__, time.monotonic() - began)
            _log.error("version %s of %s is refused: %s", package.version, named.name, refusal)
            return None, refusal
        finally:
            named.loading = None
        if self._has_loaded:
            named.measured_bytes = meter.peak_bytes
        # What the first load takes, a runtime takes too.
        self._has_loaded = True
        named.refused.pop(package.version, None)
        seconds = time.monotonic() - began
        self._metrics.count_load(named.name, "loaded", "", seconds)
        _log.info("version %s of %s is loaded, in %.2f s", package.version, named.name, seconds)
        return model, None

    async def loaded(
        self, folder: Path, name: str = "", version: str = "", served: Mapping[str, Model] | None = None
    ) -> Model:
        """Return the model of a package, loaded beside `served` if there are any.

        Raises what `LoadPackage` does, and `ShuttingDownError` once `closing` is set.
        """
        beside = next((model.lanes for model in (served or {}).values()), None)
        self.is_loading = True

        def load() -> Model:
            switch_interval_s = sys.getswitchinterval()
            try:
                # What of loading is Python would keep the event loop waiting for as long as that each time.
                sys.setswitchinterval(_SWITCH_INTERVAL_S)
                return self._load_package(folder, name, version, beside)
            finally:
                sys.setswitchinterval(switch_interval_s)
                # The thread goes on where whoever waits for it is cancelled.
                self.is_loading = False

        model = await asyncio.to_thread(load)
        if self.closing:
            await model.close()
            raise ShuttingDownError("the server is shutting down and loads nothing more")
        return model

    def _check_memory(self, named: NamedVersions, package: PackageOnDisk) -> None:
        """Raise `ModelControlError` if loading `package` is likely to take more memory than there is."""
        assert package.manifest is not None
        expected, free = expected_bytes(package.manifest, named.measured_bytes), self._free()
        if expected <= free:
            return
        beside = f" beside version {', '.join(named.served)}" if named.served else ""
        cure = (
            f"unload {named.name} first, which is then not served until it is loaded again"
            if named.served
            else "unload another model"
        )
        raise ModelControlError(
            f"loading version {package.version} of {named.name}{beside} is expected to take {_mib(expected)} MiB, and "
            f"{_mib(free)} are free; allow the server more memory, or {cure}"
        )


def _unexpected(error: Exception) -> ModelControlError:
    error_id = log_once(error)
    return ModelControlError(f"loading failed on {type(error).__name__}; the log has more under error {error_id}")


def _mib(count: int) -> int:
    return count // 2**20
