"""How a request that comes stands towards those that wait, and which rows of the queue are kept free for others.

Everything here is plain numbers. A client is told to come back before it has filled the queue, rather than being
thrown out of it for the next one: nothing that was admitted is lost. The limit moves with the number of clients, as in
Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches (IEEE/ACM Transactions on
Networking, 1998).
"""

from collections import OrderedDict
from typing import NamedTuple

from fuseline.serve.batching.flows import BULK_COST
from fuseline.serve.batching.requests import INTERACTIVE
from fuseline.serve.batching.row_rate import RowRate

SENDER_SECONDS = 2.0
"""Seconds after its last request for which a client counts as one that sends."""

MOST_SENDERS = 10_000
"""Largest number of clients that are remembered."""

KEPT_FREE = 8
"""One part in so many of the queue is kept free for clients that have less than their share, and for interactive
requests."""


class Standing(NamedTuple):
    """How a request stands that comes now."""

    first: int
    """Number of rows that start before the first of its own."""
    last: int
    """Number of others' rows that start before the last of its own."""
    later_of_kinds: int = 0
    """Largest number of rows of other kinds, by size or priority, that may come later and start before its last."""
    later_of_clients: int = 0
    """Largest number of rows of other clients that may do so."""
    client_rows_per_s: float = 0.0
    """Number of rows that its client sent in a second, of late."""
    client_rows: int = 0
    """Number of its client's rows that wait or are reserved."""
    clients: int = 1
    """Number of clients that sent a moment ago, its own among them."""
    priority: int = INTERACTIVE
    is_passable: bool = False
    """Whether it is larger or bulk, so that small, interactive ones that come later pass it; else the former come
    between, up to their share."""


class WaitingKinds(NamedTuple):
    """How many rows wait or are reserved, by kind of their requests."""

    small: int
    """Rows of small, interactive requests."""
    larger: int
    """Rows of larger interactive ones."""
    bulk: int


def standing_among(
    kinds: WaitingKinds, row_count: int, priority: int, *, is_small: bool, unknown_rows: int
) -> Standing:
    """Return how a request stands where no more is known than `kinds`: its clients are taken for one.

    `unknown_rows` are others of which nothing is known; all of them are taken to start before.
    """
    small, larger, bulk = kinds
    if priority != INTERACTIVE:
        own, rival, share = bulk, small + larger, BULK_COST
    else:
        own, rival, share = (small, larger, 1) if is_small else (larger, small, 1)

    def until(rows: int) -> int:
        until = rows + min(rival, rows * share)
        return until if priority != INTERACTIVE else until + min(bulk, until // BULK_COST)

    first, last = until(own), until(own + row_count) - row_count
    later = max(0, (own + row_count) * share - rival)
    is_passable = priority != INTERACTIVE or not is_small
    return Standing(first + unknown_rows, last + unknown_rows, later, priority=priority, is_passable=is_passable)


def room_for(standing: Standing, waiting_rows: int, rows: int, most_rows: int) -> int:
    """Return up to how many rows the queue may be filled by a request of `rows`, of at most `most_rows`.

    That is less than `most_rows` for a bulk request, and for one by which its client gets more than its share of the
    queue while others send. A client that has nothing waiting may always fill it.
    """
    share = most_rows // standing.clients
    is_above = standing.clients > 1 and standing.client_rows and standing.client_rows + rows > share
    if is_above or (standing.priority != INTERACTIVE and waiting_rows):
        return most_rows - most_rows // KEPT_FREE
    return most_rows


class Senders:
    """The clients that sent requests a moment ago, and how much."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Sender] = OrderedDict()

    def note(self, client: str, now: float) -> int:
        """Note a request, and return how many clients have sent any in the last `SENDER_SECONDS`."""
        seen = self._seen
        if (sender := seen.get(client)) is None:
            sender = seen[client] = _Sender()
        sender.at = now
        if len(seen) > 1:
            seen.move_to_end(client)
            while seen[oldest := next(iter(seen))].at < now - SENDER_SECONDS or len(seen) > MOST_SENDERS:
                del seen[oldest]
        return len(seen)

    def count(self, client: str, rows: int, now: float) -> None:
        """Count the rows of a request that was queued."""
        if (sender := self._seen.get(client)) is not None:
            sender.rows += rows
            sender.rate.learn(sender.rows, now)

    def rows_per_s(self, client: str, now: float) -> float:
        """Return how many rows of a client were queued in a second, of late."""
        sender = self._seen[client]
        sender.rate.learn(sender.rows, now)
        return sender.rate.per_s


class _Sender:
    __slots__ = ("at", "rate", "rows")

    def __init__(self) -> None:
        self.at = 0.0
        self.rows = 0
        self.rate = RowRate()
