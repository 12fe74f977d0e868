"""Traces of requests and batches, by OpenTelemetry where its variables are set and it is installed."""
