"""Where the attempts at one call go, and when, if there are several servers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.client.calls import error_from_rpc, is_unreached
from fuseline.serve.client.failures import outcome_of
from fuseline.serve.client.retries import RetryPolicy
from fuseline.serve.client.servers import Lease, Link, Servers
from fuseline.serve.errors import FuselineError, InputError, OverloadedError


class CallPlan:
    """The attempts at one call.

    An attempt that no server has begun is made again at once with each other server, whatever the retries: nothing is
    repeated by that. So is one that an overloaded server refused, with each other one that takes requests, which are
    not multiplied: the one that refused gets none until the time that it named. One that a server may have begun is
    made again as often as the policy allows: at once where another server takes requests, else after the time that
    `RetryPolicy` tells.
    """

    def __init__(
        self,
        servers: Servers,
        policy: RetryPolicy,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The call begins now, and ends within `timeout_s` seconds."""
        self._servers = servers
        self._policy = policy
        self.timeout_s = timeout_s
        self._clock = clock
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._tried: set[str] = set()
        self._attempt = 0
        self._shortest_retry_after_s: float | None = None
        self._unreached: set[str] = set()
        self._is_news = True
        self.last: Link | None = None
        """Server of the attempt that failed last."""

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None: there is none."""
        return None if self._deadline is None else self._deadline - self._clock()

    def begin(self) -> Lease:
        """Begin an attempt, with a server that wasn't tried where there is one."""
        lease = self._servers.begin(self._tried)
        if lease is None:
            self._tried.clear()
            lease = self._servers.begin()
        assert lease is not None
        return lease

    def begin_copy(self, lease: Lease) -> Lease | None:
        """Begin a copy of the attempt `lease` with another server that takes requests; None: there is none."""
        without = {*self._tried, lease.link.address}
        return self._servers.begin(without) if self._servers.is_any_free(without) else None

    @contextmanager
    def ending(self, lease: Lease, given_s: float | None) -> Iterator[None]:
        """End the attempt, which has `given_s` seconds, with the block: by an answer, or an error of the tree."""
        with self.failing(lease, given_s):
            yield
        self.answered(lease)

    @contextmanager
    def failing(self, lease: Lease, given_s: float | None) -> Iterator[None]:
        """End the attempt, which has `given_s` seconds, if the block fails, by an error of the tree."""
        try:
            yield
        except FuselineError as error:
            self.failed(lease, error, given_s)
            raise
        except grpc.RpcError as error:
            failure = error_from_rpc(error, lease.link.address, self.timeout_s, None)
            self.failed(lease, failure, given_s)
            raise failure from error
        except BaseException:
            self.dropped(lease)
            raise

    def answered(self, lease: Lease) -> None:
        """Take in that the attempt was answered."""
        self._servers.end(lease, Outcome.ANSWERED)
        self._policy.note_success()

    def dropped(self, lease: Lease) -> None:
        """Take in that the attempt was given up."""
        self._servers.end(lease, Outcome.UNTOLD)

    def failed(self, lease: Lease, error: FuselineError, given_s: float | None) -> None:
        """Take in that the attempt, which had `given_s` seconds, failed by `error`."""
        outcome = outcome_of(error)
        if outcome is Outcome.FAILED and not self._was_patient(given_s):
            outcome = Outcome.UNTOLD
        self._is_news = self._servers.end(lease, outcome, error.retry_after_s)
        self._tried.add(lease.link.address)
        if outcome is Outcome.UNREACHABLE:
            self._unreached.add(lease.link.address)
        self.last = lease.link
        if error.retry_after_s is not None:
            known = self._shortest_retry_after_s
            self._shortest_retry_after_s = error.retry_after_s if known is None else min(known, error.retry_after_s)

    def wait_s(self, error: FuselineError) -> float | None:
        """Return the seconds until the attempt after one that failed by `error`; None: there is none."""
        left_s = self.left_s
        if left_s is not None and left_s <= 0:
            return None
        if error.is_untaken and self._servers.has_other(self._tried):
            return 0.0
        if self._servers.is_any_free(self._tried):
            if isinstance(error, OverloadedError):
                return 0.0
            # A connection that breaks fails all calls on it. That is one failure, and no reason to give them up.
            takes_another = self._policy.takes_another(self._attempt, error, is_counted=self._is_news)
            wait_s = 0.0 if takes_another else None
        else:
            # All were tried: whoever has room first may be asked again.
            error.retry_after_s = self._shortest_retry_after_s
            wait_s = self._policy.wait_s(self._attempt, error, left_s)
            self._tried.clear()
            self._shortest_retry_after_s = None
        self._attempt += 1
        return wait_s

    def suspected(self, error: FuselineError) -> Link | None:
        """Return the server to which the last attempt, which failed by `error`, may have found no way for TLS."""
        cause = error.__cause__
        return self.last if isinstance(cause, grpc.RpcError) and is_unreached(cause) else None

    def last_error(self, error: FuselineError) -> FuselineError:
        """Return the error that the call raises if its last attempt failed by `error`."""
        if type(error) is not InputError or not error.may_pass or not 1 < self._servers.count <= len(self._unreached):
            return error
        none = InputError(f"none of {self._servers.count} servers can be reached; of the last one: {error}")
        none.may_pass, none.is_untaken = True, error.is_untaken
        return none

    def _was_patient(self, given_s: float | None) -> bool:
        """Return whether an attempt had so much of the call's time that its server is to blame for no answer."""
        return given_s is None or self.timeout_s is None or given_s > max(0.0, self.timeout_s / 2)
