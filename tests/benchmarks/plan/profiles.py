"""Profiles written by hand, and arrivals."""

from datetime import date
from typing import Any

import numpy as np

from fuseline.benchmarks.plan.profile import BucketSeconds, FrontEnd, Profile
from fuseline.benchmarks.plan.simulation import Arrivals

FREE = FrontEnd(loop_seconds=0.0, cpu_seconds=0.0, request_mb=0.15, transport_seconds=0.0)


def profile_of(
    seconds: dict[int, float] | None = None, alone: dict[int, float] | None = None, **fields: Any
) -> Profile:
    """A profile of one lane, whose batches take `seconds` by bucket; `fields` are others of its own."""
    front_end = fields.pop("front_end", FREE)
    buckets = seconds or {1: 0.01}
    return Profile(
        **{
            "model": "net",
            "machine": "two cores",
            "backend": "onnxruntime",
            "precision": "fp32",
            "device": "CPU",
            "measured": date(2026, 11, 27),
            "lanes": 1,
            "cores": 2,
            "buckets": tuple(BucketSeconds(rows=rows, seconds=(s,)) for rows, s in buckets.items()),
            "alone": tuple(BucketSeconds(rows=rows, seconds=(s,)) for rows, s in (alone or {}).items()),
            "front_end": front_end,
            "memory_bytes": 10**9,
            "start_seconds": 3.0,
        }
        | fields
    )


LANES = profile_of(
    {1: 0.0165, 2: 0.0320, 3: 0.0475, 4: 0.0630},
    {1: 0.012, 2: 0.018, 3: 0.025},
    lanes=2,
    unsaturated_rows=2,
    front_end=FrontEnd(loop_seconds=0.0005, cpu_seconds=0.0007, request_mb=0.15, transport_seconds=0.0004),
)
"""About ResNet-18 at 224 x 224 on two cores."""


def poisson(rate_per_s: float, count: int, rows: int = 1, seed: int = 0) -> Arrivals:
    """`count` arrivals of a Poisson process."""
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return Arrivals(np.cumsum(gaps), np.full(count, rows, np.int32))


def at(*seconds: float, rows: int = 1) -> Arrivals:
    """Arrivals at these times."""
    return Arrivals(np.array(seconds), np.full(len(seconds), rows, np.int32))
