"""Chooses how many batches a backend computes side by side: by measuring, on a CPU.

All threads of one instance meet after each layer, so whoever takes a core for a moment (gRPC, decoding, a neighbour)
holds all of them up. An instance with a core of its own loses only what was taken from it. On a quiet machine the two
compute about as many images/s, and there the measurement is made: lanes are chosen unless they cost something.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fuseline.serve.backends.base import Backend, Infer
from fuseline.serve.batching.policy import SLOW_CALL_SECONDS
from fuseline.serve.errors import BackendError
from fuseline.serve.lanes.warm_up import noise, run_once, side_by_side
from fuseline.serve.model_package import ModelPackage

MEASURE_SECONDS = 2.0
"""Longest time that measuring may take, opening the lanes included, as far as calls that began can be foreseen."""

MOST_CPU_LANES = 8
"""Largest number of lanes that is tried on a CPU: each has activations of its own."""

GPU_LANES = 2
"""While one batch is computed, the pixels of the next cross to the GPU."""

LEAST_SHARE = 0.95
"""Share of one instance's images/s from which on lanes are chosen; the rest is noise, or the price of being robust."""

_STRETCH_SECONDS = 0.1
_ROUNDS = 3


class LaneChoice(BaseModel):
    """How many batches are computed side by side, and what that rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: int
    reason: str
    """Reason for the number, for people."""
    images_per_s: dict[int, float] = {}
    """Images/s under load by number of lanes, measured at warm-up; 1 is one instance with all threads."""

    @property
    def line(self) -> str:
        """The choice in one line."""
        return f"{self.lanes} lane{'' if self.lanes == 1 else 's'}: {self.reason}"


def cpu_lane_counts(threads: int) -> tuple[int, ...]:
    """Return the numbers of lanes to try with `threads` threads in all, the largest first: powers of two from 2 on."""
    counts = (2**exponent for exponent in range(MOST_CPU_LANES.bit_length() - 1, 0, -1))
    return tuple(count for count in counts if count <= threads)


def open_gpu_lanes(backend: Backend, asked: int | None) -> tuple[LaneChoice, tuple[Infer, ...]]:
    """Open `asked` lanes on a GPU, or as many as it gains from if its memory suffices.

    Raises:
        BackendError: there is no memory for the lanes that were asked for.
    """
    if asked is not None:
        return _open_asked(backend, asked)
    try:
        lanes = backend.open_lanes(GPU_LANES)
    except BackendError as error:
        return LaneChoice(lanes=1, reason=f"a second batch in flight can't be had: {error}"), ()
    return LaneChoice(lanes=GPU_LANES, reason="copies to and from the GPU overlap with computing"), lanes


def open_cpu_lanes(
    backend: Backend, package: ModelPackage, asked: int | None, *, threads: int, max_rows: int
) -> tuple[LaneChoice, tuple[Infer, ...]]:
    """Open the lanes that serve best on a CPU with `threads` threads in all, or the number that was `asked` for.

    Both ways of computing are measured in turn, within `MEASURE_SECONDS`, on batches of at most `max_rows`. Where one
    instance is best there are no lanes.

    Raises:
        BackendError: the runtime failed.
    """
    if asked is not None:
        return _open_asked(backend, asked)
    counts = cpu_lane_counts(threads)
    if not counts:
        return LaneChoice(lanes=1, reason="one thread computes"), ()
    ends = time.monotonic() + MEASURE_SECONDS
    pixels = noise(max_rows, package)
    run_once([backend.infer], pixels[:1])
    row_seconds = _seconds(backend.infer, pixels[:1])
    if row_seconds < SLOW_CALL_SECONDS and _seconds(backend.infer, pixels) < SLOW_CALL_SECONDS:
        return LaneChoice(lanes=1, reason="a batch takes less than handing over to lanes would gain"), ()
    measured: dict[int, tuple[float, float]] = {}
    lanes: tuple[Infer, ...] = ()
    for place, count in enumerate(counts):
        left = (ends - time.monotonic()) / (len(counts) - place)
        if rows := _affordable_rows(row_seconds, count, left, max_rows):
            lanes = backend.open_lanes(count)
            measured[count] = _images_per_s(lanes, backend.infer, pixels[:rows], time.monotonic() + left)
    choice = best_choice(measured)
    if len(lanes) != choice.lanes:
        lanes = backend.open_lanes(choice.lanes if choice.lanes > 1 else 0)
    return choice, lanes


def best_choice(measured: Mapping[int, tuple[float, float]]) -> LaneChoice:
    """Return the best number of lanes by the images/s that were measured of so many and, in turn, of one instance.

    One instance is best if nothing was measured, or if lanes cost images/s.
    """
    if not measured:
        return LaneChoice(lanes=1, reason="measuring lanes would take too long")
    fastest = max(with_lanes for with_lanes, _ in measured.values())
    # Of those that are about as fast, the one with most lanes loses least to a neighbour.
    best = max(count for count, (with_lanes, _) in measured.items() if with_lanes >= LEAST_SHARE * fastest)
    with_lanes, with_one = measured[best]
    reason = f"under load {best} compute {with_lanes:.0f} images/s, one with all threads {with_one:.0f}"
    images_per_s = {1: with_one} | {count: rate for count, (rate, _) in measured.items()}
    return LaneChoice(
        lanes=best if with_lanes >= LEAST_SHARE * with_one else 1, reason=reason, images_per_s=images_per_s
    )


def _open_asked(backend: Backend, asked: int) -> tuple[LaneChoice, tuple[Infer, ...]]:
    """Open as many lanes as `--lanes` says; one is the backend as a whole."""
    return LaneChoice(lanes=asked, reason=f"--lanes {asked} was given"), backend.open_lanes(asked) if asked > 1 else ()


def _seconds(infer: Infer, pixels: NDArray[Any]) -> float:
    """Return the seconds of the fastest of a few calls."""
    return min(seconds for _ in range(_ROUNDS) for seconds, _ in run_once([infer], pixels))


def _affordable_rows(row_seconds: float, lanes: int, seconds: float, max_rows: int) -> int:
    """Return the rows of a call, a power of two, with which `lanes` can be measured in `seconds`; 0: not with one."""
    # A call for set-up and one that is measured, of the lanes and of the one instance.
    affordable = seconds / (2 * (lanes + 1) * row_seconds)
    rows = max_rows if affordable >= max_rows else max(0, int(affordable))
    return 2 ** (rows.bit_length() - 1) if rows else 0


def _images_per_s(lanes: Sequence[Infer], infer: Infer, pixels: NDArray[Any], ends: float) -> tuple[float, float]:
    """Return the images/s of `lanes` and of `infer` alone: the medians of rounds in turn, until about `ends`."""
    run_once(lanes, pixels)
    run_once([infer], pixels)
    with_lanes, with_one = [], []
    for _ in range(_ROUNDS):
        with_lanes.append(_rate(lanes, pixels))
        with_one.append(_rate([infer], pixels))
        if time.monotonic() >= ends:
            break
    return statistics.median(with_lanes), statistics.median(with_one)


def _rate(infers: Sequence[Infer], pixels: NDArray[Any]) -> float:
    """Return the images/s of `infers` under load for `_STRETCH_SECONDS`, or for one call of each."""
    began = time.monotonic()

    def calls(infer: Infer) -> int:
        count = 0
        while not count or time.monotonic() < began + _STRETCH_SECONDS:
            infer(pixels)
            count += 1
        return count

    count = sum(side_by_side([partial(calls, infer) for infer in infers]))
    return count * len(pixels) / (time.monotonic() - began)
