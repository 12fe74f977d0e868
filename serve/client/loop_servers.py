"""Calls of the tasks of one event loop to several servers."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest
from fuseline.serve.balancing.balancer import Member
from fuseline.serve.balancing.hedging import HedgeBudget
from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.client.call_plan import CallPlan
from fuseline.serve.client.calls import no_connection
from fuseline.serve.client.health_check import HEALTH_CHECK, outcome_of_health, outcome_of_health_error
from fuseline.serve.client.name_lookup import Resolver
from fuseline.serve.client.request_stream import LARGEST_BYTES
from fuseline.serve.client.requests import DraftRequest
from fuseline.serve.client.retries import RetryPolicy
from fuseline.serve.client.server_addresses import Target
from fuseline.serve.client.servers import CHECK_TIMEOUT_S, Lease, Link, Servers, described_within
from fuseline.serve.client.tls_failures import found_tls_failure
from fuseline.serve.errors import FuselineError
from fuseline.serve.model_description import ModelDescription, description_from_response

_Answer = TypeVar("_Answer")


class LoopServers(Servers):
    """Servers, and the calls to them. It is made on the event loop that it belongs to."""

    def __init__(
        self,
        targets: Sequence[Target],
        resolver: Resolver,
        open_link: Callable[[str, Target], Link],
        policy: RetryPolicy,
        metadata: Any,
        hedge_after_s: float | None = None,
    ) -> None:
        """`open_link` returns the connection to an address; `metadata` goes with each call."""
        self._open_link = open_link
        self._policy = policy
        self._metadata = metadata
        self._hedge_after_s = hedge_after_s
        self._hedges = HedgeBudget()
        self._first_lookup = asyncio.Lock()
        # The loop itself holds tasks only weakly.
        self._background: set[asyncio.Task[None]] = set()
        super().__init__(targets, resolver)

    async def model(self, name: str, version: str, timeout_s: float | None) -> ModelDescription:
        """Return the description of a model that one of the servers gives."""

        async def attempt(plan: CallPlan, lease: Lease) -> ModelDescription:
            left_s = plan.left_s
            with plan.ending(lease, left_s):
                return await self._described(lease.link, name, version, left_s)

        return await self._called(attempt, timeout_s)

    async def classify(self, draft: DraftRequest, timeout_s: float | None) -> ClassifyResponse:
        """Return the response to a request, held against its server's description where it must be."""

        async def attempt(plan: CallPlan, lease: Lease) -> ClassifyResponse:
            if self._hedge_after_s is None:
                return await self._classified(draft, plan, lease)
            return await self._hedged(draft, plan, lease, self._hedge_after_s)

        self._hedges.note_request()
        return await self._called(attempt, timeout_s)

    async def close(self) -> None:
        """Close every connection."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for link in self.end_all():
            await _closed(link)

    async def _called(
        self, attempt: Callable[[CallPlan, Lease], Awaitable[_Answer]], timeout_s: float | None
    ) -> _Answer:
        """Return what the first of the attempts that succeeds returns."""
        if self.needs_first_lookup:
            async with self._first_lookup:
                if self.needs_first_lookup:
                    self.take(*await asyncio.to_thread(self.look_up))
        plan = CallPlan(self, self._policy, timeout_s)
        while True:
            try:
                return await attempt(plan, plan.begin())
            except FuselineError as error:
                wait_s = plan.wait_s(error)
                if wait_s is None:
                    link = plan.suspected(error)
                    reason = None
                    if link is not None:
                        reason = await asyncio.to_thread(found_tls_failure, link.address, link.tls)
                    if link is not None and reason is not None:
                        raise no_connection(link.address, reason) from error
                    raise plan.last_error(error) from error.__cause__
            if wait_s:
                await asyncio.sleep(wait_s)

    async def _classified(self, draft: DraftRequest, plan: CallPlan, lease: Lease) -> ClassifyResponse:
        left_s, link = plan.left_s, lease.link
        with plan.ending(lease, left_s):
            request = await self._checked(link, draft, left_s)
            if link.requests is not None and request.ByteSize() <= LARGEST_BYTES:
                streamed: ClassifyResponse = await link.requests.classify(request, left_s, plan.timeout_s)
                return streamed
            response: ClassifyResponse = await link.stub.Classify(request, timeout=left_s, metadata=self._metadata)
            return response

    async def _hedged(self, draft: DraftRequest, plan: CallPlan, lease: Lease, after_s: float) -> ClassifyResponse:
        """Return the response of whichever of two servers is first; the second is asked after `after_s` seconds."""
        tasks = {asyncio.create_task(self._classified(draft, plan, lease))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=after_s)
            if not done and self._hedges.takes_one() and (copy := plan.begin_copy(lease)) is not None:
                tasks.add(asyncio.create_task(self._classified(draft, plan, copy)))
            waiting = set(tasks)
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                # An answer counts though a copy failed at the same moment, a failure only if nothing else is awaited.
                best = min(done, key=lambda task: task.cancelled() or task.exception() is not None)
                if not waiting or not (best.cancelled() or best.exception() is not None):
                    return best.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _checked(self, link: Link, draft: DraftRequest, left_s: float | None) -> ClassifyRequest:
        """Return the message of `draft`, held against the description of this very server where it must be."""
        if draft.needs_check:
            asked = draft.message.model, draft.message.model_version
            known = link.known_models.get(asked)
            if known is None or not draft.fits(known, link.address):
                # Another version may be served by now, which takes something else.
                draft.check(await self._described(link, *asked, described_within(left_s)), link.address)
        return draft.message

    async def _described(self, link: Link, name: str, version: str, timeout_s: float | None) -> ModelDescription:
        request = GetModelRequest(model=name, version=version)
        described = await link.stub.GetModel(request, timeout=timeout_s, metadata=self._metadata)
        link.known_models[name, version] = description = description_from_response(described)
        return description

    def _open(self, address: str, target: Target) -> Link:
        return self._open_link(address, target)

    def _close(self, link: Link) -> None:
        self._run(_closed(link))

    def _begin_check(self, member: Member[str], link: Link) -> None:
        self._run(self._check(member, link))

    async def _check(self, member: Member[str], link: Link) -> None:
        outcome = Outcome.UNTOLD
        try:
            answer = await link.channel.unary_unary(HEALTH_CHECK)(b"", timeout=CHECK_TIMEOUT_S)
            outcome = outcome_of_health(answer)
        except grpc.RpcError as error:
            outcome = outcome_of_health_error(error)
        except grpc.aio.UsageError:
            pass  # the server is no longer one of them, and its connection closed
        finally:
            self.checked(member, outcome)

    def _begin_lookup(self) -> None:
        self._run(self._look_up())

    async def _look_up(self) -> None:
        self.take(*await asyncio.to_thread(self.look_up))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _closed(link: Link) -> None:
    if link.requests is not None:
        await link.requests.close()
    await link.channel.close()
