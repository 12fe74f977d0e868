"""The memory that a worker shares, whose ranges come and go with models."""

import os
from collections.abc import Iterator

import pytest

from fuseline.serve.workers.arena import Arena, ArenaShape
from fuseline.serve.workers.worker_memory import WorkerMemory

SMALL, LARGE = (ArenaShape((64, 64, 3), 10, slots) for slots in (16, 400))


@pytest.fixture
def memory() -> Iterator[WorkerMemory]:
    memory = WorkerMemory()
    yield memory
    memory.close()


def used_bytes(memory: WorkerMemory) -> int:
    return 512 * os.fstat(memory.file).st_blocks


async def test_ranges_never_overlap_and_what_is_given_back_is_used_again_zeroed(memory: WorkerMemory) -> None:
    arenas = dict(memory.take(shape) for shape in (SMALL, LARGE, SMALL))
    for value, arena in enumerate(arenas.values(), start=1):
        arena.rows[:] = value
        arena.logits[:] = value
    assert [int(arena.rows.min()) for arena in arenas.values()] == [1, 2, 3]
    size = os.fstat(memory.file).st_size
    large = list(arenas)[1]
    await memory.give_back(large)
    again, first = memory.take(SMALL)
    _, second = memory.take(SMALL)
    assert again == large
    assert os.fstat(memory.file).st_size == size
    assert not first.rows.any()
    assert not second.rows.any()
    assert [int(arenas[offset].rows.max()) for offset in arenas if offset != large] == [1, 3]


async def test_what_is_given_back_takes_no_memory_even_while_it_is_mapped(memory: WorkerMemory) -> None:
    _, kept = memory.take(SMALL)
    kept.rows[:] = 1
    before = used_bytes(memory)
    for _ in range(20):
        offset, arena = memory.take(LARGE)
        other = Arena(memory.file, LARGE, offset)
        other.rows[:] = 7
        assert used_bytes(memory) > before + arena.rows.nbytes / 2
        await memory.give_back(offset)
    assert used_bytes(memory) == before
    assert os.fstat(memory.file).st_size < SMALL.size + LARGE.size + 2 * 4096


def test_it_never_shrinks_and_nothing_beyond_it_is_mapped(memory: WorkerMemory) -> None:
    offset, _ = memory.take(SMALL)
    with pytest.raises(PermissionError):
        os.truncate(memory.file, 0)
    with pytest.raises(ValueError, match="greater than file size"):
        Arena(memory.file, LARGE, offset)
