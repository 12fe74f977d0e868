import pytest

from fuseline.serve.balancing.ejection import FAILURES, FIRST_OUT_S, FORGIVEN_AFTER_S, LONGEST_OUT_S, Ejection, Standing
from fuseline.serve.balancing.outcomes import Outcome

IN, OUT, DUE, ON_TRIAL = Standing


def ejected(times: int = 1, **options: bool) -> tuple[Ejection, float]:
    """A server that has just been ejected, and since then failed each trial; and the time."""
    server, now = Ejection(**options), 100.0
    server.note(Outcome.UNREACHABLE, now - 1, now)
    for _ in range(times - 1):
        while server.standing(now) is OUT:
            now += 0.5
        server.note(Outcome.UNREACHABLE, now, now + 0.25)
        now += 0.25
    return server, now


def seconds_out(server: Ejection, now: float) -> float:
    begun = now
    while server.standing(now) is OUT:
        now += 0.125
    return now - begun


def test_a_server_without_a_connection_is_out_at_once() -> None:
    server, now = ejected()
    assert server.standing(now) is OUT
    assert server.standing(now + FIRST_OUT_S) is ON_TRIAL


@pytest.mark.parametrize("between", [Outcome.ANSWERED, Outcome.OVERLOADED])
def test_failures_eject_only_in_a_row(between: Outcome) -> None:
    server = Ejection()
    for round in range(5):
        for _ in range(FAILURES - 1):
            server.note(Outcome.FAILED, 0.0, 1.0 + round)
        server.note(between, 0.0, 1.0 + round)
        assert server.standing(1.0 + round) is IN
    for _ in range(FAILURES):
        server.note(Outcome.FAILED, 0.0, 10.0)
    assert server.standing(10.0) is OUT


def test_the_time_out_doubles_up_to_its_bound_while_trials_fail() -> None:
    found = [seconds_out(*ejected(times)) for times in range(1, 8)]
    assert found == [1, 2, 4, 8, 16, LONGEST_OUT_S, LONGEST_OUT_S]


def test_requests_sent_before_the_ejection_neither_prolong_nor_end_it() -> None:
    server, now = ejected()
    for outcome in (Outcome.UNREACHABLE, Outcome.FAILED, Outcome.ANSWERED, Outcome.DRAINING):
        assert not server.note(outcome, now - 0.5, now + 0.5)
    assert seconds_out(server, now) == FIRST_OUT_S
    assert not server.is_draining


def test_one_answer_to_a_request_sent_since_brings_a_server_back() -> None:
    server, now = ejected(3)
    assert server.note(Outcome.ANSWERED, now + 0.1, now + 0.2)
    assert server.standing(now + 0.2) is IN


def test_one_failure_on_trial_is_enough() -> None:
    server, now = ejected()
    now += FIRST_OUT_S
    server.note(Outcome.FAILED, now, now + 0.5)
    assert seconds_out(server, now + 0.5) == 2 * FIRST_OUT_S


def test_time_in_forgives_ejections_one_by_one() -> None:
    for well_s, expected in ((0.0, 8), (FORGIVEN_AFTER_S, 4), (2 * FORGIVEN_AFTER_S, 2), (9 * FORGIVEN_AFTER_S, 1)):
        server, now = ejected(3)
        now += 10
        server.note(Outcome.ANSWERED, now, now)
        now += well_s
        server.note(Outcome.UNREACHABLE, now, now)
        assert seconds_out(server, now) == expected


def test_a_server_that_drains_is_out_at_once_and_never_for_longer() -> None:
    server, now = Ejection(), 100.0
    for _ in range(10):
        server.note(Outcome.DRAINING, now, now + 0.1)
        assert server.is_draining
        assert seconds_out(server, now + 0.1) == FIRST_OUT_S
        now += 5
    server.note(Outcome.ANSWERED, now, now)
    assert not server.is_draining
    server.note(Outcome.UNREACHABLE, now + 1, now + 1)
    assert seconds_out(server, now + 1) == FIRST_OUT_S


def test_an_overloaded_server_stays_in_and_has_no_room_for_as_long_as_it_said() -> None:
    server = Ejection()
    server.note(Outcome.OVERLOADED, 0.0, 1.0, retry_after_s=2.0)
    server.note(Outcome.OVERLOADED, 0.0, 1.5, retry_after_s=0.5)
    assert server.standing(1.0) is IN
    assert not server.has_room(2.9)
    assert server.has_room(3.0)


def test_a_caller_that_gives_up_says_nothing() -> None:
    server = Ejection()
    for _ in range(100):
        server.note(Outcome.UNTOLD, 0.0, 1.0)
    assert server.standing(1.0) is IN
    server, now = ejected()
    server.note(Outcome.UNTOLD, now + 0.1, now + 0.2)
    assert server.standing(now + 0.2) is OUT


def test_with_a_check_a_server_takes_nothing_before_it_and_one_request_after_it() -> None:
    server, now = ejected(has_check=True)
    now += FIRST_OUT_S
    assert server.standing(now) is DUE
    server.note_check(Outcome.UNTOLD, now)
    assert server.standing(now) is DUE
    server.note_check(Outcome.FAILED, now)
    assert seconds_out(server, now) == 2 * FIRST_OUT_S
    now += 2 * FIRST_OUT_S
    server.note_check(Outcome.ANSWERED, now)
    assert server.standing(now) is ON_TRIAL
    server.note(Outcome.ANSWERED, now, now + 1)
    assert server.standing(now + 1) is IN


def test_a_draining_server_that_is_gone_by_the_next_check_is_asked_ever_more_rarely() -> None:
    server = Ejection(has_check=True)
    server.note(Outcome.DRAINING, 0.0, 1.0)
    now = 2.0
    server.note_check(Outcome.DRAINING, now)
    assert (seconds_out(server, now), server.is_draining) == (FIRST_OUT_S, True)
    found = []
    for _ in range(3):
        now += seconds_out(server, now)
        server.note_check(Outcome.UNREACHABLE, now)
        found.append(seconds_out(server, now))
    assert found == [1, 2, 4]
    assert not server.is_draining
