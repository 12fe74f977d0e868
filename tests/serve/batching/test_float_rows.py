"""Rows of floats through the batcher; what it guarantees of any rows is in test_batcher.py."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.errors import RequestError
from tests.serve.batching.batchers import batcher_of

ROW_SHAPE = (3, 2, 2)
FLOATS = [np.float32, np.float16]


def sums(rows: NDArray[Any]) -> NDArray[np.float32]:
    """One logit of each row."""
    return rows.astype(np.float32).reshape(len(rows), -1).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", FLOATS)
async def test_the_backend_gets_the_rows_in_their_own_type_and_zeros_behind_them(dtype: type) -> None:
    seen: list[NDArray[Any]] = []

    def infer(rows: NDArray[Any]) -> NDArray[np.float32]:
        seen.append(rows.copy())
        return sums(rows)

    batcher = batcher_of(infer, row_shape=ROW_SHAPE, row_dtype=dtype, buckets=(4,), max_queue_rows=8)
    rows = np.random.default_rng(0).normal(size=(3, *ROW_SHAPE)).astype(dtype)
    answer = await batcher.submit(list(rows))
    await batcher.drain()
    (batch,) = seen
    assert batch.dtype == dtype
    np.testing.assert_array_equal(batch[:3], rows)
    assert not batch[3:].any()
    np.testing.assert_array_equal(answer.logits, sums(rows))


@pytest.mark.parametrize("dtype", FLOATS)
async def test_a_row_of_nan_spoils_no_neighbour_and_no_later_batch(dtype: type) -> None:
    batcher = batcher_of(sums, row_shape=ROW_SHAPE, row_dtype=dtype, buckets=(4,), max_queue_rows=8)
    rows = np.ones((4, *ROW_SHAPE), dtype)
    rows[1:] = np.nan
    answer = await batcher.submit(list(rows))
    assert np.isfinite(answer.logits[:, 0]).tolist() == [True, False, False, False]
    later = await batcher.submit([np.ones(ROW_SHAPE, dtype)])
    await batcher.drain()
    assert later.logits.tolist() == [[12.0]]


@pytest.mark.parametrize("wrong", [np.uint8, np.float64, np.int32, ">f4"])
async def test_rows_of_another_type_are_refused_with_both_types(wrong: Any) -> None:
    batcher = batcher_of(sums, row_shape=ROW_SHAPE, row_dtype=np.float32, buckets=(4,), max_queue_rows=8)
    with pytest.raises(RequestError, match=r"a row is .* of shape \(3, 2, 2\), expected float32 of shape \(3, 2, 2\)"):
        batcher.submit([np.zeros(ROW_SHAPE, wrong)])
    await batcher.drain()


async def test_a_batcher_of_pixels_refuses_floats() -> None:
    batcher = batcher_of(sums, row_shape=ROW_SHAPE, buckets=(4,), max_queue_rows=8)
    with pytest.raises(RequestError, match="a row is float32 .* expected uint8"):
        batcher.submit([np.zeros(ROW_SHAPE, np.float32)])
    await batcher.drain()
