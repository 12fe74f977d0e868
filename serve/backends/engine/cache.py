"""The folder in which a machine keeps the engines that its servers built, and their timing caches.

<key>.plan             an engine; the key says all that it is bound to
timing-….cache         TensorRT's measurements during builds, for one library build and kind of GPU
<file>.sha256          the sha256 of the file beside it, in the format of sha256sum
<key>.lock             a lock that the process holds which builds that engine

A folder that can't be written to costs time, never an answer.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from fuseline.serve.backends.engine.builder import EngineBuild
from fuseline.serve.backends.engine.key import EngineDetails
from fuseline.serve.backends.engine.lock import file_lock
from fuseline.serve.errors import BackendUnavailableError, InputError

_LOG = logging.getLogger(__name__)

Engine = TypeVar("Engine")


def cached_engine(
    cache: "EngineCache",
    bound_to: EngineDetails,
    *,
    build: Callable[[bytes | None], EngineBuild],
    load: Callable[[bytes], Engine],
) -> Engine:
    """Load the engine that is bound to `bound_to` from `cache`; build it first if it isn't there or doesn't load.

    Of several processes that want one engine, one builds it while the others wait and then load it. A cache that can't
    be written to costs the next start another build; the log says so, and it is no error.

    Args:
        build: makes the engine; its argument is the timing cache of an earlier build on such a machine.
        load: turns a plan into the engine that is returned. `BackendUnavailableError` from it means that the library
            refuses the plan, which is then built anew.

    Raises:
        BackendUnavailableError: the library refuses even the engine that was built just now.
    """
    file, timing_file = f"{bound_to.key}.plan", f"{bound_to.timing_key}.cache"
    if (engine := _loaded(cache, file, load)) is not None:
        return engine
    with cache.locked(bound_to.key):
        # Another process that held the lock before may have built it.
        if (engine := _loaded(cache, file, load)) is not None:
            return engine
        built = build(cache.read(timing_file))
        engine = load(built.plan)
        kept = cache.write(file, built.plan)
        if built.timing_cache is not None:
            cache.write(timing_file, built.timing_cache)
    where = f"kept as {cache.folder / file}" if kept else "in memory only, so the next start builds it again"
    _LOG.info("built engine %s in %.1f s, %s; %s", bound_to.key, built.seconds, where, built.achieved)
    return engine


def check_engine_cache(folder: Path) -> None:
    """Make `folder`, which the user named as the engine cache, or refuse it if it is of no use.

    A read-only folder is of use while it holds engines.

    Raises:
        InputError: nothing can be written there, and no engine is there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        if next(folder.glob("*.plan"), None) is None:
            raise InputError(
                f"--engine-cache {folder} holds no engine and can't keep one ({error.strerror}); make it writable for "
                "the server's user, or leave --engine-cache out: engines then are built at each start"
            ) from error


class EngineCache:
    """Files with their sha256 beside them, in one folder, which is made when it is first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """Return the bytes of the file called `name`; None if there is none, or it is damaged, which is logged."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            expected = _sha256_file(path).read_text(encoding="ascii").partition(" ")[0]
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            _LOG.warning("%s can't be read (%s) and is not used", path, error)
            return None
        if hashlib.sha256(data).hexdigest() != expected:
            _LOG.warning("%s is damaged: its sha256 is not that of %s; it is not used", path, _sha256_file(path).name)
            return None
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Keep `data` as the file called `name`, whole or not at all; return False, and log it, if that can't be."""
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Between the two writes a reader finds a sum that doesn't fit, and takes the file for damaged.
            write_whole(path, data)
            write_whole(_sha256_file(path), f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode())
        except OSError as error:
            _LOG.warning("%s can't be written: %s", path, error.strerror)
            return False
        return True

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Keep other processes from building the engine `key`; where no lock can be had, log that and go on without."""
        path = self.folder / f"{key}.lock"

        def on_wait() -> None:
            _LOG.info("another process is building engine %s; waiting for it", key)

        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(path, on_wait))
            except OSError as error:
                _LOG.warning("%s can't be locked (%s): other servers may build the same engine", path, error.strerror)
            yield


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that at any time the file has its old bytes, or all of `data`.

    Raises:
        OSError: it can't be written; then nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        Path(name).replace(path)
    # A Ctrl-C too leaves nothing behind.
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sha256_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _loaded(cache: EngineCache, file: str, load: Callable[[bytes], Engine]) -> Engine | None:
    plan = cache.read(file)
    if plan is None:
        return None
    try:
        return load(plan)
    except BackendUnavailableError as error:
        _LOG.warning("%s is of no use here and is built again: %s", cache.folder / file, error)
        return None
