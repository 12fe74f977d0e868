from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fuseline.serve.lanes.warm_up
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import BackendLane
from fuseline.serve.lanes.warm_up import warm_up
from fuseline.serve.model_package import load_package
from tests.fakes.backends import SteeredBackend


def test_warm_up_runs_and_times_every_bucket(package: Path) -> None:
    colours = load_package(package)
    backend = SteeredBackend(open_backend(colours, buckets=(1, 2, 4), backend="onnxruntime", threads=1)[0])
    seconds = warm_up([backend], colours)
    assert tuple(seconds) == (1, 2, 4)
    assert set(backend.calls) == {1, 2, 4}
    assert backend.calls.count(1) >= 2, "the first call pays for the runtime's set-up and must not be the one measured"
    assert all(0 < value < 10 for value in seconds.values())


def test_beside_others_it_runs_each_bucket_of_one_lane_after_the_other_and_rests(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = [0]
    calls: list[tuple[int, int]] = []
    rests: list[float] = []
    colours = load_package(package)
    backend, _ = open_backend(colours, backend="onnxruntime", buckets=(1, 2), threads=1)

    def infer(lane: int, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        under_way[0] += 1
        assert under_way[0] == 1
        calls.append((lane, len(pixels)))
        logits = backend.infer(pixels)
        under_way[0] -= 1
        return logits

    monkeypatch.setattr(fuseline.serve.lanes.warm_up.time, "sleep", rests.append)
    lanes = [BackendLane("name", "fp32", "CPU", (1, 2), partial(infer, lane)) for lane in range(2)]
    assert warm_up(lanes, colours, rest=10.0).keys() == {1, 2}
    assert calls == [(0, 1), (1, 1), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert len(rests) == len(calls)
    assert min(rests) > 0
    backend.close()
