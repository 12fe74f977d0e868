import numpy as np
import pytest

from fuseline.benchmarks.plan.arrivals import Burst, Poisson, burst_from_text, replay_of
from fuseline.benchmarks.plan.trace import Recorded


def test_poisson_arrivals_have_the_rate_the_spread_and_the_pictures_of_a_share() -> None:
    stretch = Poisson(1000.0, rows=4).stretch(0.25, 2.0, lead=1000, least=40_000, seed=1)
    seconds = stretch.arrivals.seconds
    gaps = np.diff(seconds)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.03)
    assert (gaps >= 0).all()
    assert set(stretch.arrivals.rows.tolist()) == {4}
    assert stretch.counted.tolist() == [False] * 1000 + [True] * 40_000


def test_a_bursts_own_requests_count_and_come_so_many_times_as_often() -> None:
    burst = Burst(1000.0, 1, times=3.0, seconds=2.0)
    stretch = burst.stretch(0.5, 1.0, lead=2000, least=10, seed=2)
    within = stretch.arrivals.seconds[stretch.counted]
    assert len(within) == pytest.approx(0.5 * 3 * 1000 * 2, rel=0.06)
    assert (within[0], within[-1]) == (pytest.approx(4.0, abs=0.02), pytest.approx(6.0, abs=0.02))
    before = stretch.arrivals.seconds < 4.0
    assert before.sum() == pytest.approx(2000, rel=0.08)
    assert not stretch.counted[before].any()
    assert stretch.arrivals.seconds[-1] > 7.5
    assert (burst.rate_per_s, burst.counted_per_s) == (1000.0, 3000.0)


def test_a_burst_needs_less_than_its_rate_where_answers_may_come_after_it() -> None:
    burst = Burst(100.0, 1, times=10.0, seconds=1.0)
    assert burst.least_pictures_per_s(1.0, 1.0) == pytest.approx(500)
    assert burst.least_pictures_per_s(0.99, 0.001) == pytest.approx(999, rel=0.001)
    assert burst.least_pictures_per_s(0.99, 1e9) == 100.0


def test_a_trace_is_replayed_as_it_is_denser_or_by_a_share() -> None:
    random = np.random.default_rng(3)
    recorded = Recorded(np.sort(random.uniform(0, 10, 5000)) - 0.0, random.integers(1, 5, 5000).astype(np.int32))
    recorded = Recorded(recorded.seconds - recorded.seconds[0], recorded.rows)
    replay = replay_of(recorded)
    whole = replay.stretch(1.0, 1.0, 0, 0, seed=0)
    np.testing.assert_array_equal(whole.arrivals.seconds, recorded.seconds)
    np.testing.assert_array_equal(whole.arrivals.rows, recorded.rows)
    assert whole.counted.all()
    np.testing.assert_allclose(replay.stretch(1.0, 2.0, 0, 0, seed=0).arrivals.seconds, recorded.seconds / 2)
    quarter = replay.stretch(0.25, 1.0, 0, 0, seed=0).arrivals
    assert len(quarter.seconds) == pytest.approx(1250, rel=0.1)
    assert set(quarter.seconds) < set(recorded.seconds)
    assert replay.pictures_per_s == pytest.approx(recorded.rows.sum() / recorded.seconds[-1])
    assert replay.rows == 4


def test_a_long_trace_is_planned_by_its_busiest_part_and_told_by_its_whole() -> None:
    seconds = np.concatenate([np.arange(0, 100, 1.0), np.arange(100, 110, 0.1), np.arange(110, 200, 1.0)])
    recorded = Recorded(seconds, np.ones(len(seconds), np.int32))
    busiest = replay_of(recorded, 60)
    assert len(busiest.recorded.seconds) == 60
    assert busiest.counted_per_s == pytest.approx(10, rel=0.05)
    assert busiest.rate_per_s == pytest.approx(len(seconds) / 199)
    assert busiest.peak_pictures_per_s == pytest.approx(10, rel=0.05)
    assert busiest.recorded.seconds[0] == 0


@pytest.mark.parametrize("load", [Poisson(500.0), Burst(500.0, 2, 3.0, 0.5)])
def test_equal_seeds_give_equal_arrivals_and_others_do_not(load: Poisson | Burst) -> None:
    one, same, other = (load.stretch(0.5, 1.1, 10, 100, seed).arrivals.seconds.tolist() for seed in (7, 7, 8))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("text", "burst"), [("3x/2s", (3.0, 2.0)), ("1.5×/500ms", (1.5, 0.5)), (" 10 x / 60 ", (10.0, 60.0))]
)
def test_a_burst_is_written_as_times_and_seconds(text: str, burst: tuple[float, float]) -> None:
    assert burst_from_text(text) == burst


@pytest.mark.parametrize(
    "text", ["", "3x", "3/2s", "x/2s", "1x/2s", "0.5x/2s", "3x/0s", "3x/2h", "nanx/2s", "3x/1e9s", "2000x/1s"]
)
def test_what_is_no_burst_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no burst; expected such as 3x/2s"):
        burst_from_text(text)
