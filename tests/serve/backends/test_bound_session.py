"""Bound memory and its thread, on the CPU; the graphs of a GPU are in tests/gpu."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest

from fuseline.serve.backends.bound_session import BoundBatch, BoundSession
from fuseline.serve.backends.onnxruntime import open_session
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
