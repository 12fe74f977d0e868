import numpy as np

from fuseline.export.eager import rows_at_a_time


def test_batches_shrink_as_images_grow() -> None:
    assert rows_at_a_time(np.empty((1, 32, 32, 3), np.uint8)) == 16
    assert rows_at_a_time(np.empty((1, 448, 448, 3), np.uint8)) == 4
    assert rows_at_a_time(np.empty((1, 4096, 4096, 1), np.uint8)) == 1
