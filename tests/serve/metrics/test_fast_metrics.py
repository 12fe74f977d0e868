"""The fast metrics show what prometheus_client's own counters and histograms would."""

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

from fuseline.serve.metrics.fast_metrics import Counter, Histogram

BOUNDS = (0.001, 0.5, 1, 2.5)


def shown(registry):
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created{" not in line]


def test_a_scrape_shows_the_same_as_of_the_library_itself():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("answers", "Answers.", ["code"], registry=ours)
    their_counter = prometheus_client.Counter("answers", "Answers.", ["code"], registry=theirs)
    histogram = Histogram("seconds", "Seconds.", ["model"], bounds=BOUNDS, registry=ours)
    their_histogram = prometheus_client.Histogram("seconds", "Seconds.", ["model"], buckets=BOUNDS, registry=theirs)
    for code, number in (("OK", 3), ("INTERNAL", 1), ("OK", 2)):
        counter.labels(code).add(number)
        their_counter.labels(code).inc(number)
    for model, value in (("a", 0.0), ("a", 0.001), ("a", 0.0011), ("b", 1), ("a", 2.5), ("a", 100)):
        histogram.labels(model).observe(value)
        their_histogram.labels(model).observe(value)
    assert shown(ours) == shown(theirs)
    assert counter.counts() == {("OK",): 5, ("INTERNAL",): 1}
