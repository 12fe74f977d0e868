"""The memory between a worker and the backend process, mapped twice as two processes have it."""

import numpy as np
import pytest

from fuseline.serve.workers.arena import Arena, ArenaShape
from fuseline.serve.workers.worker_memory import WorkerMemory


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_rows_of_any_type_have_room_and_lie_aligned_and_apart_from_logits(dtype: type, classes: int) -> None:
    shape = ArenaShape((3, 5, 7), classes, 9, np.dtype(dtype))
    memory = WorkerMemory()
    offset, own = memory.take(shape)
    other = Arena(memory.file, shape, offset)
    memory.close()
    assert (own.rows.shape, own.rows.dtype) == ((9, 3, 5, 7), np.dtype(dtype))
    assert own.rows.ctypes.data % 64 == 0
    assert shape.rows_offset + own.rows.nbytes == shape.size
    own.rows[:] = 1
    assert not other.logits.any()
    assert other.reserved_rows == 0
    other.logits[:] = 2.0
    assert (own.rows == 1).all()
    own.rows[8, 2, 4, 6] = 3
    assert other.rows[8, 2, 4, 6] == 3


def test_slots_of_pixels_take_what_they_took() -> None:
    pixels, floats = (ArenaShape((224, 224, 3), 1000, 16, np.dtype(dtype)) for dtype in ("uint8", "float32"))
    assert pixels.size - pixels.rows_offset == 16 * 224 * 224 * 3
    assert floats.size - floats.rows_offset == 4 * 16 * 224 * 224 * 3
    assert ArenaShape((224, 224, 3), 1000, 16) == pixels
