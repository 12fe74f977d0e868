"""A backend that takes as long as an H100 would, so that what is measured is everything in front of it.

It answers what the package's own model does, computed on the CPU, and then sleeps until a GPU would have been done.
`python -m fuseline.benchmarks.simulated_backend` stands in for `fuseline.serve.workers.backend_process`.
"""

import time
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend, Infer
from fuseline.serve.workers.backend_process import main

CALL_MS = 0.3
ROW_MS = 0.012
"""About ResNet-50 in INT8 on an H100: MLPerf Inference v3.0 has 91,826 images/s offline, which is 0.011 ms a row."""


class SimulatedBackend:
    """A CPU backend whose calls last `CALL_MS` and `ROW_MS` for each row."""

    device = "simulated H100"

    def __init__(self, real: Backend) -> None:
        self._real = real
        self.name = real.name
        self.precision = real.precision
        self.half_share = real.half_share
        self.buckets = real.buckets
        self._device = Lock()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute, then sleep for what is left of the time."""
        with self._device:
            ends = time.monotonic() + (CALL_MS + ROW_MS * len(pixels)) / 1000
            logits = self._real.infer(pixels)
            time.sleep(max(0.0, ends - time.monotonic()))
        return logits

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        """Return lanes that wait for one another: a GPU computes one batch after the other."""
        return (self.infer,) * count

    def close(self) -> None:
        """Close the real one."""
        self._real.close()


def images_per_s(rows: int) -> float:
    """What such a device does with batches of `rows`, one right after the other."""
    return 1000 * rows / (CALL_MS + ROW_MS * rows)


def use_simulated_backend() -> None:
    """Let every model that this process loads have one."""

    def open_simulated(*args: Any, **kwargs: Any) -> tuple[SimulatedBackend, str]:
        # It batches as a GPU does, though a CPU computes its answers.
        real, _ = open_backend(*args, **kwargs | {"cpu_buckets": None})
        return SimulatedBackend(real), "it is simulated"

    fuseline.serve.model.open_backend = open_simulated


if __name__ == "__main__":
    use_simulated_backend()
    main()
