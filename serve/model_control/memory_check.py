"""Tells before a model is loaded whether the memory suffices for one more, by what such a one took before."""

import os
import threading
from contextlib import suppress
from pathlib import Path

from fuseline.serve.model_package import Manifest
from fuseline.serve.process.memory_guard import memory_limit_bytes, unreclaimable_bytes

_BYTES_A_GRAPH_BYTE = 4
"""Bytes that loading takes for each byte of the graph, while nothing was measured: the file, what a runtime reads of
it, and weights in its own layout, twice where lanes have theirs."""

_LEAST_BYTES = 16 * 2**20
"""Bytes that loading the smallest network takes: buffers and threads."""

_KEPT_SHARE = 0.05
"""Share of the memory that stays free for requests."""

_SAMPLE_S = 0.01


class MemoryMeter:
    """Measures, as a context manager, by how much the memory of this process grew at most."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        """Largest growth since the beginning."""
        self._began_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fuseline-meter", daemon=True)

    def __enter__(self) -> "MemoryMeter":
        self._began_bytes = unreclaimable_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, unreclaimable_bytes() - self._began_bytes)


def expected_bytes(manifest: Manifest, measured_bytes: int | None) -> int:
    """Return the bytes that loading the package of `manifest` is expected to take.

    `measured_bytes` is what loading another version of the model took; None: none was loaded.
    """
    if measured_bytes is not None:
        return max(measured_bytes, _LEAST_BYTES)
    graphs = [artifact.bytes for artifact in manifest.artifacts if artifact.format == "onnx"]
    return max(_BYTES_A_GRAPH_BYTE * max(graphs), _LEAST_BYTES)


def free_bytes() -> int:
    """Return the bytes that this process may take yet: of its control group's limit and of the machine's memory."""
    available = _available_bytes()
    limit = memory_limit_bytes()
    if limit is not None:
        available = min(available, limit - unreclaimable_bytes() - round(_KEPT_SHARE * limit))
    return max(0, available)


def _available_bytes() -> int:
    """Return what the machine has left (proc(5), MemAvailable)."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
