import pytest

from fuseline.serve.workers.slots import SlotTable


def test_slots_are_taken_lowest_first_and_the_one_freed_last_again() -> None:
    table = SlotTable(5)
    assert table.take(3) == [0, 1, 2]
    table.release([1])
    assert table.take(2) == [1, 3]
    assert (table.taken, table.free) == (4, 1)


def test_what_does_not_fit_takes_nothing() -> None:
    table = SlotTable(3)
    assert table.take(2) is not None
    assert table.take(2) is None
    assert table.free == 1
    assert table.take(1) == [2]
    assert table.take(1) is None


def test_giving_back_twice_is_refused_and_frees_nothing() -> None:
    table = SlotTable(2)
    slots = table.take(2)
    assert slots == [0, 1]
    table.release([0])
    with pytest.raises(ValueError, match="given back"):
        table.release([1, 0])
    assert table.taken == 1
