"""The balancer in virtual time: servers that are even, slow, gone, hung, draining, overloaded, new."""

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest

from fuseline.serve.balancing.balancer import Balancer
from fuseline.serve.balancing.ejection import FAILURES, Standing
from fuseline.serve.balancing.outcomes import Outcome

Behaviour = Callable[[float], tuple[float, Outcome]]
"""Seconds that a request sent at a time takes at a server, and what becomes of it."""


def well(seconds: float = 0.01) -> Behaviour:
    return lambda _: (seconds, Outcome.ANSWERED)


class Simulation:
    """Requests that come at random to a balancer, whose servers behave as told."""

    def __init__(self, servers: dict[str, Behaviour], *, rate: float = 300.0, has_check: bool = False) -> None:
        self.rand = random.Random(1)
        self.balancer: Balancer[str] = Balancer(self.rand.random, has_check=has_check)
        self.balancer.set_members(servers)
        self.servers = servers
        self.rate = rate
        self.now = 0.0
        self.ends: list = []
        self.sent: Counter[str] = Counter()
        self.ended: Counter[Outcome] = Counter()
        self.sent_at: dict[str, list[float]] = {}

    def run(self, seconds: float) -> Counter[str]:
        """Return how many requests each server was sent meanwhile."""
        before, until = Counter(self.sent), self.now + seconds
        while self.now < until:
            self.now += self.rand.expovariate(self.rate)
            while self.ends and self.ends[0][0] <= self.now:
                end, _, member, began, outcome = heapq.heappop(self.ends)
                self.balancer.end(member, outcome, began, end)
                self.ended[outcome] += 1
            member = self.balancer.begin(self.now)
            took, outcome = self.servers[member.key](self.now)
            self.sent[member.key] += 1
            self.sent_at.setdefault(member.key, []).append(self.now)
            heapq.heappush(self.ends, (self.now + took, self.sent.total(), member, self.now, outcome))
        return self.sent - before


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.5])
def test_equal_servers_get_equally_many_requests(seconds: float) -> None:
    sent = Simulation({name: well(seconds) for name in "abc"}).run(20)
    assert all(count == pytest.approx(sent.total() / 3, rel=0.02) for count in sent.values())


def test_a_server_half_as_fast_gets_about_half_where_all_are_busy() -> None:
    sent = Simulation({"a": well(0.1), "b": well(0.1), "c": well(0.2)}).run(30)
    assert 0.35 < sent["c"] / sent["a"] < 0.7


def test_a_server_that_is_gone_gets_ever_fewer_requests_and_is_found_back() -> None:
    up = [False]
    simulation = Simulation(
        {"a": well(), "b": well(), "c": lambda _: (0.01, Outcome.ANSWERED if up[0] else Outcome.UNREACHABLE)}
    )
    simulation.run(60)
    # 1, 2, 4, 8, 16 s after each other, and a few that were sent before the first one failed.
    assert simulation.ended[Outcome.UNREACHABLE] <= 8
    up[0] = True
    simulation.run(31)
    sent = simulation.run(20)
    assert all(count == pytest.approx(sent.total() / 3, rel=0.05) for count in sent.values())


def test_a_server_that_hangs_is_ejected_by_its_first_timeouts_and_then_costs_one_request_a_trial() -> None:
    simulation = Simulation({"a": well(), "b": well(), "c": lambda _: (5.0, Outcome.FAILED)})
    simulation.run(5.5)
    # Those that it has count as load, so that it gets few even before the first is late.
    assert simulation.sent["c"] < 0.1 * simulation.sent.total()
    assert simulation.sent["c"] >= FAILURES
    sent = simulation.run(40)
    assert sent["c"] <= 5


def test_all_servers_ejected_are_tried_anyway_and_evenly() -> None:
    simulation = Simulation({name: lambda _: (0.01, Outcome.FAILED) for name in "abc"})
    simulation.run(5)
    sent = simulation.run(20)
    assert all(count == pytest.approx(sent.total() / 3, rel=0.1) for count in sent.values())


def test_rather_a_sick_server_gets_a_request_than_one_that_drains_and_rather_a_full_one_than_a_sick_one() -> None:
    balancer: Balancer[str] = Balancer(random.Random(1).random)
    balancer.set_members("abc")
    for name, outcome in (("a", Outcome.DRAINING), ("b", Outcome.UNREACHABLE), ("c", Outcome.OVERLOADED)):
        others = set("abc") - {name}
        member = balancer.begin(0.0, others)
        balancer.end(member, outcome, 0.0, 0.1, retry_after_s=0.5)
    assert not balancer.is_any_free(0.2)
    assert {balancer.begin(0.2).key for _ in range(10)} == {"c"}
    assert {balancer.begin(0.2, {"c"}).key for _ in range(10)} == {"b"}
    assert {balancer.begin(0.2, {"c", "b"}).key for _ in range(10)} == {"a"}
    assert balancer.begin(0.2, set("abc")) is None
    assert balancer.is_any_free(0.7)


def test_a_server_on_trial_has_one_request_at_a_time() -> None:
    balancer: Balancer[str] = Balancer(random.Random(1).random)
    balancer.set_members("ab")
    balancer.end(balancer.begin(0.0, {"b"}), Outcome.UNREACHABLE, 0.0, 0.1)
    trial = balancer.begin(2.0)
    assert trial.key == "a"
    assert {balancer.begin(2.0).key for _ in range(10)} == {"b"}
    balancer.end(trial, Outcome.ANSWERED, 2.0, 2.1)
    assert "a" in {balancer.begin(2.2).key for _ in range(10)}


def test_who_comes_or_comes_back_gets_an_even_share_and_not_what_it_missed() -> None:
    simulation = Simulation({name: well(0.0001) for name in "abc"})
    simulation.run(10)
    simulation.servers["d"] = well(0.0001)
    simulation.balancer.set_members("abcd")
    sent = simulation.run(10)
    assert all(count == pytest.approx(sent.total() / 4, rel=0.05) for count in sent.values())


def test_a_server_that_is_taken_away_gets_nothing_more_and_its_requests_end() -> None:
    balancer: Balancer[str] = Balancer(random.Random(1).random)
    balancer.set_members("ab")
    member = balancer.begin(0.0, {"b"})
    assert balancer.set_members("b") == [member]
    assert {balancer.begin(0.0).key for _ in range(10)} == {"b"}
    balancer.end(member, Outcome.UNREACHABLE, 0.0, 1.0)
    assert member.under_way == 0
    balancer.set_members("ab")
    fresh = balancer.begin(1.0, {"b"})
    assert fresh is not member
    assert fresh.ejection.standing(1.0) is Standing.IN


def test_each_server_that_is_due_is_checked_once_at_a_time() -> None:
    balancer: Balancer[str] = Balancer(random.Random(1).random, has_check=True)
    balancer.set_members("ab")
    member = balancer.begin(0.0, {"b"})
    balancer.end(member, Outcome.UNREACHABLE, 0.0, 0.1)
    assert not balancer.due(0.5)
    assert balancer.due(2.0) == [member]
    assert not balancer.due(2.0)
    assert {balancer.begin(2.0).key for _ in range(10)} == {"b"}
    balancer.checked(member, Outcome.UNTOLD, 2.1)
    assert balancer.due(2.2) == [member]
    balancer.checked(member, Outcome.ANSWERED, 2.3)
    assert balancer.begin(2.3) is member
