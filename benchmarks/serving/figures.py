"""What one stretch against a running server measured."""

from dataclasses import dataclass, field

from fuseline.benchmarks.load.server_watch import Batches

GENERATOR_LIMIT = 0.8
"""Above this share of one core the generator itself may be what limits the throughput."""
_LAG_SHARE_LIMIT = 0.1
_LAG_LIMIT_MS = 1.0


@dataclass(frozen=True, slots=True)
class ServingFigures:
    """One concurrency, one stretch."""

    concurrency: int
    images_per_request: int
    requests_per_s: float
    images_per_s: float
    latency_ms: dict[str, float]
    """Percentiles over every request of the window: `fuseline.benchmarks.harness.latency_histogram.percentiles_ms`."""
    requests: int
    window_s: float
    server_cpu_ms_per_request: float | None
    generator_cpu_share: float
    errors: dict[str, int] = field(default_factory=dict)
    goodput_per_s: float | None = None
    """Requests answered within the deadline; None without one."""
    batches: Batches | None = None
    latency_histogram: str = ""
    """All latencies, by `fuseline.benchmarks.harness.latency_histogram.encoded`."""

    @property
    def load(self) -> str:
        """The load in words."""
        return f"{self.concurrency} under way"

    @property
    def generator_was_busy(self) -> bool:
        """Whether the generator's CPU may have been the limit."""
        return self.generator_cpu_share > GENERATOR_LIMIT


@dataclass(frozen=True, slots=True)
class OpenFigures:
    """One rate, one stretch."""

    rate_per_s: float
    """Requests that were due each second, answered or not."""
    images_per_request: int
    requests_per_s: float
    """Requests due in the window that were answered, however late, for each second of it."""
    images_per_s: float
    latency_ms: dict[str, float]
    """Latency from when a request was due; those unanswered count with how long they were waited for."""
    requests: int
    window_s: float
    send_lag_ms: dict[str, float]
    """Lag from when a request was due to when the generator sent it; part of the latency."""
    server_cpu_ms_per_request: float | None
    generator_cpu_share: float
    errors: dict[str, int] = field(default_factory=dict)
    goodput_per_s: float | None = None
    batches: Batches | None = None
    latency_histogram: str = ""

    @property
    def load(self) -> str:
        """The load in words."""
        return f"{self.rate_per_s:g}/s"

    @property
    def generator_was_busy(self) -> bool:
        """Whether the generator's CPU may have been the limit."""
        return self.generator_cpu_share > GENERATOR_LIMIT

    @property
    def was_sent_late(self) -> bool:
        """Whether the generator itself made much of the latency: over a tenth of its p99, and over 1 ms."""
        lag_ms = self.send_lag_ms["p99"]
        return lag_ms > _LAG_LIMIT_MS and lag_ms > _LAG_SHARE_LIMIT * self.latency_ms["p99"]
