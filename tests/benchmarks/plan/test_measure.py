import sys
from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.plan.batch_record import BATCH, BatchRecord, CallSeconds
from fuseline.benchmarks.plan.closed_loop import closed_loop_rate
from fuseline.benchmarks.plan.measure import FULL_CALLERS, _bucket, _scatter, calibrated, measure_profile, overlaps
from fuseline.benchmarks.plan.measured_servers import busy_seconds, measured_servers, open_arrivals
from fuseline.benchmarks.plan.profile import load_profile, save_profile
from fuseline.benchmarks.plan.simulation import Arrivals, ServingOptions, simulate
from fuseline.serve.errors import BackendError, InputError, PackageError
from tests.benchmarks.plan.profiles import LANES, profile_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="profiles are measured on Linux")


def test_a_profile_is_measured_on_a_real_server(colours: Path, tmp_path: Path) -> None:
    flags = ("--backend", "onnxruntime", "--threads", "1", "--max-batch", "2")
    profile = measure_profile(colours, seconds=1.5, flags=flags)
    assert (profile.model, profile.backend, profile.precision, profile.device) == (
        "colours",
        "onnxruntime",
        "fp32",
        "CPU",
    )
    assert [bucket.rows for bucket in profile.buckets] == [1, 2]
    assert profile.lanes == 1
    # A model that costs nothing: its batches are computed on the event loop, and handling a request is what takes time.
    assert profile.inline_below_ms == 1.0
    assert max(bucket.median for bucket in profile.buckets) < 0.05
    front_end = profile.front_end
    assert (
        0 < front_end.loop_seconds <= front_end.cpu_seconds + front_end.cpu_seconds_per_mb * front_end.request_mb < 0.1
    )
    assert front_end.loop_seconds_per_mb <= front_end.cpu_seconds_per_mb
    assert front_end.client_cpu_seconds > 0
    assert profile.memory_bytes > 20e6
    assert 0 < profile.start_seconds < 60
    save_profile(tmp_path / "p.json", profile)
    assert load_profile(tmp_path / "p.json") == profile


def test_no_package_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises((PackageError, BackendError), match="is no model package"):
        measure_profile(tmp_path, seconds=1.0)


def test_more_servers_than_cores_are_refused(colours: Path) -> None:
    with pytest.raises(InputError, match="each needs one of its own"), measured_servers(colours, count=1000):
        pass


def test_a_calibrated_profile_answers_as_many_as_were_measured() -> None:
    options = ServingOptions(clients_beside=True)
    measured = 0.9 * closed_loop_rate(LANES, FULL_CALLERS, options=options)
    assert closed_loop_rate(
        calibrated(LANES, measured, LANES.front_end), FULL_CALLERS, options=options
    ) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("callers", [1, 8])
def test_a_closed_loop_gets_what_a_lane_computes(callers: int) -> None:
    assert closed_loop_rate(profile_of({1: 0.01}), callers) == pytest.approx(100, rel=0.01)


def test_replicas_get_twice_as_much() -> None:
    assert closed_loop_rate(profile_of({1: 0.01}), 32, replicas=2) == pytest.approx(200, rel=0.02)


def test_batches_know_for_how_long_the_other_lane_worked() -> None:
    batches = np.array([(1, 1, 0, 0.0, 1.0), (1, 1, 1, 0.5, 1.5), (1, 1, 0, 1.0, 2.0), (1, 1, 0, 3.0, 4.0)], BATCH)
    assert overlaps(batches, 2).tolist() == [0.5, 1.0, 0.5, 0.0]
    assert overlaps(batches, 1).tolist() == [1.0] * 4


def test_a_record_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="recorded no batches"):
        BatchRecord(tmp_path / "none").facts()
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BackendError, match="recorded no batches"):
        BatchRecord(tmp_path / "empty").facts()


def test_the_machine_s_busy_time_only_grows() -> None:
    before = busy_seconds()
    sum(range(100_000))
    assert busy_seconds() >= before > 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_real_server_takes_as_long_as_a_simulated_one(colours: Path, count: int) -> None:
    """Its lanes sleep rather than compute, so that this holds beside other programs too; medians only."""
    module = "tests.benchmarks.plan.sleeping_server"
    with measured_servers(colours, "--lanes", "2", "--max-batch", "4", count=count, module=module) as servers:
        from fuseline.benchmarks.plan.measure import measure_stretches, profile_of

        capacity = measure_stretches(servers, 6.0)
        rate, seconds, seed = 0.5 * capacity, 6.0, 7
        measured = servers.open(rate, seconds, seed)
        profile = profile_of(servers, servers.stretches)
    times, burn_in = open_arrivals(rate, seconds, seed)
    outcome = simulate(profile, Arrivals(times, np.ones(len(times), np.int32)), replicas=count)
    predicted = np.nanmedian(outcome.latency_s[burn_in:])
    assert predicted == pytest.approx(np.median(measured.latency_s), rel=0.3)
    # Not for nothing: a batch of one row takes 15 ms.
    assert predicted > 0.015


def test_one_slow_call_of_a_rare_batch_is_not_every_fifth_of_them() -> None:
    usual = {(False, 1): np.full(100, 0.01), (False, 2): np.array([])}
    calls = CallSeconds(rows=2, together=[0.02, 0.02, 0.02, 0.02, 0.5])
    rare = _bucket([calls], [usual], _scatter([usual]), 1.0, is_alone=False)
    assert set(rare.seconds) == {0.02}


def test_a_rare_batch_scatters_as_the_others_do() -> None:
    scattered = {(False, 1): np.tile([0.01, 0.01, 0.03], 20), (False, 2): np.array([])}
    rare = _bucket([CallSeconds(rows=2, together=[0.02])], [scattered], _scatter([scattered]), 1.0, is_alone=False)
    assert np.unique(rare.seconds).tolist() == [0.02, 0.06]
