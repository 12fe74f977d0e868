import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.load.target import Target, connect
from fuseline.benchmarks.serving.loadgen import LoadGenPlan, figures_from_log, run_loadgen
from fuseline.benchmarks.serving.loadgen_comparison import agreements, as_json, as_table, compare_with_loadgen
from fuseline.serve.errors import BackendError, VerificationError
from tests.serve.processes import server_process

SERVICE_MS = 40

needs_loadgen = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="mlcommons-loadgen has no wheels for Python 3.14"
)


@pytest.fixture(scope="module")
def steady(colours: Path) -> Iterator[Target]:
    """A server whose batches are single images that take 40 ms each, so that the machine's noise is small beside it."""
    flags = (SERVICE_MS, colours, "--port", 0, "--http-port", 0, "--backend", "onnxruntime", "--threads", 1)
    command = ("-m", "tests.benchmarks.serving.steady_server")
    with server_process(*flags, "--max-batch", 1, command=command) as server:
        yield connect(server.address)


@needs_loadgen
def test_loadgen_and_ours_agree_on_one_caller_within_a_tenth(steady: Target) -> None:
    found = compare_with_loadgen(
        steady, ("SingleStream",), rounds=3, seconds=0.7, rate_per_s=1, concurrency=1, burn_in_s=0.1
    )
    ratios = {row.quantity: row.ratio.median for row in agreements(found)}
    assert ratios["p50 ms"] == pytest.approx(1, abs=0.1)
    assert ratios["samples/s"] == pytest.approx(1, abs=0.1)
    (each,) = found
    assert all(figures.latency_ms["p50"] > SERVICE_MS for figures in (*each.theirs, *each.ours))
    assert as_table(steady, found).row_count == 3
    written = as_json(steady, found)
    assert written["scenarios"][0]["theirs"][0]["details"]["loadgen_version"]


@needs_loadgen
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "quantity", "rounds", "seconds"), [("Offline", "samples/s", 5, 1.5), ("Server", "p50 ms", 3, 3.0)]
)
def test_loadgen_and_ours_agree_under_many_requests_within_a_tenth(
    steady: Target, scenario: str, quantity: str, rounds: int, seconds: float
) -> None:
    # Not Server's tail: of 15 arrivals, which fall together differs from schedule to schedule.
    found = compare_with_loadgen(
        steady, (scenario,), rounds=rounds, seconds=seconds, rate_per_s=5, concurrency=4, burn_in_s=0.1
    )
    ratios = {row.quantity: row.ratio.median for row in agreements(found)}
    assert ratios[quantity] == pytest.approx(1, abs=0.1)


@needs_loadgen
def test_wrong_answers_are_no_figures_of_loadgen_either(steady: Target) -> None:
    swapped = Target(steady.address, steady.model, steady.pixels, np.roll(steady.expected, 1, axis=0))
    with pytest.raises(VerificationError, match="expected class"):
        run_loadgen(swapped, LoadGenPlan("SingleStream", 0.1, burn_in_s=0.0))


@needs_loadgen
def test_failed_requests_are_no_figures_of_loadgen_either(steady: Target) -> None:
    bad = Target(steady.address, steady.model, steady.pixels[:, :4], steady.expected)
    with pytest.raises(BackendError, match=r"requests failed under LoadGen's SingleStream: \d+ INVALID_ARGUMENT"):
        run_loadgen(bad, LoadGenPlan("SingleStream", 0.1, burn_in_s=0.0))


def test_a_log_without_a_result_is_told() -> None:
    with pytest.raises(BackendError, match="result_50.00_percentile_latency_ns"):
        figures_from_log("Server", ':::MLLOG {"key": "loadgen_version", "value": "6"}\nnoise\n')
