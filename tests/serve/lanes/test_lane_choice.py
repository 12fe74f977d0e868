"""How many lanes there are, and what they do with a real runtime."""

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fuseline.serve.lanes.lane_choice
import fuseline.serve.lanes.warm_lanes
import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend, Infer
from fuseline.serve.backends.registry import CPU_BACKENDS
from fuseline.serve.batching.policy import BatchPolicy, CpuBatching
from fuseline.serve.errors import BackendError, VerificationError
from fuseline.serve.lanes.lane_choice import (
    MEASURE_SECONDS,
    best_choice,
    cpu_lane_counts,
    open_cpu_lanes,
    open_gpu_lanes,
)
from fuseline.serve.lanes.warm_lanes import _alone_rows
from fuseline.serve.lanes.warm_up import side_by_side
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import load_model
from fuseline.serve.model_package import load_package
from tests.fakes.backends import SteeredBackend, WrappedBackend
from tests.fakes.colours import expected_logits, noise
from tests.serve.conftest import settings


def opened(folder: Path, backend: str = "onnxruntime", threads: int = 2) -> Backend:
    return open_backend(load_package(folder), backend=backend, buckets=(1, 2, 4), threads=threads)[0]


@pytest.fixture
def every_network_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes are measured however fast a network is."""
    monkeypatch.setattr(fuseline.serve.lanes.lane_choice, "SLOW_CALL_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("threads", "counts"), [(1, ()), (2, (2,)), (3, (2,)), (4, (4, 2)), (8, (8, 4, 2)), (16, (8, 4, 2))]
)
def test_lanes_that_are_tried_are_powers_of_two_within_the_threads(threads: int, counts: tuple[int, ...]) -> None:
    assert cpu_lane_counts(threads) == counts


@pytest.mark.parametrize(
    ("measured", "lanes"),
    [
        ({2: (100.0, 100.0)}, 2),
        ({2: (96.0, 100.0)}, 2),
        ({2: (94.0, 100.0)}, 1),
        ({8: (101.0, 100.0), 4: (104.0, 100.0), 2: (103.0, 100.0)}, 8),
        ({8: (80.0, 100.0), 4: (104.0, 100.0), 2: (106.0, 100.0)}, 4),
        ({}, 1),
    ],
)
def test_most_lanes_are_chosen_of_those_that_cost_nothing(measured: dict[int, tuple[float, float]], lanes: int) -> None:
    choice = best_choice(measured)
    assert choice.lanes == lanes
    assert choice.images_per_s.keys() == ({1, *measured} if measured else set())


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_lanes_compute_side_by_side_what_the_whole_backend_does(package: Path, name: str) -> None:
    backend = opened(package, name)
    pixels = noise(4)
    expected = backend.infer(pixels)
    lanes = backend.open_lanes(2)
    for answer in side_by_side([lambda lane=lane: lane(pixels) for lane in lanes]):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(backend.infer(pixels), expected)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        lanes[0](pixels)


@pytest.mark.usefixtures("every_network_is_slow")
def test_the_choice_is_measured_in_time_and_tells_its_figures(package: Path) -> None:
    started = time.monotonic()
    choice, lanes = open_cpu_lanes(opened(package), load_package(package), None, threads=2, max_rows=4)
    assert time.monotonic() - started < MEASURE_SECONDS + 1
    assert sorted(choice.images_per_s) == [1, 2]
    assert len(lanes) == (choice.lanes if choice.lanes > 1 else 0)
    assert f"{choice.images_per_s[2]:.0f} images/s, one with all threads {choice.images_per_s[1]:.0f}" in choice.line


@pytest.mark.parametrize(
    ("asked", "threads", "lanes", "reason"),
    [
        (1, 2, 1, "--lanes 1 was given"),
        (3, 2, 3, "--lanes 3 was given"),
        (None, 1, 1, "one thread computes"),
    ],
)
def test_what_was_asked_for_is_not_measured(
    package: Path, asked: int | None, threads: int, lanes: int, reason: str
) -> None:
    choice, opened_lanes = open_cpu_lanes(opened(package), load_package(package), asked, threads=threads, max_rows=4)
    assert (choice.lanes, choice.reason, choice.images_per_s) == (lanes, reason, {})
    assert len(opened_lanes) == (lanes if lanes > 1 else 0)


def test_a_network_whose_batches_take_no_time_gets_no_lanes(package: Path) -> None:
    backend = SteeredBackend(opened(package))
    choice, lanes = open_cpu_lanes(backend, load_package(package), None, threads=2, max_rows=4)
    assert (choice.lanes, lanes) == (1, ())
    assert "handing over" in choice.reason


@pytest.mark.usefixtures("every_network_is_slow")
def test_a_network_that_takes_too_long_to_measure_gets_no_lanes(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuseline.serve.lanes.lane_choice, "MEASURE_SECONDS", 0.0)
    choice, lanes = open_cpu_lanes(opened(package), load_package(package), None, threads=2, max_rows=4)
    assert (choice.lanes, lanes) == (1, ())
    assert "too long" in choice.reason


class NoRoomForLanes(WrappedBackend):
    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        raise BackendError(f"no memory for {count}")


def test_a_gpu_has_two_batches_in_flight_or_one_where_memory_is_short(package: Path) -> None:
    backend = SteeredBackend(opened(package))
    choice, lanes = open_gpu_lanes(backend, None)
    assert (choice.lanes, len(lanes)) == (2, 2)
    assert open_gpu_lanes(backend, 1)[1] == ()
    choice, lanes = open_gpu_lanes(NoRoomForLanes(backend), None)
    assert (choice.lanes, lanes) == (1, ())
    assert "no memory for 2" in choice.reason
    with pytest.raises(BackendError, match="no memory for 3"):
        open_gpu_lanes(NoRoomForLanes(backend), 3)


def test_few_rows_have_all_cores_where_that_is_sooner_than_spread_over_lanes() -> None:
    policy = BatchPolicy((1, 2, 3, 4), max_queue_rows=8, lanes=2)
    on_lanes = {1: 16.0, 2: 31.0, 3: 46.0, 4: 60.0}
    assert _alone_rows(policy, on_lanes, {1: 8.0, 2: 16.0, 3: 24.0}) == 3
    assert _alone_rows(policy, on_lanes, {1: 8.0, 2: 16.0, 3: 31.0}) == 1
    assert _alone_rows(policy, on_lanes, {1: 16.0, 2: 17.0, 3: 31.0}) == 0


@pytest.mark.parametrize("name", CPU_BACKENDS)
async def test_a_model_on_lanes_answers_as_on_one(package: Path, name: str) -> None:
    model = load_model(package, settings(backend=name, threads=2, lanes=2), Metrics())
    assert (model.lanes.lanes, model.batcher.policy.lanes) == (2, 2)
    pixels = noise(40)
    answers = [model.batcher.submit(list(pixels[start : start + 5])) for start in range(0, 40, 5)]
    for start, answer in zip(range(0, 40, 5), answers, strict=True):
        np.testing.assert_allclose((await answer).logits, expected_logits(pixels[start : start + 5]), atol=1e-5)
    await model.close()


def test_a_lanes_largest_batch_is_its_part_of_what_fills_the_cores() -> None:
    cpu = CpuBatching()
    assert cpu.lane_buckets(224 * 224, 1) == (1, 2, 3, 4)
    assert cpu.lane_buckets(224 * 224, 4)[-1] == 16
    assert cpu.lane_buckets(32 * 32, 1)[-1] == 32
    assert cpu.lane_buckets(224 * 224, 1, 8)[-1] == 8
    assert cpu.lane_buckets(1024 * 1024, 1) == (1,)


class OneBadLane(WrappedBackend):
    """Its second lane answers zeros."""

    closed = False

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        first, _ = super().open_lanes(count)

        def zeros(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return 0 * first(pixels)

        return first, zeros

    def close(self) -> None:
        self.closed = True


def test_a_lane_that_answers_zeros_is_refused_before_serving(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OneBadLane(opened(package))
    monkeypatch.setattr(fuseline.serve.model, "open_backend", lambda *_, **__: (backend, "test"))
    with pytest.raises(VerificationError, match="differ from PyTorch"):
        load_model(package, settings(threads=2, lanes=2), Metrics())
    assert backend.closed
