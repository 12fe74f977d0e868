"""`python -m tests.benchmarks.serving.steady_server MILLISECONDS ...`: `fuseline serve` whose calls take so long.

The model, its answers and everything around it are real; each call then sleeps until its time is over.
"""

import sys
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.serve.backends.base import Backend
from fuseline.serve.commands.serve_command import main
from tests.fakes.backends import WrappedBackend, opening


class SteadyBackend(WrappedBackend):
    """A real backend whose every call takes `call_s`, if it isn't slower by itself."""

    def __init__(self, real: Backend, call_s: float) -> None:
        super().__init__(real)
        self._call_s = call_s

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        end = time.monotonic() + self._call_s
        logits = super().infer(pixels)
        time.sleep(max(0.0, end - time.monotonic()))
        return logits


if __name__ == "__main__":
    call_s = float(sys.argv.pop(1)) / 1e3
    fuseline.serve.model.open_backend = opening(partial(SteadyBackend, call_s=call_s))
    main()
