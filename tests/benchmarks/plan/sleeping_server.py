"""`python -m tests.benchmarks.plan.sleeping_server PACKAGE…`: a recorded server whose lanes sleep for each row.

The model, its answers and everything around it are real. What other programs take of the cores changes little.
"""

import random
import threading
import time

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.benchmarks.plan.recorded_server import RecordedBatcher
from fuseline.serve.backends.base import Backend
from fuseline.serve.commands.serve_command import main
from tests.fakes.backends import WrappedBackend, opening

ROW_S = 0.015


class SleepingBackend(WrappedBackend):
    """A real backend whose lanes each take `ROW_S` for a row, give or take a tenth."""

    def __init__(self, real: Backend) -> None:
        super().__init__(real)
        self._random = random.Random(0)
        self._one_at_a_time = threading.Lock()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        end = time.monotonic() + ROW_S * len(pixels) * self._random.uniform(0.9, 1.1)
        with self._one_at_a_time:
            logits = super().infer(pixels)
        time.sleep(max(0.0, end - time.monotonic()))
        return logits


if __name__ == "__main__":
    fuseline.serve.model.open_backend = opening(SleepingBackend)
    fuseline.serve.model.Batcher = RecordedBatcher
    main()
