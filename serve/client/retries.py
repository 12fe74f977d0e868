"""When a call that failed is made again: at most so often, not before the server's word, and never beyond the deadline.

Only what is UNAVAILABLE or RESOURCE_EXHAUSTED is tried again: the server has not taken such a request, or has lost it,
and classifying twice changes nothing. gRPC itself repeats, at once and unseen, a call that provably reached no server;
it does no more than that by default, so the two don't multiply.

The wait grows exponentially and is random between 0 and its bound ("full jitter", of the AWS Architecture Blog's
Exponential Backoff And Jitter), so that clients that failed together don't come back together. A client whose calls
mostly fail stops trying again (gRFC A6, retry throttling), so that a server that is down gets no multiple of its load.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fuseline.serve.errors import FuselineError

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
_BUDGET = 10.0
_RETRY_ABOVE = 5.0
_SUCCESS_ADDS = 0.1

_Answer = TypeVar("_Answer")


class RetryPolicy:
    """The retries of one client; its calls share a budget. Threads may share it."""

    def __init__(self, retries: int, rand: Callable[[], float] = random.random) -> None:
        """Make at most `retries` further attempts at a call; `rand` returns a number from 0 to 1."""
        self._retries = retries
        self._rand = rand
        self._budget = _BUDGET

    def note_success(self) -> None:
        """Count an answer."""
        self._budget = min(_BUDGET, self._budget + _SUCCESS_ADDS)

    def wait_s(self, attempt: int, error: FuselineError, left_s: float | None) -> float | None:
        """Return the seconds from a call's failure to its next attempt; None: there is none.

        `attempt` is the number of the one that failed, from 0, and `left_s` are the seconds until the deadline. Where
        the server has said when there is likely to be room, the wait is not shorter.
        """
        if not self.takes_another(attempt, error):
            return None
        wait_s = (error.retry_after_s or 0.0) + self._rand() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
        return None if left_s is not None and wait_s >= left_s else wait_s

    def takes_another(self, attempt: int, error: FuselineError, *, is_counted: bool = True) -> bool:
        """Return whether there is another attempt after number `attempt`, whose failure counts if `is_counted`."""
        if not error.may_pass:
            return False
        if is_counted:
            self._budget = max(0.0, self._budget - 1)
        return attempt < self._retries and self._budget > _RETRY_ABOVE


def call_with_retries(
    call: Callable[[float | None], _Answer],
    timeout_s: float | None,
    policy: RetryPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> _Answer:
    """Return what `call(seconds left)` returns, at the first attempt that doesn't fail; raise the last one's error."""
    deadline = None if timeout_s is None else clock() + timeout_s
    attempt, left_s = 0, timeout_s
    while True:
        try:
            answer = call(left_s)
        except FuselineError as error:
            left_s = None if deadline is None else deadline - clock()
            wait_s = policy.wait_s(attempt, error, left_s)
            if wait_s is None:
                raise
        else:
            policy.note_success()
            return answer
        sleep(wait_s)
        attempt += 1
        left_s = None if deadline is None else deadline - clock()


async def await_with_retries(
    call: Callable[[float | None], Awaitable[_Answer]],
    timeout_s: float | None,
    policy: RetryPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> _Answer:
    """Do as `call_with_retries`, on the event loop."""
    deadline = None if timeout_s is None else clock() + timeout_s
    attempt, left_s = 0, timeout_s
    while True:
        try:
            answer = await call(left_s)
        except FuselineError as error:
            left_s = None if deadline is None else deadline - clock()
            wait_s = policy.wait_s(attempt, error, left_s)
            if wait_s is None:
                raise
        else:
            policy.note_success()
            return answer
        await sleep(wait_s)
        attempt += 1
        left_s = None if deadline is None else deadline - clock()
