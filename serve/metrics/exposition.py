"""Metrics as text: Prometheus' own format, or OpenMetrics, which alone has exemplars."""

import re

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

_TRITONS_COUNTER = re.compile(rb"^(# TYPE nv_\w+) untyped$", re.MULTILINE)

OPEN_METRICS, TEXT = "application/openmetrics-text", "text/plain"
"""Media types of the two formats."""


def metrics_text(registry: CollectorRegistry, *, open_metrics: bool = False) -> bytes:
    """Return what `registry` holds now, in Prometheus' text format or in OpenMetrics.

    Only the former knows counters without `_total` at the end of their names, as Triton's are.
    """
    if open_metrics:
        text: bytes = generate_open_metrics(registry)  # type: ignore[no-untyped-call]
        return text
    return _TRITONS_COUNTER.sub(rb"\1 counter", generate_latest(registry))


def content_type(*, open_metrics: bool) -> str:
    """Return the media type of that text."""
    return OPEN_METRICS_TYPE if open_metrics else CONTENT_TYPE_LATEST
