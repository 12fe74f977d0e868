"""What is counted of the log of a process."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.process.server_log import server_log


def show_log(registry: CollectorRegistry) -> None:
    """Show in `registry` how many lines of this process's log were dropped."""
    registry.register(_LogCollector())


class _LogCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        log = server_log()
        yield CounterMetricFamily(
            "fuseline_log_dropped_lines",
            "Lines of the log that were dropped, as whoever reads it is too slow or its disk is full.",
            value=0 if log is None else log.writer.dropped,
        )
