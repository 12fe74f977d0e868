"""Bound memory and its thread, on the CPU; the graphs of a GPU are in tests/gpu."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, get_ident

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer
from fuseline.serve.backends.bound_session import BoundBatch, BoundSession
from fuseline.serve.backends.onnxruntime import OnnxRuntimeBackend, open_session
from fuseline.serve.errors import BackendError
from fuseline.serve.model_package import load_package
from tests.fakes.colours import expected_logits, noise, write_colours_package

BUCKETS = (1, 4, 8)


@pytest.fixture
def bound(tmp_path: Path) -> BoundSession:
    session = open_session(write_colours_package(tmp_path / "colours") / "model.onnx", threads=1)
    return BoundSession(session, buckets=BUCKETS, row_shape=noise(1).shape[1:], classes=4, device="cpu")


def test_buckets_in_any_order_give_each_batch_its_own_logits(bound: BoundSession) -> None:
    batches = [noise(rows, seed) for seed, rows in enumerate((8, 1, 4, 1, 8, 4))]
    answers = [bound.infer(pixels) for pixels in batches]
    bound.close()
    for pixels, logits in zip(batches, answers, strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected_logits(pixels), atol=1e-5)


def test_every_run_is_made_by_one_thread_whoever_calls(bound: BoundSession, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    run = BoundBatch.run

    def noted(batch: BoundBatch) -> None:
        threads.add(get_ident())
        run(batch)

    monkeypatch.setattr(BoundBatch, "run", noted)
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(bound.infer, noise(4)).result()
    bound.infer(noise(1))
    bound.close()
    assert len(threads) == 1
    assert get_ident() not in threads


def test_a_failed_run_is_raised_to_its_caller_and_the_next_one_answers(bound: BoundSession) -> None:
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        bound.infer(np.zeros((4, 7, 9, 3), np.uint8))
    pixels = noise(4)
    np.testing.assert_allclose(bound.infer(pixels), expected_logits(pixels), atol=1e-5)
    bound.close()
    bound.close()


# Lanes


def graph_ids(bound: BoundSession) -> list[str]:
    return [batch._options.get_run_config_entry("gpu_graph_id") for lane in bound._lanes for batch in lane.values()]


def test_each_bucket_of_every_lane_is_captured_once_under_an_id_of_its_own(
    bound: BoundSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[BoundBatch] = []

    def noted(batch: BoundBatch) -> None:
        runs.append(batch)

    monkeypatch.setattr(BoundBatch, "run", noted)
    assert len(bound.open_lanes(3)) == 3
    opened = [batch for lane in bound._lanes[1:] for batch in lane.values()]
    assert runs == [batch for batch in opened for _ in range(2)], "a plain run and the capture"
    ids = graph_ids(bound)
    assert len(set(ids)) == len(ids) == 3 * len(BUCKETS)
    assert not {"-1", "0"} & set(ids)
    runs.clear()
    assert len(bound.open_lanes(2)) == 2
    assert not runs, "lanes that are open are not opened again"
    bound.close()


def test_each_bucket_of_every_lane_gives_the_logits_of_infer(bound: BoundSession) -> None:
    lanes = bound.open_lanes(3)
    for rows in BUCKETS:
        pixels = noise(rows, rows)
        for compute in lanes:
            np.testing.assert_array_equal(compute(pixels), bound.infer(pixels))
        np.testing.assert_allclose(bound.infer(pixels), expected_logits(pixels), atol=1e-5)
    bound.close()


def test_a_lanes_pixels_are_copied_by_its_own_thread_while_anothers_batch_runs(
    bound: BoundSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bound.open_lanes(2)
    runs, may_run, second_is_there = Event(), Event(), Event()
    copied: list[tuple[int, int]] = []
    run, put = BoundBatch.run, BoundBatch.put

    def held(batch: BoundBatch) -> None:
        runs.set()
        assert may_run.wait(30)
        run(batch)

    def noted(batch: BoundBatch, pixels: NDArray[np.uint8]) -> None:
        put(batch, pixels)
        copied.append((len(pixels), get_ident()))
        if len(pixels) == 4:
            second_is_there.set()

    monkeypatch.setattr(BoundBatch, "run", held)
    monkeypatch.setattr(BoundBatch, "put", noted)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(lambda: (first(noise(8, 1)), get_ident()))
        assert runs.wait(30)
        two = pool.submit(lambda: (second(noise(4, 2)), get_ident()))
        assert second_is_there.wait(30), "the first batch still runs"
        may_run.set()
        (first_logits, first_thread), (second_logits, second_thread) = one.result(30), two.result(30)
    bound.close()
    assert copied == [(8, first_thread), (4, second_thread)]
    np.testing.assert_allclose(first_logits, expected_logits(noise(8, 1)), atol=1e-5)
    np.testing.assert_allclose(second_logits, expected_logits(noise(4, 2)), atol=1e-5)


def test_lanes_side_by_side_give_each_thread_its_own_answers(bound: BoundSession) -> None:
    batches = [noise(BUCKETS[seed % 3], seed) for seed in range(60)]

    def work(number: int, compute: Infer) -> list[NDArray[np.float32]]:
        return [compute(pixels) for pixels in batches[number::3]]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(work, range(3), bound.open_lanes(3)))
    bound.close()
    for number, each in enumerate(answers):
        for pixels, logits in zip(batches[number::3], each, strict=True):
            np.testing.assert_allclose(logits, expected_logits(pixels), atol=1e-5)


def test_a_lane_that_fails_leaves_the_others_and_goes_on_itself(bound: BoundSession) -> None:
    first, second = bound.open_lanes(2)
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        second(np.zeros((4, 7, 9, 3), np.uint8))
    for compute in (first, second):
        np.testing.assert_allclose(compute(noise(4)), expected_logits(noise(4)), atol=1e-5)
    bound.close()


def test_lanes_that_cannot_be_opened_leave_nothing_and_those_that_are_open_go_on(
    bound: BoundSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = graph_ids(bound)
    run = BoundBatch.run
    opened: list[weakref.ref[BoundBatch]] = []

    def fail_at_the_last(batch: BoundBatch) -> None:
        opened.append(weakref.ref(batch))
        if len(opened) == 2 * 2 * len(BUCKETS):
            raise RuntimeError("out of memory")
        run(batch)

    monkeypatch.setattr(BoundBatch, "run", fail_at_the_last)
    with pytest.raises(RuntimeError, match="out of memory"):
        bound.open_lanes(3)
    monkeypatch.undo()
    gc.collect()
    assert not [batch for batch in opened if batch() is not None]
    assert graph_ids(bound) == ids
    np.testing.assert_allclose(bound.infer(noise(4)), expected_logits(noise(4)), atol=1e-5)
    bound.open_lanes(3)
    assert len(set(graph_ids(bound))) == 3 * len(BUCKETS)
    bound.close()


def test_closing_releases_the_memory_of_all_lanes_though_they_are_still_held(bound: BoundSession) -> None:
    lanes = bound.open_lanes(3)
    batches = [weakref.ref(batch) for lane in bound._lanes for batch in lane.values()]
    assert len(batches) == 3 * len(BUCKETS)
    bound.close()
    gc.collect()
    assert not [batch for batch in batches if batch() is not None]
    del lanes


def test_the_backends_lanes_raise_its_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend on the CPU that is given the bound session of a GPU."""
    package = load_package(write_colours_package(tmp_path / "colours"))
    backend = OnnxRuntimeBackend(package, precision="fp32", buckets=BUCKETS, threads=1, cuda=False)
    row_shape = noise(1).shape[1:]
    backend._bound = BoundSession(backend._session, buckets=BUCKETS, row_shape=row_shape, classes=4, device="cpu")
    lanes = backend.open_lanes(2)
    with pytest.raises(BackendError, match=r"failed on uint8 rows of shape \(4, 7, 9, 3\)"):
        lanes[1](np.zeros((4, 7, 9, 3), np.uint8))
    np.testing.assert_allclose(lanes[1](noise(4)), expected_logits(noise(4)), atol=1e-5)

    def no_memory(batch: BoundBatch) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(BoundBatch, "run", no_memory)
    with pytest.raises(BackendError, match="3 batches .*: out of memory"):
        backend.open_lanes(3)
    backend.close()
    for call in (lambda: lanes[1](noise(4)), lambda: backend.open_lanes(2)):
        with pytest.raises(BackendError, match="was closed"):
            call()
