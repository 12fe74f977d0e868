"""How long what one process tells another of a span is. It is known where OpenTelemetry isn't installed."""

TRACE_ID_BYTES, SPAN_ID_BYTES = 16, 8

SPAN_BYTES = TRACE_ID_BYTES + SPAN_ID_BYTES + 1
"""Number of bytes by which another process knows a span: the ids of its trace and of itself, and its flags."""
