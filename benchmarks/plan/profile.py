"""A measured profile: how long batches take, and what else a request costs, for `simulate` to run a server on.

The file is JSON. One that was measured has many samples for each bucket, in the order in which they were measured; of a
machine that isn't there a profile can be written by hand, with one known figure for each.
"""

import json
import statistics
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fuseline.benchmarks.harness.results import write_json
from fuseline.serve.batching.policy import MOST_LANES
from fuseline.serve.broken_rules import broken_rules
from fuseline.serve.errors import InputError

FORMAT = 1
MAX_PROFILE_BYTES = 32 * 2**20
MOST_SAMPLES = 20_000

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
_Duration = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
_Samples = Annotated[tuple[_Duration, ...], Field(min_length=1, max_length=MOST_SAMPLES)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BucketSeconds(_Part):
    """How long a batch of one size takes, from its start until the event loop hears of its end."""

    rows: Annotated[int, Field(ge=1, le=4096)]
    """Number of rows of the batch, after padding."""
    seconds: _Samples
    """Seconds of batches while the other lanes work too, in the order of measuring, without what requests took of the
    cores meanwhile."""
    idle_ratio: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    """Multiple of that which a batch takes while no other lane works: 1 for lanes that don't slow each other, near
    1 / lanes for those of one device."""

    @property
    def median(self) -> float:
        """Median of `seconds`."""
        return statistics.median(self.seconds)


class FrontEnd(_Part):
    """What a request costs besides its batch."""

    loop_seconds: Seconds
    """Seconds of the event loop for a request, its answer included: others wait for so long."""
    loop_seconds_per_mb: Seconds = 0.0
    """The same for each MB (10^6 bytes) of a request."""
    cpu_seconds: Seconds
    """CPU seconds of all of the server's threads but the lanes' for a request, `loop_seconds` included. Where lanes
    compute on the CPU and keep all cores busy, it is them who wait for so long."""
    cpu_seconds_per_mb: Seconds = 0.0
    """The same for each MB of a request."""
    request_mb: Annotated[float, Field(ge=0, le=2047, allow_inf_nan=False)]
    """MB of a request of one row, as it was measured; one of more rows has so many times as much."""
    client_cpu_seconds: Seconds = 0.0
    """CPU seconds of the client for a request, where it shared the cores with the server; 0: it had its own."""
    transport_seconds: Seconds
    """Seconds that no queue explains, between the client and the event loop and back."""
    busy_transport_seconds: Seconds = 0.0
    """Seconds by which that takes longer while lanes compute on all cores: each thread on the way waits for one."""


class Profile(_Part):
    """One model in one runtime on one machine."""

    format: Literal[1] = FORMAT
    model: _Name
    machine: _Name
    """The machine, in words."""
    backend: _Name
    precision: _Name
    device: Literal["CPU", "GPU"]
    measured: date
    lanes: Annotated[int, Field(ge=1, le=MOST_LANES)]
    """Number of batches that are computed side by side."""
    cores: Annotated[int, Field(ge=1, le=4096)]
    """Number of cores that the server may use."""
    buckets: Annotated[tuple[BucketSeconds, ...], Field(min_length=1, max_length=64)]
    """Batches of the lanes, by ascending number of rows."""
    alone: Annotated[tuple[BucketSeconds, ...], Field(max_length=64)] = ()
    """Batches that have all cores to themselves while no lane works: the first of the same numbers of rows."""
    unsaturated_rows: Annotated[int, Field(ge=1, le=4096)] | None = None
    """See `BatchPolicy.unsaturated_rows`."""
    inline_below_ms: Seconds = 0.0
    """See `BatchPolicy.inline_below_ms`."""
    front_end: FrontEnd
    memory_bytes: Annotated[int, Field(ge=1, le=2**50)]
    """Largest resident set of the server."""
    start_seconds: Seconds
    """Seconds from a server's start until it is ready."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        rows = [bucket.rows for bucket in self.buckets]
        if any(low >= high for low, high in pairwise(rows)):
            raise ValueError(f"buckets of {rows} rows: expected each larger than the one before")
        alone = [bucket.rows for bucket in self.alone]
        if alone != rows[: len(alone)]:
            raise ValueError(f"alone has batches of {alone} rows: expected the first of {rows}")
        if self.alone and self.lanes == 1:
            raise ValueError("alone was given with 1 lane, which has all cores anyway; leave it out")
        return self

    @property
    def max_batch(self) -> int:
        """Number of rows of the largest batch."""
        return self.buckets[-1].rows

    @property
    def rows_per_s(self) -> float:
        """Rows a second that all lanes compute in the bucket that is best for that, by its mean time."""
        return max(self.lanes * bucket.rows / statistics.fmean(bucket.seconds) for bucket in self.buckets)


def load_profile(path: Path) -> Profile:
    """Read the profile in `path`.

    Raises:
        InputError: there is none, or it breaks a rule; one line says which.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"the profile {path} can't be read: {error.strerror}") from error
    if len(data) > MAX_PROFILE_BYTES:
        raise InputError(f"the profile {path} has more than {MAX_PROFILE_BYTES} bytes; no profile does")
    return profile_from_json(data, str(path))


def profile_from_json(data: bytes, name: str) -> Profile:
    """Return the profile that is written in `data`; `name` is what errors call it.

    Raises:
        InputError: it is no JSON or breaks a rule; one line says which.
    """
    try:
        return Profile.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{name} is no profile of format {FORMAT}: {broken_rules(error)}") from error


def save_profile(path: Path, profile: Profile) -> None:
    """Write `profile` to `path`; an older file is replaced whole.

    Raises:
        InputError: it can't be written.
    """
    try:
        write_json(path, json.loads(profile.model_dump_json()))
    except OSError as error:
        raise InputError(f"the profile {path} can't be written: {error.strerror}") from error
