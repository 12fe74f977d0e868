"""Defines a backend, a loaded model that turns a batch of images into logits, and the request to open one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict

from fuseline.serve.precision import Device

if TYPE_CHECKING:
    # A command that only needs the names of the backends does without numpy.
    import numpy as np
    from numpy.typing import NDArray

Infer: TypeAlias = "Callable[[NDArray[Any]], NDArray[np.float32]]"
"""Computes logits (rows, classes) of rows of the graph's input (rows, *row_shape), as the package's `InputSpec` says:
pixels, uint8 (rows, height, width, channels), or normalised floats (rows, channels, height, width)."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """How a backend is to load a package; a backend ignores the fields that it has no use for."""

    device: Device
    """Device to compute on."""
    buckets: tuple[int, ...]
    """Batch sizes in rows to prepare for, ascending."""
    precision: str = "auto"
    """A name of `fuseline.serve.precision.CHOICES`; `auto` is for the backend to choose."""
    threads: int = 0
    """Number of the runtime's CPU threads; 0 leaves it to the runtime."""
    engine_cache: Path | None = None
    """Folder for the engines that are built here; None: none is built."""


class Instance(Protocol):
    """What computes the batches of one model one at a time: a backend as a whole, or one of its lanes.

    `infer` is called by one thread at a time, which need not be the one that made the instance.
    """

    @property
    def name(self) -> str:
        """Name in `fuseline.serve.backends.registry`."""
        ...

    @property
    def precision(self) -> str:
        """Precision that it computes in: that of the artifact that is run, or `bf16`."""
        ...

    @property
    def device(self) -> str:
        """Device that it runs on, for people: `CPU`, or the GPU's name."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes in rows, ascending, for which it is prepared; `infer` is called with no other."""
        ...

    def infer(self, pixels: "NDArray[Any]") -> "NDArray[np.float32]":
        """Return logits (rows, classes), float32, for `pixels` (rows, *row_shape), normalised or not; see `Infer`.

        The returned array belongs to the caller. Raises `fuseline.serve.errors.BackendError` when the runtime fails.
        """
        ...


class Backend(Instance, Protocol):
    """One model loaded into one runtime on one device."""

    @property
    def half_share(self) -> float | None:
        """Share of the convolutions and matrix products, 0 to 1, that the runtime itself says it computes in BF16; None
        where it wasn't asked to.
        """
        ...

    def open_lanes(self, count: int) -> "tuple[Infer, ...]":
        """Return `count` functions that compute as `infer` does, with its buckets.

        Each is called by one thread at a time, side by side with the others; no call of `infer` overlaps with theirs.
        Lanes that were opened before are called no more, and may be released.
        Raises `fuseline.serve.errors.BackendError` when there is no memory for them.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory. Calling it again does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class BackendLane:
    """One of a backend's lanes, or the whole of it, with the batch sizes that it gets. An `Instance`."""

    name: str
    precision: str
    device: str
    buckets: tuple[int, ...]
    infer: Infer


class BackendFacts(BaseModel):
    """The attributes of a `Backend` as a value, which can be sent to another process."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    name: str
    precision: str
    device: str
    buckets: tuple[int, ...]
    half_share: float | None = None
