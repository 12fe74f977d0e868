import os
from typing import Any

import pytest
from rich.console import Console

from fuseline.deploy.ray import proxy_cost
from fuseline.deploy.ray.proxy_cost import ALONE, BEHIND_RAY


def sample(factor: float, slow: float = 1.0) -> dict[str, Any]:
    """A round in which everything took `slow` times as long."""
    return {
        "p50_ms": factor * slow,
        "p99_ms": 2 * factor * slow,
        "requests_per_s": 1000 / factor / slow,
        "cpu_ms": factor,
        "by_kind": {"proxy": 0.75 * factor, "other": 0.25 * factor},
        "errors": 0,
    }


SAMPLES = {
    (ALONE, "gRPC", 1): [sample(1, 1), sample(1, 3)],
    (BEHIND_RAY, "gRPC", 1): [sample(8, 1), sample(8, 3)],
}


def test_each_round_is_compared_with_itself() -> None:
    cost = proxy_cost._cost("gRPC", 1, SAMPLES)
    assert (cost.p50.median, cost.p50.lower_quartile, cost.p50.upper_quartile) == (8, 8, 8)
    assert cost.requests_per_s.median == pytest.approx(1 / 8)
    assert cost.cpu.median == 8


def test_a_point_has_the_median_of_each_kind_of_process() -> None:
    point = proxy_cost._point(BEHIND_RAY, "gRPC", 1, SAMPLES[BEHIND_RAY, "gRPC", 1])
    assert point.cpu_ms_by_process == {"other": 2.0, "proxy": 6.0}
    assert point.p99_ms.median == 32


def test_the_cpu_time_of_this_process_counts_as_none_of_rays_kinds() -> None:
    seconds = proxy_cost._cpu_by_kind(os.getpid())
    assert set(seconds) == {"other"}
    assert seconds["other"] > 0


def test_the_table_tells_the_ratios() -> None:
    points = [proxy_cost._point(*key, taken) for key, taken in SAMPLES.items()]
    figures = {
        "picture_bytes": 150528,
        "points": [proxy_cost.asdict(point) for point in points],
        "ray_over_alone": [proxy_cost.asdict(proxy_cost._cost("gRPC", 1, SAMPLES))],
    }
    console = Console(width=200)
    with console.capture() as captured:
        console.print(proxy_cost._table(figures))
    text = captured.get()
    assert "150,528 bytes" in text
    assert "gRPC, 1 at a time: Ray takes 8.00 (8.00 to 8.00) times the latency" in text
