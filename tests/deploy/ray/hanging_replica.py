"""A replica whose event loop hangs for ever on a white picture."""

import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve

import fuseline.serve.model
import fuseline.serve.model_source
from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.application import deployment_options
from fuseline.deploy.ray.replica import Replica
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.model import load_model
from tests.fakes.backends import WrappedBackend, opening

WHITE = np.full((1, 32, 32, 3), 255, np.uint8)


class HangingBackend(WrappedBackend):
    """Hangs on a batch that has a white picture."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (pixels == 255).all(axis=(1, 2, 3)).any():
            threading.Event().wait()
        return super().infer(pixels)


class HangingReplica(Replica):
    """As `Replica`, with that backend, called on the event loop."""

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]
        load = partial(load_model, cpu=CpuBatching(inline_below_ms=math.inf))
        fuseline.serve.model_source.load_model = load  # type: ignore[assignment]
        fuseline.serve.model.open_backend = opening(HangingBackend)
        await super().__init__(args)


def run_hanging(package: Path, **args: Any) -> None:
    """Serve `package` by such replicas, as the application `model`."""
    its = AppArgs.model_validate({"package": package, "backend": "onnxruntime", "backend_timeout_s": 2} | args)
    serve.run(serve.deployment(HangingReplica).options(**deployment_options(its)).bind(its), name="model")
