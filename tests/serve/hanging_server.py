"""`python -m serve` with a backend that hangs for ever on a white picture, and says so in a line on stdout.

It hangs on the event loop, on which so fast a backend is called; with `--in-thread` in the batcher's thread.
"""

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend
from fuseline.serve.commands.serve_command import main


class HangingBackend:
    def __init__(self, real: Backend) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (pixels == 255).all():
            print("hanging", flush=True)
            threading.Event().wait()
        return self._real.infer(pixels)


def open_hanging(*args: Any, **kwargs: Any) -> tuple[HangingBackend, str]:
    real, reason = open_backend(*args, **kwargs)
    return HangingBackend(real), reason


if __name__ == "__main__":
    if "--in-thread" in sys.argv:
        sys.argv.remove("--in-thread")
        fuseline.serve.model.INLINE_BELOW_MS = 0.0
    else:
        fuseline.serve.model.INLINE_BELOW_MS = math.inf
    fuseline.serve.model.open_backend = open_hanging
    main()
