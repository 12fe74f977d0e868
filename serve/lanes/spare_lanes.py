"""Opens further instances of a CPU backend, each to take the place of a lane whose call hangs."""

import threading
from collections.abc import Callable

from fuseline.serve.backends.base import Backend, BackendLane, Infer
from fuseline.serve.errors import BackendError
from fuseline.serve.lanes.warm_up import warm_up
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.process.memory_guard import memory_limit_bytes, unreclaimable_bytes
from fuseline.serve.reference import check_reference

_LEAST_TIMES_WEIGHTS = 3
"""Multiple of the artifact's bytes that an instance takes while it is opened: the file's, the runtime's own form of the
weights, and activations."""


class SpareLanes:
    """The instances of one model's backend that were opened to replace lanes. `open` may be called in any thread."""

    def __init__(
        self, open_backend: Callable[[], Backend], package: ModelPackage, *, lanes: int, buckets: tuple[int, ...]
    ) -> None:
        """Open nothing yet.

        `lanes` is the number of lanes of the backend that an instance is like, 0 where it has none, and `buckets` are
        the batch sizes of each.
        """
        self._open_backend = open_backend
        self._package = package
        self._lanes = lanes
        self._buckets = buckets
        self._lock = threading.Lock()
        self._opened: list[Backend] = []
        self._closed = False

    def open(self) -> Infer:
        """Return what computes as a lane does: a new instance, warm in every bucket and held against the reference.

        Raises:
            BackendError: there is no memory for it, or the runtime failed, or `close` was called.
            FuselineError: whatever refuses a model at its start.
        """
        self._check_memory()
        backend = self._open_backend()
        try:
            infer = backend.open_lanes(self._lanes)[0] if self._lanes else backend.infer
            instance = BackendLane(backend.name, backend.precision, backend.device, self._buckets, infer)
            warm_up([instance], self._package)
            check_reference(instance, self._package)
        except BaseException:
            backend.close()
            raise
        with self._lock:
            if not self._closed:
                self._opened.append(backend)
                return infer
        backend.close()
        raise BackendError("the model was closed meanwhile")

    def close(self) -> None:
        """Release the instances; one that is being opened is released once it is."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, []
        for backend in opened:
            backend.close()

    def _check_memory(self) -> None:
        limit_bytes = memory_limit_bytes()
        weights_bytes = max(artifact.bytes for artifact in self._package.manifest.artifacts)
        needed_bytes = _LEAST_TIMES_WEIGHTS * weights_bytes
        if limit_bytes is not None and (taken_bytes := unreclaimable_bytes()) + needed_bytes > limit_bytes:
            raise BackendError(
                f"one more instance takes about {needed_bytes / 2**20:.0f} MiB, and of {limit_bytes / 2**20:.0f} MiB "
                f"that this process may have {taken_bytes / 2**20:.0f} are taken"
            )
