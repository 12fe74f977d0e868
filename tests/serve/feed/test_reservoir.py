"""A sample of bounded size, in which every item is as likely as any other."""

from random import Random

from fuseline.serve.feed.reservoir import Reservoir


def sample_of(items: int, size: int, random: Random) -> tuple[list[int], int]:
    reservoir: Reservoir[int] = Reservoir(size, random.random)
    for item in range(items):
        if (place := reservoir.place()) is not None:
            reservoir.put(place, item)
    return reservoir.take()


def test_all_is_kept_while_it_fits() -> None:
    assert sample_of(20, 20, Random(1)) == (list(range(20)), 20)


def test_every_item_is_kept_equally_often_and_all_are_counted() -> None:
    random, times = Random(1), [0] * 50
    for _ in range(4000):
        kept, seen = sample_of(50, 5, random)
        assert (len(kept), seen, len(set(kept))) == (5, 50, 5)
        for item in kept:
            times[item] += 1
    # Each is expected 400 times, with a standard deviation of 19.
    assert min(times) > 400 - 5 * 19
    assert max(times) < 400 + 5 * 19


def test_a_sample_that_was_taken_begins_again() -> None:
    reservoir: Reservoir[str] = Reservoir(2, Random(1).random)
    for item in "abc":
        if (place := reservoir.place()) is not None:
            reservoir.put(place, item)
    assert reservoir.take()[1] == 3
    assert reservoir.take() == ([], 0)
    place = reservoir.place()
    assert place is not None
    reservoir.put(place, "d")
    assert reservoir.take() == (["d"], 1)
