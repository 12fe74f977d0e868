import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fuseline.serve.lanes.warm_lanes
import fuseline.serve.model
from fuseline.serve.backends import open_backend
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.errors import (
    FuselineError,
    InputError,
    PackageError,
    ShuttingDownError,
    UnknownModelError,
    VerificationError,
)
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model, load_model
from fuseline.serve.model_package import load_package
from fuseline.serve.repository import Repository
from fuseline.serve.version_order import version_order
from tests.fakes.backends import SteeredBackend
from tests.fakes.batch_counts import RecordedBatches
from tests.fakes.colours import expected_logits, noise, write_colours_package
from tests.serve.conftest import settings


def steered(folder: Path, buckets: tuple[int, ...] = (1, 2, 4)) -> SteeredBackend:
    return SteeredBackend(open_backend(load_package(folder), backend="onnxruntime", buckets=buckets, threads=1)[0])


def load(folder: Path, batches: RecordedBatches | None = None) -> Model:
    return load_model(folder, settings(max_batch=4), batches or RecordedBatches())


@pytest.mark.parametrize(
    ("threads", "max_delay_ms", "small_batch_ms", "batches"),
    [(1, 0, 0, [2, 2, 1]), (0, 0, 0, [2, 2, 1]), (1, 1, 0, [5]), (1, 0, 10_000, [5])],
)
async def test_batches_on_a_cpu_stay_small_unless_they_are_fast_or_fuller_ones_are_asked_for(
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    max_delay_ms: float,
    small_batch_ms: float,
    batches: list[int],
) -> None:
    monkeypatch.setattr(fuseline.serve.lanes.warm_lanes, "usable_cpus", lambda: 1)
    cpu = CpuBatching(core_pixels=2 * 8 * 8, small_batch_ms=small_batch_ms)
    recorded = RecordedBatches()
    model = load_model(package, settings(threads=threads, max_delay_ms=max_delay_ms), recorded, cpu=cpu)
    await model.batcher.submit(list(noise(5)))
    assert [stats.rows for _, stats in recorded.stats] == batches
    await model.close()


def test_an_asked_for_batch_is_taken_on_a_cpu_too(tmp_path: Path) -> None:
    folder = write_colours_package(tmp_path / "model")
    assert load_model(folder, settings(max_batch=64), Metrics()).backend.buckets == CpuBatching().buckets(8 * 8, 64)
    assert load_model(folder, settings(), Metrics()).backend.buckets == CpuBatching().buckets(8 * 8, 32)


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
    recorded = RecordedBatches()
    model = await asyncio.to_thread(load, package, recorded)
    pixels = noise(3)
    answer = model.batcher.submit(list(pixels))
    await model.close()
    np.testing.assert_allclose((await answer).logits, expected_logits(pixels), atol=1e-5)
    assert [(name, stats.rows, stats.bucket) for name, stats in recorded.stats] == [("colours", 3, 3)]
    with pytest.raises(ShuttingDownError):
        model.batcher.submit(list(pixels))
    await model.close()


async def test_repository_finds_by_name_and_refuses_a_second_of_the_same_name(package: Path, tmp_path: Path) -> None:
    repository = Repository()
    with pytest.raises(UnknownModelError, match="served: none"):
        repository.find("colours")
    first, other = load(package), load(write_colours_package(tmp_path / "other", name="other"))
    repository.add(first)
    assert repository.find("") is repository.find("colours") is first
    repository.add(other)
    assert repository.find("other") is other
    with pytest.raises(UnknownModelError, match="name one of: colours, other"):
        repository.find("")
    twin = load(package)
    with pytest.raises(InputError, match="two packages are named 'colours'"):
        repository.add(twin)
    await twin.close()
    await repository.close()


async def test_the_default_version_is_the_highest_served_and_numbers_compare_as_numbers(package: Path) -> None:
    models = {
        version: load_model(package, settings(max_batch=1), Metrics(), name="colours", version=version)
        for version in ("9", "10", "2")
    }
    repository = Repository(models.values())
    assert repository.versions("colours") == ("10", "9", "2")
    assert repository.find("colours") is repository.find("") is repository.find("colours", "10") is models["10"]
    assert repository.find("colours", "9") is models["9"]
    with pytest.raises(UnknownModelError, match="no version '3' of colours here; served: '10', '9', '2'"):
        repository.find("colours", "3")
    await repository.publish([models["9"], models["2"]])
    assert repository.find("colours") is models["9"]
    await repository.publish(list(models.values()))
    await repository.close()


def test_versions_are_ordered_by_the_numbers_in_them() -> None:
    shuffled = ["v10", "1.10", "10", "", "10b2", "2", "1", "v1.2", "10b1", "v1", "1.9"]
    ascending = ["", "1", "1.9", "1.10", "2", "10", "10b1", "10b2", "v1", "v1.2", "v10"]
    assert sorted(shuffled, key=version_order) == ascending


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
