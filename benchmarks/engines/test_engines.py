"""The engines under pytest-benchmark: `pytest benchmarks/ --benchmark-json=FILE`.

FUSELINE_BENCH_MODEL names what `fuseline bench engines` takes, such as resnet18; the default is a ResNet-8 that takes a
second. All run in this one process and one after the other, so compare runs of the same case; for ratios between
engines `fuseline bench engines` takes turns.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fuseline.benchmarks.engines.contenders import CONTENDERS, TITLES, Engine, open_engine
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.subject import SMALL_ARCHITECTURE, Subject, open_subject
from fuseline.serve.errors import BackendUnavailableError

BATCHES = (1, 8)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with open_subject(os.environ.get("FUSELINE_BENCH_MODEL", SMALL_ARCHITECTURE), int8=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def eager(subject: Subject) -> Engine:
    return open_engine("eager", subject)


@pytest.fixture(scope="module", params=CONTENDERS)
def engine(request: pytest.FixtureRequest, subject: Subject) -> Engine:
    try:
        return open_engine(request.param, subject)
    except BackendUnavailableError as error:
        pytest.skip(f"{TITLES[request.param]} does not run here: {error}")


@pytest.mark.parametrize("batch", BATCHES)
def test_images_per_second(benchmark: Any, subject: Subject, engine: Engine, eager: Engine, batch: int) -> None:
    """Time one call; its logits must be eager PyTorch's."""
    pixels = generated_pictures(subject.package.manifest.input.pixel_shape, batch)
    expected = eager.prepare(pixels)()
    run = engine.prepare(pixels)
    check_logits(engine.name, engine.precision, run(), expected)

    benchmark.extra_info.update(model=subject.title, precision=engine.precision, batch=batch)
    logits = benchmark(run)

    assert np.isfinite(logits).all()
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_s"] = batch / benchmark.stats.stats.median
