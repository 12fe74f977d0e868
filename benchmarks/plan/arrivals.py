"""What comes: Poisson arrivals, the same with a burst, or those of a trace; whole, or a replica's share of them."""

import re
import reprlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.plan.simulation import Arrivals
from fuseline.benchmarks.plan.trace import Recorded

_PEAK = 50
"""Requests in a row by which a trace's peak is told."""
_BURST = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*[x×]\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Arrivals that are simulated in one go."""

    arrivals: Arrivals
    counted: NDArray[np.bool_]
    """(n,): whose latencies count: not those that come while queues are still emptier than they usually are."""


class Load(Protocol):
    """Arrivals at a whole fleet."""

    @property
    def rate_per_s(self) -> float:
        """Requests a second, in the long run."""

    @property
    def pictures_per_s(self) -> float:
        """Pictures a second, in the long run."""

    @property
    def peak_pictures_per_s(self) -> float:
        """Pictures a second when most come."""

    def least_pictures_per_s(self, share: float, limit_s: float) -> float:
        """Return pictures a second below which a fleet can't answer that share of what counts within that time."""

    @property
    def rows(self) -> int:
        """Number of pictures of the largest request."""

    @property
    def counted_per_s(self) -> float:
        """Requests a second of those whose latencies count."""

    def requests(self, share: float, lead: int, least: int) -> int:
        """Return about how many requests a stretch has."""

    def stretch(self, share: float, factor: float, lead: int, least: int, seed: int) -> Stretch:
        """Return arrivals at a `share` (0 to 1) of the fleet, `factor` times as dense as told; equal for equal seeds.

        `lead` come before those that count, which are `least` unless the load itself says how many.
        """


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals that don't depend on each other, as of many clients."""

    rate_per_s: float
    """Requests a second."""
    rows: int = 1

    @property
    def pictures_per_s(self) -> float:
        return self.rate_per_s * self.rows

    @property
    def peak_pictures_per_s(self) -> float:
        return self.pictures_per_s

    def least_pictures_per_s(self, share: float, limit_s: float) -> float:  # noqa: ARG002
        return self.pictures_per_s

    @property
    def counted_per_s(self) -> float:
        return self.rate_per_s

    def requests(self, share: float, lead: int, least: int) -> int:  # noqa: ARG002
        return lead + least

    def stretch(self, share: float, factor: float, lead: int, least: int, seed: int) -> Stretch:
        gaps = np.random.default_rng(seed).standard_exponential(lead + least)
        seconds = np.cumsum(gaps) / (self.rate_per_s * share * factor)
        return Stretch(_of_rows(seconds, self.rows), np.arange(len(seconds)) >= lead)


@dataclass(frozen=True, slots=True)
class Burst:
    """Poisson arrivals whose rate is `times` as large for `seconds`; the burst's own requests count."""

    rate_per_s: float
    """Requests a second before and after the burst."""
    rows: int
    times: float
    seconds: float

    @property
    def pictures_per_s(self) -> float:
        return self.rate_per_s * self.rows

    @property
    def peak_pictures_per_s(self) -> float:
        return self.times * self.pictures_per_s

    def least_pictures_per_s(self, share: float, limit_s: float) -> float:
        # What has come until `share` of the burst is over has to be computed `limit_s` after that.
        burst = self.peak_pictures_per_s * share * self.seconds / (share * self.seconds + limit_s)
        return max(self.pictures_per_s, burst)

    @property
    def counted_per_s(self) -> float:
        return self.times * self.rate_per_s

    def requests(self, share: float, lead: int, least: int) -> int:  # noqa: ARG002
        return lead + round(self.rate_per_s * share * self.times * self.seconds)

    def stretch(self, share: float, factor: float, lead: int, least: int, seed: int) -> Stretch:  # noqa: ARG002
        random, rate = np.random.default_rng(seed), self.rate_per_s * share * factor
        begin = lead / rate
        # While the burst's last ones are answered others come; 2 s is what a queue holds at most unless told otherwise.
        end, after = begin + self.seconds, min(2.0, self.seconds)
        parts = [
            random.uniform(start, stop, random.poisson(rate * times * (stop - start)))
            for start, stop, times in ((0.0, begin, 1.0), (begin, end, self.times), (end, end + after, 1.0))
        ]
        seconds = np.sort(np.concatenate(parts))
        counted = (seconds >= begin) & (seconds < end)
        if not counted.any():
            seconds, counted = np.array([begin]), np.ones(1, np.bool_)
        return Stretch(_of_rows(seconds, self.rows), counted)


@dataclass(frozen=True, slots=True)
class Replay:
    """Arrivals as a trace has them. A share of the fleet gets each with that probability; all count."""

    recorded: Recorded
    whole_rate_per_s: float
    """Requests a second of the whole trace."""
    whole_pictures_per_s: float

    @property
    def rate_per_s(self) -> float:
        return self.whole_rate_per_s

    @property
    def pictures_per_s(self) -> float:
        return self.whole_pictures_per_s

    @property
    def peak_pictures_per_s(self) -> float:
        seconds, pictures = self.recorded.seconds, np.cumsum(self.recorded.rows)
        window = min(_PEAK, len(seconds)) - 1
        lasted = seconds[window:] - seconds[:-window]
        return float(np.max((pictures[window:] - pictures[:-window]) / np.maximum(lasted, 1e-9)))

    def least_pictures_per_s(self, share: float, limit_s: float) -> float:  # noqa: ARG002
        return self.pictures_per_s

    @property
    def rows(self) -> int:
        return int(self.recorded.rows.max())

    @property
    def counted_per_s(self) -> float:
        return float(len(self.recorded.seconds) / self.recorded.seconds[-1])

    def requests(self, share: float, lead: int, least: int) -> int:  # noqa: ARG002
        return round(len(self.recorded.seconds) * share)

    def stretch(self, share: float, factor: float, lead: int, least: int, seed: int) -> Stretch:  # noqa: ARG002
        seconds = self.recorded.seconds / factor
        kept = np.random.default_rng(seed).random(len(seconds)) < share
        if not kept.any():
            kept[0] = True
        return Stretch(Arrivals(seconds[kept], self.recorded.rows[kept]), np.ones(int(kept.sum()), np.bool_))


def replay_of(recorded: Recorded, most: int | None = None) -> Replay:
    """Return the arrivals of `recorded`, or of the `most` requests in a row that come in the shortest time."""
    seconds, rows = recorded.seconds, recorded.rows
    rates = len(seconds) / seconds[-1], rows.sum() / seconds[-1]
    if most is not None and most < len(seconds):
        first = int(np.argmin(seconds[most - 1 :] - seconds[: len(seconds) - most + 1]))
        recorded = Recorded(seconds[first : first + most] - seconds[first], rows[first : first + most])
    return Replay(recorded, float(rates[0]), float(rates[1]))


def burst_from_text(text: str) -> tuple[float, float]:
    """Return times and seconds of a burst such as `3x/2s`.

    Raises:
        ValueError: `text` has another form, or is no burst.
    """
    found = _BURST.fullmatch(text.strip())
    times, seconds = (float(found[1]), float(found[2]) * (0.001 if found[3] == "ms" else 1)) if found else (0.0, 0.0)
    if not (1 < times <= 1000 and 0 < seconds <= 3600):
        raise ValueError(
            f"{reprlib.repr(text)} is no burst; expected such as 3x/2s: 3 times the rate for 2 seconds "
            "(above 1 up to 1000 times, for up to 3600 s)"
        )
    return times, seconds


def _of_rows(seconds: NDArray[np.float64], rows: int) -> Arrivals:
    return Arrivals(seconds, np.full(len(seconds), rows, np.int32))
