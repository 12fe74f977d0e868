"""`python -m tests.benchmarks.serving.steady_server MILLISECONDS ...`: `fuseline serve` whose calls take so long.

The model, its answers and everything around it are real; each call then sleeps until its time is over.
"""

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend
from fuseline.serve.commands.serve_command import main


class SteadyBackend:
    """A real backend whose every call takes `call_s`, if it isn't slower by itself."""

    def __init__(self, real: Backend, call_s: float) -> None:
        self._real, self._call_s = real, call_s
        self.name, self.precision, self.device, self.buckets = real.name, real.precision, real.device, real.buckets

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        end = time.monotonic() + self._call_s
        logits = self._real.infer(pixels)
        time.sleep(max(0.0, end - time.monotonic()))
        return logits

    def close(self) -> None:
        self._real.close()


def _steady(call_s: float) -> Any:
    def opened(*arguments: Any, **options: Any) -> tuple[SteadyBackend, str]:
        real, reason = open_backend(*arguments, **options)
        return SteadyBackend(real, call_s), reason

    return opened


if __name__ == "__main__":
    fuseline.serve.model.open_backend = _steady(float(sys.argv.pop(1)) / 1e3)
    main()
