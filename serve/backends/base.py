"""What a backend is: a loaded model that turns a batch of pixels into logits."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class Backend(Protocol):
    """One model loaded into one runtime on one device.

    `infer` is called by one thread at a time, which need not be the one that made the backend.
    """

    name: str
    """`onnxruntime`, `openvino` or `tensorrt`."""

    precision: str
    """Precision of the artifact that is run: `fp32`, `fp16` or `int8`."""

    device: str
    """Where it runs, for people: `CPU`, or the GPU's name."""

    buckets: tuple[int, ...]
    """Batch sizes in rows, ascending, for which the backend is prepared; `infer` is called with no other."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits (rows, classes), float32, for `pixels` (rows, height, width, channels), uint8.

        The returned array belongs to the caller. Raises `fuseline.serve.errors.BackendError` when the runtime fails.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory. Calling it again does nothing."""
        ...


class BackendFacts(BaseModel):
    """The attributes of a `Backend` as a value, which can be sent to another process."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    name: str
    precision: str
    device: str
    buckets: tuple[int, ...]
