import numpy as np
import pytest

from fuseline.benchmarks.harness.latency_histogram import decoded, encoded, histogram_of, percentiles_ms

LATENCY_S = np.random.default_rng(0).lognormal(-5, 1, 20_000)


def test_percentiles_are_within_a_thousandth() -> None:
    found = percentiles_ms(histogram_of(LATENCY_S))
    exact = 1e3 * np.percentile(LATENCY_S, (50, 90, 99, 99.9, 100), method="higher")
    assert list(found) == ["p50", "p90", "p99", "p999", "max"]
    assert list(found.values()) == pytest.approx(exact, rel=2e-3)


def test_the_encoded_form_holds_the_same_latencies() -> None:
    histogram = histogram_of(LATENCY_S)
    again = decoded(encoded(histogram))
    assert again.get_total_count() == 20_000
    assert percentiles_ms(again) == percentiles_ms(histogram)


def test_above_an_hour_is_an_hour() -> None:
    assert percentiles_ms(histogram_of(np.array([1e6])))["max"] == pytest.approx(3_600_000, rel=1e-3)
