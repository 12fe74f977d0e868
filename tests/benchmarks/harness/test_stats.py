import pytest

from fuseline.benchmarks.harness.stats import pair_ratios, spread_of


def test_median_and_quartiles_are_interpolated_linearly() -> None:
    spread = spread_of([4.0, 1.0, 3.0, 2.0])
    assert (spread.lower_quartile, spread.median, spread.upper_quartile, spread.repeats) == (1.75, 2.5, 3.25, 4)


def test_one_repeat_is_its_own_quartiles() -> None:
    spread = spread_of([7.0])
    assert (spread.lower_quartile, spread.median, spread.upper_quartile) == (7.0, 7.0, 7.0)


def test_a_spread_is_written_to_three_digits_or_as_asked() -> None:
    assert f"{spread_of([1234.5])} {spread_of([0.98765])}" == "1234 (1234 to 1234) 0.988 (0.988 to 0.988)"
    assert f"{spread_of([1.0, 2.0, 3.0]):.2f}" == "2.00 (1.50 to 2.50)"


def test_no_repeats_have_no_median() -> None:
    with pytest.raises(ValueError, match="no repeat"):
        spread_of([])


def test_ratios_are_taken_within_a_round() -> None:
    # The machine ran at half its speed in the second round; the ratio of the medians would be 2.67.
    baseline, twice_as_fast = [10.0, 5.0, 10.0], [20.0, 10.0, 20.0]
    assert pair_ratios(twice_as_fast, baseline) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("values", "baselines"), [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0], [-1.0])])
def test_values_that_cannot_be_paired_are_refused(values: list[float], baselines: list[float]) -> None:
    with pytest.raises(ValueError, match=r"paired|above 0"):
        pair_ratios(values, baselines)
