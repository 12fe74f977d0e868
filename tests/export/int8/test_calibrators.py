"""What each calibrator makes of distributions whose answer is known."""

import numpy as np
import pytest

from fuseline.export.int8.calibrators import CALIBRATORS, PERCENTILE, entropy, min_max, percentile
from fuseline.export.int8.histograms import BINS, Histogram


def histogram_of(values: np.ndarray) -> Histogram:
    limit = 2 * max(float(np.abs(values).max()), 1e-6)
    counts, _ = np.histogram(np.abs(values), BINS, range=(0, limit))
    return Histogram(counts.astype(np.int64), limit, float(values.min()), float(values.max()))


def rms_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.sqrt(np.mean((np.clip(np.round(values / step) * step, low, high) - values) ** 2)))


GAUSSIAN = np.random.default_rng(0).normal(size=200_000)


def test_min_max_keeps_everything() -> None:
    kept = min_max(histogram_of(GAUSSIAN))
    assert (kept.low, kept.high) == (GAUSSIAN.min(), GAUSSIAN.max())


def test_a_percentile_leaves_out_its_share_and_no_more() -> None:
    kept = percentile(histogram_of(GAUSSIAN))
    left_out = np.mean(np.clip(GAUSSIAN, kept.low, kept.high) != GAUSSIAN)
    assert 0.5 * (1 - PERCENTILE / 100) <= left_out <= 1 - PERCENTILE / 100


@pytest.mark.parametrize("calibrator", [entropy, percentile])
def test_a_few_outliers_do_not_take_the_levels_of_the_rest(calibrator) -> None:
    values = np.concatenate([np.maximum(GAUSSIAN, 0), [300.0]])
    kept = calibrator(histogram_of(values))
    assert kept.low == 0
    assert 2 < kept.high < 30
    plain = min_max(histogram_of(values))
    assert rms_error(values[:-1], kept.low, kept.high) < 0.2 * rms_error(values[:-1], plain.low, plain.high)


def test_entropy_neither_clips_a_uniform_distribution_nor_drowns_in_a_relus_zeros() -> None:
    uniform = np.random.default_rng(1).uniform(0, 1, 200_000)
    assert entropy(histogram_of(uniform)).high > 0.95
    half = np.maximum(GAUSSIAN, 0)
    without = half[half > 0]
    assert entropy(histogram_of(half)).high == pytest.approx(entropy(histogram_of(without)).high, rel=0.1)


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
@pytest.mark.parametrize("values", [np.zeros(100), np.full(100, 3.0), np.array([-2.0, 5.0]), -np.abs(GAUSSIAN)])
def test_every_range_holds_zero_and_stays_within_what_was_seen(name: str, values: np.ndarray) -> None:
    kept = CALIBRATORS[name](histogram_of(values))
    assert min(values.min(), 0) <= kept.low <= 0 <= kept.high <= max(values.max(), 0)
    assert kept.high > 0 or kept.low < 0 or not values.any()
