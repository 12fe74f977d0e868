"""Lanes on a GPU: each answers as `infer` does, and two have batches under way at a time."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer
from tests.gpu.conftest import BUCKETS, TOLERANCE, OpenBackend, Subject

pytestmark = pytest.mark.gpu

ROWS = 256
"""A batch whose copies take about as long as a small network."""
ROUNDS = 5
ROUND_S = 0.3


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_lanes_side_by_side_give_the_logits_of_infer(name: str, subject: Subject, open_on_gpu: OpenBackend) -> None:
    backend = open_on_gpu(name, subject.package)
    # Every picture and every size of batch, in an order of its own for each lane.
    batches = [np.roll(subject.pixels, shift, axis=0)[:rows] for shift in range(BUCKETS[-1]) for rows in BUCKETS]

    def work(compute: Infer, order: int) -> list[NDArray[np.float32]]:
        return [compute(pixels) for pixels in batches[::order]][::order]

    try:
        expected = [backend.infer(pixels) for pixels in batches]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(work, backend.open_lanes(2), (1, -1)))
    finally:
        backend.close()
    bar = TOLERANCE["fp16"] * np.ptp(subject.expected)
    for lane in answers:
        for logits, alone in zip(lane, expected, strict=True):
            assert np.abs(logits - alone).max() <= bar


def images_per_s(lanes: Sequence[Infer], pixels: NDArray[np.uint8]) -> float:
    """Throughput of `lanes`, each called again and again by a thread of its own."""
    started = time.monotonic()

    def work(compute: Infer) -> int:
        done = 0
        while time.monotonic() - started < ROUND_S:
            compute(pixels)
            done += len(pixels)
        return done

    with ThreadPoolExecutor(len(lanes)) as pool:
        return sum(pool.map(work, lanes)) / (time.monotonic() - started)


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_two_batches_under_way_are_not_slower_than_one(
    name: str, subject: Subject, open_on_gpu: OpenBackend, record_property: Callable[[str, object], None]
) -> None:
    backend = open_on_gpu(name, subject.package, buckets=(ROWS,))
    pixels = np.resize(subject.pixels, (ROWS, *subject.pixels.shape[1:]))
    try:
        both = backend.open_lanes(2)
        images_per_s(both, pixels)
        rounds = [(images_per_s(both[:1], pixels), images_per_s(both, pixels)) for _ in range(ROUNDS)]
    finally:
        backend.close()
    one, two = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    ratio = statistics.median(with_two / with_one for with_one, with_two in rounds)
    print(f"{name}: {one:.0f} images/s in one lane, {two:.0f} in two: {ratio:.2f} times")
    record_property("images/s, one lane", one)
    record_property("images/s, two lanes", two)
    assert ratio >= 0.9
