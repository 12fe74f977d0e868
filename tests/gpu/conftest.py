"""What the tests on a GPU share. All are marked `gpu` and are skipped, saying why, where there is none."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.subject import open_gpu_subject
from fuseline.benchmarks.harness.subject import SMALL_ARCHITECTURE
from fuseline.serve.backends.base import Backend, OpenRequest
from fuseline.serve.backends.gpu.cuda import Cuda, open_cuda
from fuseline.serve.backends.registry import backend_entry
from fuseline.serve.errors import BackendUnavailableError, FuselineError
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.package_engines import add_engine

BUCKETS = (1, 8)
ENGINE_FOR = os.environ.get("FUSELINE_ENGINE_FOR")
"""What to build for where TensorRT for RTX doesn't list the GPU: `current` or `portable`; None: it is listed."""
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference of logits as a share of their range; of two pictures here they differ by 0.04 and more."""


@dataclass(frozen=True)
class Subject:
    """A ResNet-8 as a package, pictures for it, and eager PyTorch FP32's logits for them, on the CPU."""

    package: ModelPackage
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float32]


OpenBackend = Callable[..., Backend]


@pytest.fixture(scope="session")
def cuda() -> Cuda:
    try:
        return open_cuda()
    except BackendUnavailableError as error:
        pytest.skip(f"no GPU to test on: {error}")


@pytest.fixture(scope="session")
def subject(cuda: Cuda) -> Iterator[Subject]:
    with open_gpu_subject(SMALL_ARCHITECTURE, input_side=None, rows=BUCKETS[-1]) as (opened, pixels, expected):
        for precision in ("fp16", "fp32") if ENGINE_FOR else ():
            _add_engine(opened.package_folder, precision)
        yield Subject(opened.package, pixels, expected)


def _add_engine(package: Path, precision: str) -> None:
    """A server would build none for such a GPU; one that the package has is taken."""
    try:
        add_engine(
            package,
            capability=ENGINE_FOR,
            precision=precision,
            max_batch=BUCKETS[-1],
            show_progress=lambda: nullcontext(lambda *_: None),
            on_wait=lambda: None,
        )
    except FuselineError as error:
        # The tests in that precision are skipped then, as they find no engine.
        print(f"no {precision} engine for {ENGINE_FOR}: {error}")


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that one test built are there for the next."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def open_on_gpu(cuda: Cuda, engine_cache: Path) -> OpenBackend:
    """`open_on_gpu(name, package, precision)`; the test is skipped, saying why, where that runtime is not here."""

    def opened(
        name: str, package: ModelPackage, precision: str = "fp16", buckets: tuple[int, ...] = BUCKETS
    ) -> Backend:
        try:
            request = OpenRequest("gpu", buckets, precision, engine_cache=engine_cache)
            return backend_entry(name, "gpu").load().open(package, request)
        except BackendUnavailableError as error:
            pytest.skip(f"{name} does not run here: {error}")

    return opened
