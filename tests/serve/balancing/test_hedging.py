from fuseline.serve.balancing.hedging import SHARE, HedgeBudget


def test_the_first_request_may_have_a_copy() -> None:
    assert HedgeBudget().takes_one()


def test_copies_are_a_bounded_share_where_every_request_would_have_one() -> None:
    budget, copies = HedgeBudget(), 0
    for _ in range(10_000):
        budget.note_request()
        copies += budget.takes_one()
    assert copies <= 10_000 * SHARE + 1


def test_quiet_times_save_up_no_burst_of_copies() -> None:
    budget = HedgeBudget()
    for _ in range(10_000):
        budget.note_request()
    assert sum(budget.takes_one() for _ in range(100)) == 10
