"""The requests that wait for a batch, in the order in which they start: see `fuseline.serve.batching.flows`."""

import math
from collections.abc import Iterator

from fuseline.serve.batching.flows import (
    BULK_COST,
    Flow,
    FlowKey,
    add_rows,
    leaf_of,
    new_tree,
    next_leaf,
    requests_in_turn,
    reserve_rows,
    rows_in_turn,
    rows_until,
    serve,
    size_class,
    waiting_of,
)
from fuseline.serve.batching.requests import ANYONE, BULK, INTERACTIVE, Batch, Caller, Request, Row
from fuseline.serve.batching.standing import Senders, Standing, WaitingKinds
from fuseline.serve.errors import DeadlineError

_MOST_PASSED = {INTERACTIVE: 1, BULK: BULK_COST}
"""How many rows of other kinds, which never run out of them, start for each row of a flow."""


class RequestQueue:
    """Requests of which at least one row is in no batch yet; iterating goes in the order in which they start.

    While all of them are of one flow (one client, one priority, of about one size), that is the order of admission and
    there is no tree: a request costs what an ordered dictionary costs.
    """

    __slots__ = (
        "_flow",
        "_key",
        "_passable_rows",
        "_quantum",
        "_senders",
        "_small_rows",
        "_tree",
        "_usual",
        "admitted_passable_rows",
        "admitted_rows",
        "earliest_deadline",
        "passed_at",
        "requests",
        "rows",
    )

    def __init__(self, small_rows: int = 1) -> None:
        """Begin empty; a request of up to `small_rows` is small."""
        self._small_rows = small_rows
        # Number of rows that a flow gets at a time: each turn has a cost of its own.
        self._quantum = -(-small_rows // 4)
        # The only flow, and what belongs to it; with a tree, its root.
        self._key = self._key_of(1, ANYONE)
        # Its caller, if it is of small, interactive requests; None too while there is a tree.
        self._usual: Caller | None = ANYONE
        self._flow = Flow()
        self._tree: Flow | None = None
        self.rows = 0
        """Number of waiting rows of all requests; 0 when there are none."""
        self.requests = 0
        """Number of requests with rows that wait."""
        self.admitted_rows = 0
        """Number of rows that were ever added."""
        self.earliest_deadline = math.inf
        """Earliest deadline of all requests. It may lie too early after some have left, never too late."""
        self.passed_at = -math.inf
        """Time at which a request last came that passes others: a small, interactive one while larger or bulk ones
        wait."""
        self.admitted_passable_rows = 0
        """Number of rows that the others ever had."""
        # Number of theirs that wait, while there is a tree.
        self._passable_rows = 0
        self._senders = Senders()

    def __iter__(self) -> Iterator[Request]:
        return iter(self._flow.requests) if self._tree is None else requests_in_turn(self._tree)

    @property
    def waiting_rows(self) -> int:
        """Number of rows that wait or are reserved."""
        return (self._tree or self._flow).waiting

    @property
    def kinds(self) -> WaitingKinds:
        """How many rows wait or are reserved, by kind."""
        if self._tree is None:
            waiting = self._flow.waiting
            if not _is_passable(self._key):
                return WaitingKinds(waiting, 0, 0)
            return WaitingKinds(0, waiting, 0) if self._key.priority == INTERACTIVE else WaitingKinds(0, 0, waiting)
        interactive, bulk = self._tree.flows[INTERACTIVE], self._tree.flows[BULK]
        larger = self._passable_rows - bulk.rows
        return WaitingKinds(interactive.waiting - larger, larger, bulk.waiting)

    @property
    def oldest_admitted(self) -> float:
        """Time at which the oldest waiting request was admitted; there must be one."""
        return min(request.admitted for request in self)

    def reserve(self, row_count: int, caller: Caller) -> Flow:
        """Reserve room for a request, and return what `release` takes."""
        flow = self._flow_of(self._key_of(row_count, caller))
        reserve_rows(flow, row_count)
        return flow

    def release(self, flow: Flow, row_count: int) -> None:
        """Release so many rows that `reserve` reserved in `flow`."""
        reserve_rows(flow, -row_count)

    def standing(self, row_count: int, caller: Caller, now: float, unknown_rows: int = 0) -> Standing:
        """Return how a request stands that comes `now`.

        `unknown_rows` are others of which nothing is known but that they are reserved; all of them are taken to start
        before.
        """
        senders, root = self._senders, self._tree
        clients = senders.note(caller.client, now)
        if clients == 1 and row_count <= self._small_rows and caller == self._usual:
            ahead = self._flow.waiting + unknown_rows
            return Standing(ahead, ahead, ahead + row_count)
        key = self._key_of(row_count, caller)
        passable = _is_passable(key)
        if root is None:
            waiting = self._flow.waiting
            if key == self._key or not waiting:
                ahead = waiting + unknown_rows
                later = waiting + row_count
                return Standing(
                    ahead,
                    ahead,
                    later * _MOST_PASSED[key.priority],
                    later * (clients - 1),
                    senders.rows_per_s(key.client, now),
                    waiting,
                    clients,
                    key.priority,
                    passable,
                )
            root = self._tree = self._branch()
        own, of_client = waiting_of(root, key)
        first, until = rows_until(root, key, own), rows_until(root, key, own + row_count)
        others = until.of_priority - until.of_client
        kinds = until.total - others - own - row_count
        return Standing(
            round(first.total) + unknown_rows,
            round(until.total) - row_count + unknown_rows,
            max(0, (own + row_count) * _MOST_PASSED[key.priority] - round(kinds)),
            max(0, round(until.of_client) * (clients - 1) - round(others)),
            senders.rows_per_s(key.client, now),
            of_client,
            clients,
            key.priority,
            passable,
        )

    def add(self, request: Request) -> None:
        """Put a request behind those of its flow."""
        self.earliest_deadline = min(self.earliest_deadline, request.deadline)
        row_count = request.row_count
        self.rows += row_count
        self.requests += 1
        self.admitted_rows += row_count
        if row_count <= self._small_rows and request.caller == self._usual:
            # Nearly all requests are like the one before, and then their flow is known.
            flow = request.flow = self._flow
            flow.requests[request] = None
            flow.rows += row_count
            flow.waiting += row_count
            return
        key = self._key_of(row_count, request.caller)
        flow = self._flow_of(key)
        flow.requests[request] = None
        request.flow = flow
        if passable := _is_passable(key):
            self.admitted_passable_rows += row_count
        if self._tree is None:
            flow.rows += row_count
            flow.waiting += row_count
            return
        add_rows(flow, row_count)
        self._senders.count(key.client, row_count, request.admitted)
        if passable:
            self._passable_rows += row_count
        elif self._passable_rows:
            self.passed_at = request.admitted

    def _key_of(self, row_count: int, caller: Caller) -> FlowKey:
        priority = INTERACTIVE if caller.priority <= INTERACTIVE else BULK
        return FlowKey(priority, caller.client, size_class(row_count, self._small_rows))

    def _flow_of(self, key: FlowKey) -> Flow:
        """Return the flow of `key`; a second one makes a tree."""
        if self._tree is None:
            if key == self._key:
                return self._flow
            if not self._flow.waiting:
                self._begin(key)
                return self._flow
            self._tree = self._branch()
        elif not self._tree.waiting:
            # Nobody is owed anything once all have been served.
            self._tree, self._flow = None, Flow()
            self._begin(key)
            return self._flow
        return leaf_of(self._tree, key)

    def _begin(self, key: FlowKey) -> None:
        self._key = key
        self._usual = None if _is_passable(key) else Caller(key.client, key.priority)

    def _branch(self) -> Flow:
        """Return the root of a tree that has the only flow as a leaf."""
        root, flow, key = new_tree(), self._flow, self._key
        self._usual = None
        client = leaf_of(root, key).parent
        assert client is not None
        client.flows[key.size] = flow
        flow.parent, flow.order = client, key.size
        rows, waiting = flow.rows, flow.waiting
        flow.rows = flow.waiting = 0
        add_rows(flow, rows)
        reserve_rows(flow, waiting - rows)
        self._passable_rows = rows if _is_passable(key) else 0
        return root

    def remove(self, request: Request) -> None:
        """Take out the rest of a request, if any of its rows are left."""
        flow = request.flow
        if flow is not None and request in flow.requests:
            del flow.requests[request]
            self.requests -= 1
            left = len(request.rows) - request.taken
            self.rows -= left
            add_rows(flow, -left)
            if self._tree is not None and _is_passable(self._key_of(request.row_count, request.caller)):
                self._passable_rows -= left
            request.rows = ()

    def drop_expired(self, now: float) -> None:
        """Take out, and fail with `DeadlineError`, the requests whose deadline has passed."""
        self.earliest_deadline = math.inf
        for request in list(self):
            if request.deadline <= now:
                self.remove(request)
                waited = f"{1000 * (now - request.admitted):.1f} ms in the queue"
                request.set_exception(DeadlineError(f"the deadline passed after {waited}; allow more time"))
            else:
                self.earliest_deadline = min(self.earliest_deadline, request.deadline)

    def take_batch(self, bucket: int, now: float) -> Batch:
        """Return a batch that begins `now` with the rows whose turn it is, at most `bucket` of them."""
        if self._tree is not None:
            return self._take_in_turn(self._tree, bucket, now)
        requests, room = self._flow.requests, bucket
        rows: list[Row] = []
        shares: list[tuple[Request, int, int]] = []
        while requests and room:
            request = next(iter(requests))
            share = request.rows[request.taken : request.taken + room]
            shares.append((request, request.taken, len(share)))
            request.taken += len(share)
            rows += share
            room -= len(share)
            if request.taken == len(request.rows):
                del requests[request]
                self.requests -= 1
        serve(self._flow, len(rows))
        self.rows -= len(rows)
        if not self.rows:
            self.earliest_deadline = math.inf
        return Batch(rows, shares, bucket, now, shares[0][0].admitted)

    def _take_in_turn(self, tree: Flow, bucket: int, now: float) -> Batch:
        room = min(bucket, self.rows)
        self.rows -= room
        first_rows: dict[Request, int] = {}
        while room:
            flow = next_leaf(tree)
            request = next(iter(flow.requests))
            left = len(request.rows) - request.taken
            count = min(left, room, max(self._quantum, rows_in_turn(flow)))
            first_rows.setdefault(request, request.taken)
            request.taken += count
            room -= count
            if count == left:
                del flow.requests[request]
                self.requests -= 1
            serve(flow, count)
            if self._passable_rows and _is_passable(self._key_of(request.row_count, request.caller)):
                self._passable_rows -= count
        if not self.rows:
            self.earliest_deadline = math.inf
        shares = [(request, first, request.taken - first) for request, first in first_rows.items()]
        rows = [row for request, first, count in shares for row in request.rows[first : first + count]]
        return Batch(rows, shares, bucket, now, min(request.admitted for request in first_rows))


def _is_passable(key: FlowKey) -> bool:
    """Return whether small, interactive requests that come later start before such a request's last row."""
    return key.size > 0 or key.priority != INTERACTIVE
