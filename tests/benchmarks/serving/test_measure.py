import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.harness.server_process import ServerProcess
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.load.target import Target, connect, expect_logits_of
from fuseline.benchmarks.serving.measure import measure_serving, sweep
from fuseline.benchmarks.serving.table import as_json, as_table
from fuseline.serve.errors import InputError, VerificationError
from tests.fakes.colours import WEIGHTS, expected_logits, write_colours_package


@pytest.fixture
def target(colours_server: ServerProcess) -> Target:
    return connect(colours_server.address, colours_server.pid)


def test_expected_logits_are_those_of_each_picture(target: Target) -> None:
    assert target.expected == pytest.approx(expected_logits(target.pixels), abs=1e-4)


def test_a_sweep_measures_each_concurrency(target: Target) -> None:
    figures = sweep(target, (1, 4), seconds=0.3, burn_in_s=0.05)
    assert [each.concurrency for each in figures] == [1, 4]
    for each in figures:
        assert not each.errors
        assert each.images_per_s == each.requests_per_s > 0
        latency = each.latency_ms
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert each.server_cpu_ms_per_request is not None
    assert as_table(target, figures).row_count == 2
    written = as_json(target, figures)
    assert written["server"]["model"] == "colours"
    assert len(written["closed_loop"]) == 2


def test_images_of_a_request_are_counted(target: Target) -> None:
    figures = measure_serving(target, concurrency=2, seconds=0.2, burn_in_s=0.05, images_per_request=3)
    assert figures.images_per_s == pytest.approx(3 * figures.requests_per_s)


def test_wrong_answers_are_no_figures(target: Target) -> None:
    # What if the server gave each picture's answer to the next one?
    swapped = dataclasses.replace(target, expected=np.roll(target.expected, 1, axis=0))
    with pytest.raises(VerificationError, match="other answers than expected"):
        measure_serving(swapped, concurrency=2, seconds=0.1, burn_in_s=0.05)


def test_the_served_package_vouches_for_the_answers(target: Target, colours: Path) -> None:
    vouched = expect_logits_of(Subject("colours", colours, None), target)
    assert vouched.expected == pytest.approx(target.expected, abs=1e-4)


def test_another_package_of_the_same_shape_is_found_out(target: Target, tmp_path: Path) -> None:
    other = write_colours_package(tmp_path / "other", weights=-WEIGHTS)
    with pytest.raises(VerificationError, match="other answers than expected"):
        expect_logits_of(Subject("other", other, None), target)


def test_another_package_with_other_labels_is_found_out(target: Target, tmp_path: Path) -> None:
    other = write_colours_package(tmp_path / "other", labels=("a", "b", "c", "d"))
    with pytest.raises(VerificationError, match="name the package that is served"):
        expect_logits_of(Subject("other", other, None), target)


def test_nobody_at_the_address() -> None:
    with pytest.raises(InputError, match=r"UNAVAILABLE.*fuseline serve"):
        connect("127.0.0.1:9")


def test_a_server_process_that_is_not_there(colours_server: ServerProcess) -> None:
    with pytest.raises(InputError, match="--server-pid 4194999"):
        connect(colours_server.address, 4194999)
