import random
from collections import Counter
from itertools import permutations

import pytest

from fuseline.serve.balancing.choice import less_loaded_of_two


def test_a_single_server_is_taken_without_a_draw():
    assert less_loaded_of_two([7], rand=pytest.fail) == 0


def test_no_server_is_refused():
    with pytest.raises(ValueError, match="empty"):
        less_loaded_of_two([], random.random)


def test_the_less_loaded_of_two_is_taken_whichever_is_drawn_first():
    rand = random.Random(1).random
    assert {less_loaded_of_two([3, 2], rand) for _ in range(100)} == {1}
    assert {less_loaded_of_two([2, 3], rand) for _ in range(100)} == {0}


def test_the_most_loaded_of_three_is_never_taken():
    rand = random.Random(1).random
    assert {less_loaded_of_two([1, 5, 1], rand) for _ in range(1000)} == {0, 2}


def test_pairs_are_drawn_evenly_and_ties_go_to_the_first_drawn():
    draws = Counter()
    for first in range(3):
        for second in range(2):
            numbers = iter([(first + 0.5) / 3, (second + 0.5) / 2])
            draws[less_loaded_of_two([4, 4, 4], lambda numbers=numbers: next(numbers))] += 1
    assert draws == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize("loads", list(permutations([1, 2, 3])))
def test_the_least_loaded_is_taken_by_two_draws_of_three(loads):
    rand = random.Random(2).random
    taken = Counter(less_loaded_of_two(loads, rand) for _ in range(6000))
    assert taken[loads.index(1)] == pytest.approx(4000, rel=0.1)
    assert taken[loads.index(2)] == pytest.approx(2000, rel=0.1)


def test_loads_of_requests_that_end_at_random_stay_closer_than_those_of_one_choice():
    """Ten servers get 5000 requests, of which as many end at random: the longest queue, with and without a choice."""

    def longest(choose):
        rand = random.Random(3)
        under_way, seen = [0] * 10, 0
        for _ in range(5000):
            under_way[choose(under_way, rand)] += 1
            busy = rand.randrange(10)
            under_way[busy] = max(0, under_way[busy] - 1)
            seen = max(seen, *under_way)
        return seen

    assert longest(lambda u, r: less_loaded_of_two(u, r.random)) * 3 < longest(lambda u, r: r.randrange(len(u)))
