"""What the requests of a batch share."""

import numpy as np

from fuseline.serve.services.top_k import RankedBatch


def test_a_row_that_is_not_finite_spoils_no_neighbour():
    rows = np.array([[1, 2, 0], [np.nan, 1, 2], [np.inf, 0, 0], [0, 1, 5]], np.float32)
    ranked = RankedBatch(rows)
    assert [ranked.is_finite(row, 1) for row in range(4)] == [True, False, False, True]
    assert not ranked.is_finite(0, 2)
    top = ranked.top(2)
    assert [index for index, _ in top[0]] == [1, 0]
    assert [index for index, _ in top[3]] == [2, 1]
    expected = np.exp([1, 2]) / np.exp([1, 2, 0]).sum()
    np.testing.assert_allclose([probability for _, probability in top[0]], expected[::-1], rtol=1e-6)
    assert ranked.top(2) is top
    assert len(ranked.top(3)[0]) == 3
