import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.batching.batcher import BatchStats, Misses
from fuseline.serve.cpu import usable_cpus
from fuseline.serve.errors import (
    FuselineError,
    InputError,
    PackageError,
    ShuttingDownError,
    UnknownModelError,
    VerificationError,
)
from fuseline.serve.model import Model, cpu_buckets, cpu_max_batch, cpu_unsaturated_rows, load_model, warm_up
from fuseline.serve.model_package import InputSpec, Preprocessing, load_package
from fuseline.serve.repository import Repository
from tests.fakes import SteeredBackend
from tests.serve.colours import expected_logits, noise, write_colours_package
from tests.serve.conftest import settings


def steered(folder: Path, buckets: tuple[int, ...] = (1, 2, 4)) -> SteeredBackend:
    return SteeredBackend(open_backend(load_package(folder), backend="onnxruntime", buckets=buckets, threads=1)[0])


class Counted:
    """Keeps what it is told of batches."""

    def __init__(self, seen: list[tuple[str, BatchStats]]) -> None:
        self._seen = seen

    def count_batch(self, model: str, stats: BatchStats) -> None:
        self._seen.append((model, stats))

    def count_misses(self, model: str, misses: Misses) -> None:
        """Not kept."""


def load(folder: Path, seen: list[tuple[str, BatchStats]] | None = None) -> Model:
    return load_model(folder, settings(max_batch=4), Counted([] if seen is None else seen))


def test_warm_up_runs_and_times_every_bucket(package: Path) -> None:
    backend = steered(package)
    seconds = warm_up(backend, load_package(package))
    assert tuple(seconds) == (1, 2, 4)
    assert set(backend.calls) == {1, 2, 4}
    assert backend.calls.count(1) >= 2, "the first call pays for the runtime's set-up and must not be the one measured"
    assert all(0 < value < 10 for value in seconds.values())


@pytest.mark.parametrize(("side", "largest"), [(32, 32), (112, 32), (224, 16), (320, 4), (1024, 1)])
def test_on_a_cpu_a_batch_holds_as_many_pixels_as_it_gains_from(side: int, largest: int) -> None:
    spec = InputSpec(height=side, width=side, preprocessing=Preprocessing(resize_shorter_side=side))
    assert cpu_max_batch(spec) == largest


@pytest.mark.parametrize(
    ("side", "threads", "seconds_a_row", "rows"),
    [
        (224, 2, 0.015, 4),
        (224, 1, 0.015, 2),
        (224, 1, 0.004, None),
        (224, 3, 0.015, 8),
        (224, 16, 0.015, None),
        (112, 1, 0.002, 8),
        (640, 1, 0.1, 1),
        (32, 1, 0.015, None),
    ],
)
def test_on_a_cpu_small_batches_give_each_core_two_pictures_unless_the_network_is_fast(
    side: int, threads: int, seconds_a_row: float, rows: int | None
) -> None:
    spec = InputSpec(height=side, width=side, preprocessing=Preprocessing(resize_shorter_side=side))
    seconds_per_bucket = {bucket: bucket * seconds_a_row for bucket in (1, 2, 4, 8, 16)}
    assert cpu_unsaturated_rows(spec, threads, seconds_per_bucket) == rows
    of_all_cores = cpu_unsaturated_rows(spec, usable_cpus(), seconds_per_bucket)
    assert cpu_unsaturated_rows(spec, 0, seconds_per_bucket) == of_all_cores


@pytest.mark.parametrize(
    ("max_delay_ms", "small_batch_ms", "batches"), [(0, 0, [2, 2, 1]), (1, 0, [5]), (0, 10_000, [5])]
)
async def test_batches_on_a_cpu_stay_small_unless_they_are_fast_or_fuller_ones_are_asked_for(
    package: Path, monkeypatch: pytest.MonkeyPatch, max_delay_ms: float, small_batch_ms: float, batches: list[int]
) -> None:
    monkeypatch.setattr(fuseline.serve.model, "CPU_CORE_PIXELS", 2 * 8 * 8)
    monkeypatch.setattr(fuseline.serve.model, "SMALL_BATCH_MS", small_batch_ms)
    seen: list[tuple[str, BatchStats]] = []
    model = load_model(package, settings(threads=1, max_delay_ms=max_delay_ms), Counted(seen))
    await model.batcher.submit(list(noise(5)))
    assert [stats.rows for _, stats in seen] == batches
    await model.close()


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 2, 3, 4)),
        (16, (1, 2, 3, 4, 6, 8, 12, 16)),
        (20, (1, 2, 3, 4, 6, 8, 12, 16, 20)),
    ],
)
def test_a_cpu_has_sizes_between_the_powers_of_two(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert cpu_buckets(max_batch) == buckets


def test_an_asked_for_batch_is_taken_on_a_cpu_too(tmp_path: Path) -> None:
    folder = write_colours_package(tmp_path / "model")
    assert load_model(folder, settings(max_batch=64), Counted([])).backend.buckets == cpu_buckets(64)
    assert load_model(folder, settings(), Counted([])).backend.buckets == cpu_buckets(32)


def test_logits_that_do_not_fit_the_labels_are_refused_before_serving(tmp_path: Path) -> None:
    folder = write_colours_package(tmp_path / "short", labels=("red", "green"))
    with pytest.raises(PackageError, match=r"shape \(1, 4\).*promise \(1, 2\)"):
        load(folder)


@pytest.mark.parametrize(
    ("logits", "error", "reason"),
    [
        (np.zeros((1, 3), np.float32), PackageError, "shape"),
        (np.full((1, 4), np.nan, np.float32), PackageError, "not finite"),
        (np.ones((1, 4), np.float32), VerificationError, "differ from PyTorch"),
        (np.zeros((1, 4), np.float32), VerificationError, "differ from PyTorch"),
    ],
    ids=["shape", "NaN", "wrong", "zeros"],
)
def test_a_backend_that_answers_nonsense_is_refused_before_serving_and_released(
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    logits: NDArray[np.float32],
    error: type[FuselineError],
    reason: str,
) -> None:
    backend = steered(package)
    backend.replacement = lambda pixels: logits.repeat(len(pixels), axis=0)
    monkeypatch.setattr(fuseline.serve.model, "open_backend", lambda *_, **__: (backend, "test"))
    with pytest.raises(error, match=reason):
        load(package)
    assert backend.closed


async def test_a_loaded_model_answers_tells_its_batches_and_closes_once_empty(package: Path) -> None:
    seen: list[tuple[str, BatchStats]] = []
    model = await asyncio.to_thread(load, package, seen)
    pixels = noise(3)
    answer = model.batcher.submit(list(pixels))
    await model.close()
    np.testing.assert_allclose((await answer).logits, expected_logits(pixels), atol=1e-5)
    assert [(name, stats.rows, stats.bucket) for name, stats in seen] == [("colours", 3, 3)]
    with pytest.raises(ShuttingDownError):
        model.batcher.submit(list(pixels))
    await model.close()


async def test_repository_finds_by_name_and_refuses_a_second_of_the_same_name(package: Path, tmp_path: Path) -> None:
    repository = Repository()
    with pytest.raises(UnknownModelError, match="served: none"):
        repository.get("colours")
    first, other = load(package), load(write_colours_package(tmp_path / "other", name="other"))
    repository.add(first)
    assert repository.get("") is repository.get("colours") is first
    repository.add(other)
    assert repository.get("other") is other
    with pytest.raises(UnknownModelError, match="name one of: colours, other"):
        repository.get("")
    twin = load(package)
    with pytest.raises(InputError, match="two packages are named 'colours'"):
        repository.add(twin)
    await twin.close()
    await repository.close()


@pytest.mark.parametrize("in_one_bucket", [1, 4])
def test_a_backend_that_answers_zeros_in_one_size_of_batch_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch, in_one_bucket: int
) -> None:
    backend = steered(package)
    infer = steered(package).infer

    def zeros_in_that_bucket(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return infer(pixels) * np.float32(len(pixels) != in_one_bucket)

    backend.replacement = zeros_in_that_bucket
    monkeypatch.setattr(fuseline.serve.model, "open_backend", lambda *_, **__: (backend, "test"))
    with pytest.raises(VerificationError, match="differ from PyTorch"):
        load(package)
    assert backend.closed
