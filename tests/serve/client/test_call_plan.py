"""Where attempts at a call go and when, in virtual time."""

import random
from collections.abc import Callable

import pytest

from fuseline.serve import errors
from fuseline.serve.balancing.balancer import Member
from fuseline.serve.balancing.ejection import FAILURES, Standing
from fuseline.serve.client.call_plan import CallPlan
from fuseline.serve.client.retries import RetryPolicy
from fuseline.serve.client.server_addresses import Target, targets_of
from fuseline.serve.client.servers import Link, Servers
from fuseline.serve.services.statuses import STATUS_CODE_OF_ERROR, error_from_status
from tests.fakes.clock import Clock


class FakeServers(Servers):
    """Servers that are only names."""

    def __init__(self, names: str, clock: Clock) -> None:
        super().__init__(targets_of(names), lambda *_: [], clock=clock, rand=random.Random(1).random)

    def _open(self, address: str, target: Target) -> Link:
        return Link(address, None, None)

    def _close(self, link: Link) -> None:
        pass

    def _begin_check(self, member: Member[str], link: Link) -> None:
        pass

    def _begin_lookup(self) -> None:
        pass

    def standings(self, now: float) -> dict[str, Standing]:
        return {member.key: member.ejection.standing(now) for member in self._balancer.members}


def told(error_class: type[errors.FuselineError], retry_after_s: float | None = None) -> errors.FuselineError:
    return error_from_status(STATUS_CODE_OF_ERROR[error_class], "no", error_class.__name__, retry_after_s)


def unreached(*, is_untaken: bool) -> errors.FuselineError:
    error = errors.InputError("no server answers")
    error.may_pass, error.is_untaken = True, is_untaken
    return error


def late() -> errors.FuselineError:
    error = errors.DeadlineError("no answer")
    error.is_unanswered = True
    return error


Behaviour = Callable[[str, int], errors.FuselineError | None]


class Call:
    """One call, at once but for its waits."""

    def __init__(self, names: str = "a:1,b:1,c:1", retries: int = 2) -> None:
        self.clock = Clock()
        self.servers = FakeServers(names, self.clock)
        self.policy = RetryPolicy(retries, lambda: 1.0)
        self.attempts: list[tuple[str, float]] = []

    def made(self, behaviour: Behaviour, timeout_s: float | None = 30.0, seconds: float = 0.0) -> str:
        """Return the server that answers; each attempt takes `seconds`."""
        begun = self.clock.now
        self.attempts = []
        plan = CallPlan(self.servers, self.policy, timeout_s, self.clock)
        while True:
            lease, given_s = plan.begin(), plan.left_s
            self.attempts.append((lease.link.address, round(self.clock.now - begun, 3)))
            self.clock.now += seconds + 1e-6
            try:
                with plan.ending(lease, given_s):
                    if (error := behaviour(lease.link.address, len(self.attempts))) is not None:
                        raise error
            except errors.FuselineError as error:
                wait_s = plan.wait_s(error)
                if wait_s is None:
                    raise plan.last_error(error) from None
                self.clock.now += wait_s
            else:
                return lease.link.address


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("error", [unreached(is_untaken=True), told(errors.ShuttingDownError)], ids=["gone", "drains"])
def test_what_no_server_has_begun_is_tried_on_each_other_one_at_once_whatever_the_retries(
    retries: int, error: errors.FuselineError
) -> None:
    call = Call(retries=retries)
    assert call.made(lambda name, _: None if name == "c:1" else error) == "c:1"
    for _ in range(50):
        assert call.made(lambda name, _: None if name == "c:1" else error) == "c:1"
    call = Call(retries=0)
    with pytest.raises(type(error)):
        call.made(lambda *_: error)
    assert sorted(name for name, _ in call.attempts) == ["a:1", "b:1", "c:1"]
    assert {at for _, at in call.attempts} == {0.0}


def test_what_a_server_may_have_begun_is_tried_elsewhere_at_once_as_often_as_the_policy_allows() -> None:
    call = Call(retries=1)
    assert call.made(lambda _, attempt: unreached(is_untaken=False) if attempt == 1 else None)
    assert len({name for name, _ in call.attempts}) == 2
    call = Call(retries=0)
    with pytest.raises(errors.InputError):
        call.made(lambda *_: unreached(is_untaken=False))
    assert len(call.attempts) == 1


@pytest.mark.parametrize(
    "error", [errors.ImageError, errors.UnknownModelError, errors.BackendError, errors.DeadlineError]
)
def test_an_answer_and_a_server_s_own_fault_are_not_tried_again(error: type[errors.FuselineError]) -> None:
    call = Call()
    with pytest.raises(error):
        call.made(lambda *_: told(error))
    assert len(call.attempts) == 1


def test_an_overloaded_server_is_left_alone_for_its_time_and_others_are_asked_at_once() -> None:
    call = Call()
    assert call.made(lambda _, attempt: told(errors.OverloadedError, 5.0) if attempt == 1 else None)
    (full, _), (free, at) = call.attempts
    assert full != free
    assert at == 0.0
    assert all(call.made(lambda name, _: None) != full for _ in range(30))
    call.clock.now += 5
    assert full in {call.made(lambda name, _: None) for _ in range(30)}


def test_overload_refusals_that_others_make_good_use_up_no_retries() -> None:
    call = Call()
    for _ in range(200):
        call.made(lambda name, _: told(errors.OverloadedError) if name == "a:1" else None)
        call.clock.now += 1.0


def test_where_all_are_overloaded_the_first_that_has_room_is_waited_for() -> None:
    call = Call()
    after_s = {"a:1": 9.0, "b:1": 2.0, "c:1": 7.0}
    served = call.made(lambda name, attempt: told(errors.OverloadedError, after_s[name]) if attempt <= 3 else None)
    assert served == "b:1"
    # Two seconds, and the jitter at its bound.
    assert call.attempts[3][1] == pytest.approx(2.1, abs=0.01)


def test_no_wait_goes_beyond_the_deadline() -> None:
    call = Call()
    with pytest.raises(errors.OverloadedError):
        call.made(lambda *_: told(errors.OverloadedError, 5.0), timeout_s=3.0)
    assert len(call.attempts) == 3
    assert call.clock.now < 101


def test_an_attempt_that_takes_all_of_the_time_is_the_last_one() -> None:
    call = Call()
    with pytest.raises(errors.InputError):
        call.made(lambda *_: unreached(is_untaken=True), timeout_s=3.0, seconds=3.0)
    assert len(call.attempts) == 1


def test_many_requests_on_one_connection_that_breaks_are_all_tried_elsewhere() -> None:
    call = Call("a:1,b:1")
    plans = [CallPlan(call.servers, call.policy, 30.0, call.clock) for _ in range(100)]
    leases = [(plan, plan.begin()) for plan in plans]
    call.clock.now += 1
    for plan, lease in leases:
        if lease.link.address == "a:1":
            error = unreached(is_untaken=False)
            plan.failed(lease, error, 30.0)
            assert plan.wait_s(error) == 0.0


def test_passed_deadlines_that_were_too_short_to_begin_with_eject_no_server() -> None:
    call = Call("a:1,b:1")
    for _ in range(10 * FAILURES):
        with pytest.raises(errors.DeadlineError):
            call.made(lambda *_: late(), timeout_s=-1.0)
    assert set(call.servers.standings(call.clock.now).values()) == {Standing.IN}
    for _ in range(2 * FAILURES + 2):
        with pytest.raises(errors.DeadlineError):
            call.made(lambda *_: late(), timeout_s=1.0)
    assert Standing.OUT in call.servers.standings(call.clock.now).values()


def test_a_deadline_that_a_server_says_it_can_t_meet_ejects_none() -> None:
    call = Call("a:1,b:1")
    for _ in range(10 * FAILURES):
        with pytest.raises(errors.DeadlineError):
            call.made(lambda *_: told(errors.DeadlineError))
    assert set(call.servers.standings(call.clock.now).values()) == {Standing.IN}
