"""`python -m serve` with a backend that hangs for ever on a white picture, and says so in a line on stdout.

It hangs on the event loop, on which so fast a backend is called; with `--in-thread` in the batcher's thread.
"""

import math
import sys
import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
import fuseline.serve.model_source
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.commands.serve_command import main
from fuseline.serve.model import load_model
from tests.fakes.backends import WrappedBackend, opening


class HangingBackend(WrappedBackend):
    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (pixels == 255).all():
            print("hanging", flush=True)
            threading.Event().wait()
        return super().infer(pixels)


if __name__ == "__main__":
    if "--in-thread" in sys.argv:
        sys.argv.remove("--in-thread")
        inline_below_ms = 0.0
    else:
        inline_below_ms = math.inf
    fuseline.serve.model_source.load_model = partial(load_model, cpu=CpuBatching(inline_below_ms=inline_below_ms))
    fuseline.serve.model.open_backend = opening(HangingBackend)
    main()
