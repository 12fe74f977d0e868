"""Metrics as text: Prometheus' own format, or OpenMetrics, which alone has exemplars."""

import re

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

_TRITONS_COUNTER = re.compile(rb"^(# TYPE nv_\w+) untyped$", re.MULTILINE)

_OPEN_METRICS = "application/openmetrics-text"
_TEXT = "text/plain"


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


def prefers_open_metrics(accept: str) -> bool:
    """Return whether a client with this header Accept takes OpenMetrics, and no less gladly than the text format.

    One that doesn't name it, as `*/*`, gets the text format, which every parser reads.
    """
    weights = {_TEXT: 0.0, _OPEN_METRICS: 0.0}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip() for piece in part.lower().split(";"))
        if media_type in weights:
            weights[media_type] = max(weights[media_type], _weight(parameters))
    return weights[_OPEN_METRICS] > 0 and weights[_OPEN_METRICS] >= weights[_TEXT]


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
