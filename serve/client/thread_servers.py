"""Calls of threads to several servers."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, TypeVar

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest
from fuseline.serve.balancing.balancer import Member
from fuseline.serve.balancing.hedging import HedgeBudget
from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.client.call_plan import CallPlan
from fuseline.serve.client.calls import no_connection
from fuseline.serve.client.failures import outcome_of
from fuseline.serve.client.health_check import HEALTH_CHECK, outcome_of_health, outcome_of_health_error
from fuseline.serve.client.http_stub import HttpStub
from fuseline.serve.client.name_lookup import Resolver
from fuseline.serve.client.requests import DraftRequest
from fuseline.serve.client.retries import RetryPolicy
from fuseline.serve.client.server_addresses import Target
from fuseline.serve.client.servers import CHECK_TIMEOUT_S, Lease, Link, Servers, described_within
from fuseline.serve.client.tls_failures import found_tls_failure
from fuseline.serve.errors import FuselineError
from fuseline.serve.model_description import ModelDescription, description_from_response

_Answer = TypeVar("_Answer")
_Attempt = Callable[[CallPlan, Lease, float | None], _Answer]


class ThreadServers(Servers):
    """Several servers, and the calls to them."""

    def __init__(
        self,
        targets: Sequence[Target],
        resolver: Resolver,
        open_link: Callable[[str, Target], Link],
        policy: RetryPolicy,
        extra: dict[str, Any],
        hedge_after_s: float | None = None,
    ) -> None:
        """`open_link` returns the connection to an address; `extra` is what each call of a stub takes besides."""
        self._open_link = open_link
        self._policy = policy
        self._extra = extra
        self._hedge_after_s = hedge_after_s
        self._hedges = HedgeBudget()
        self._first_lookup = threading.Lock()
        super().__init__(targets, resolver)

    def model(self, name: str, version: str, timeout_s: float | None) -> ModelDescription:
        """Return the description of a model that one of the servers gives."""

        def attempt(plan: CallPlan, lease: Lease, left_s: float | None) -> ModelDescription:
            with plan.ending(lease, left_s):
                return self._described(lease.link, name, version, left_s)

        return self._called(attempt, timeout_s)

    def classify(self, draft: DraftRequest, timeout_s: float | None) -> Any:
        """Return the response to a request, held against its server's description where it must be."""
        self._hedges.note_request()
        return self._called(lambda *its: self._classified(draft, *its), timeout_s)

    def close(self) -> None:
        """Close every connection."""
        for link in self.end_all():
            self._close(link)

    def _called(self, attempt: "_Attempt[_Answer]", timeout_s: float | None) -> _Answer:
        """Return what the first of the attempts that succeeds returns."""
        with self._first_lookup:
            if self.needs_first_lookup:
                self.take(*self.look_up())
        plan = CallPlan(self, self._policy, timeout_s)
        while True:
            try:
                return attempt(plan, plan.begin(), plan.left_s)
            except FuselineError as error:
                wait_s = plan.wait_s(error)
                if wait_s is None:
                    link = plan.suspected(error)
                    reason = None if link is None else found_tls_failure(link.address, link.tls)
                    if link is not None and reason is not None:
                        raise no_connection(link.address, reason) from error
                    raise plan.last_error(error) from error.__cause__
            if wait_s:
                time.sleep(wait_s)

    def _classified(self, draft: DraftRequest, plan: CallPlan, lease: Lease, left_s: float | None) -> Any:
        if self._hedge_after_s is None or (left_s is not None and left_s <= self._hedge_after_s):
            with plan.ending(lease, left_s):
                request = self._checked(lease.link, draft, left_s)
                return lease.link.stub.Classify(request, timeout=left_s, **self._extra)
        return self._hedged(draft, plan, lease, self._hedge_after_s)

    def _hedged(self, draft: DraftRequest, plan: CallPlan, lease: Lease, after_s: float) -> Any:
        """Return the response of whichever of two servers is first; the second is asked after `after_s` seconds."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        under_way: dict[Any, tuple[Lease, float | None]] = {}

        def begin(its: Lease) -> None:
            left_s = plan.left_s
            with plan.failing(its, left_s):
                request = self._checked(its.link, draft, left_s)
                call = its.link.stub.Classify.future(request, timeout=left_s, **self._extra)
            under_way[call] = (its, left_s)
            call.add_done_callback(ended.put)

        begin(lease)
        try:
            try:
                call = ended.get(timeout=after_s)
            except queue.Empty:
                copy = plan.begin_copy(lease) if self._hedges.takes_one() else None
                if copy is not None:
                    with suppress(FuselineError):
                        begin(copy)
                call = ended.get()
            while True:
                its, left_s = under_way.pop(call)
                try:
                    with plan.ending(its, left_s):
                        return call.result()
                except FuselineError:
                    if not under_way:
                        raise
                call = ended.get()
        finally:
            for call, (its, _) in under_way.items():
                call.cancel()
                plan.dropped(its)

    def _checked(self, link: Link, draft: DraftRequest, left_s: float | None) -> ClassifyRequest:
        """Return the message of `draft`, held against the description of this very server where it must be."""
        if draft.needs_check:
            asked = draft.message.model, draft.message.model_version
            known = link.known_models.get(asked)
            if known is None or not draft.fits(known, link.address):
                # Another version may be served by now, which takes something else.
                draft.check(self._described(link, *asked, described_within(left_s)), link.address)
        return draft.message

    def _described(self, link: Link, name: str, version: str, timeout_s: float | None) -> ModelDescription:
        request = GetModelRequest(model=name, version=version)
        description = description_from_response(link.stub.GetModel(request, timeout=timeout_s, **self._extra))
        link.known_models[name, version] = description
        return description

    def _open(self, address: str, target: Target) -> Link:
        return self._open_link(address, target)

    def _close(self, link: Link) -> None:
        link.channel.close()

    def _begin_check(self, member: Member[str], link: Link) -> None:
        threading.Thread(target=self._check, args=(member, link), name="fuseline-check", daemon=True).start()

    def _check(self, member: Member[str], link: Link) -> None:
        try:
            self.checked(member, _health(link))
        except ValueError:
            # The connection was closed meanwhile.
            self.checked(member, Outcome.UNTOLD)

    def _begin_lookup(self) -> None:
        threading.Thread(target=lambda: self.take(*self.look_up()), name="fuseline-lookup", daemon=True).start()


def _health(link: Link) -> Outcome:
    if isinstance(link.stub, HttpStub):
        # Each thread has a connection of its own, and this one ends.
        with closing(HttpStub(link.address, link.tls)) as stub:
            try:
                return Outcome.ANSWERED if stub.is_ready(CHECK_TIMEOUT_S) else Outcome.DRAINING
            except FuselineError as error:
                return outcome_of(error)
    try:
        return outcome_of_health(link.channel.unary_unary(HEALTH_CHECK)(b"", timeout=CHECK_TIMEOUT_S))
    except grpc.RpcError as error:
        return outcome_of_health_error(error)
