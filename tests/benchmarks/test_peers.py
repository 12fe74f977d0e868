"""The measure of the front end beside the echo."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import CaseRounds, Stretch, as_json, as_table, run_peers
from benchmarks.tiny_package import write_tiny_package
from serve.backends import open_backend
from serve.model_package import load_package
from serve.reference import check_reference


def stretches(*cpu_ms: float, p50_ms: float = 2.0) -> list[Stretch]:
    return [Stretch(100.0, each, p50_ms) for each in cpu_ms]


def test_each_bar_is_held_against_what_it_is_about() -> None:
    unary = CaseRounds("unary", stretches(3, 2, 9), stretches(2, 2, 2), [0.1] * 3)
    assert unary.measures() == (1.5, 1.0, 4.5)
    assert unary.passed
    images = CaseRounds("images", stretches(1.6, 1.6), stretches(1, 1), [0.1] * 2)
    assert images.measures() == (0.1, 0.1)
    assert not images.passed
    alone = CaseRounds("alone", stretches(1, 1, p50_ms=1.75), stretches(1, 1), [0.25, 0.5])
    assert alone.measures() == (1.5, 1.25)
    assert alone.passed
    network = CaseRounds("resnet18", [Stretch(38.0, 1, 1), Stretch(32.0, 1, 1)], stretches(1, 1), [800.0, 1000.0], 32)
    assert network.measures() == (0.95, 1.0)
    assert network.passed
    slower = CaseRounds("resnet18", [Stretch(36.0, 1, 1)], stretches(1), [800.0], 32)
    assert slower.measures() == (0.9,)
    assert not slower.passed
    found = [unary, images, alone, network, slower]
    assert [case["passed"] for case in as_json(found)["cases"]] == [True, False, True, True, False]
    assert as_table(found).row_count == 5


@pytest.mark.parametrize("side", [32, 224])
def test_the_tiny_package_is_a_package_that_runs(tmp_path: Path, side: int) -> None:
    package = load_package(write_tiny_package(tmp_path / "tiny", side=side, classes=10))
    backend, _ = open_backend(package, backend="onnxruntime", threads=1)
    assert check_reference(backend, package) == 0
    pixels = np.zeros((2, side, side, 3), np.uint8)
    pixels[1, 0, 0] = 255
    logits = backend.infer(pixels)
    assert logits.shape == (2, 10)
    assert not np.array_equal(logits[0], logits[1])
    backend.close()


@pytest.mark.slow
def test_a_short_run_measures_both_servers() -> None:
    found = run_peers(["unary", "stream"], rounds=1, seconds=0.5)
    for each in found:
        assert each.fuseline[0].requests_per_s > 0
        assert each.fuseline[0].server_cpu_ms_per_request > 0
        assert each.echo[0].server_cpu_ms_per_request > 0
        assert each.bare_backend_ms[0] > 0
