"""The order in which waiting rows start: fair queueing over priorities, their clients, and the sizes of requests.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) at each level of a tree, as in hierarchical packet fair
queueing (Bennett and Zhang, SIGCOMM 1996), with rows as the cost. A flow is what one client waits for at one priority
with requests of about one size: its requests start in the order of admission. Each flow has a tag, the virtual time at
which its next row starts; the flow of the least tag is next, and rows that it gets move its tag on. One that had
nothing waiting begins at the present virtual time, so it goes before whoever has had rows since, and gains nothing by
having been away.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import Any, NamedTuple

BULK_COST = 9
"""Virtual time of a bulk row, in that of an interactive one: while both wait, one row in ten is bulk."""

IDLE_FLOWS = 64
"""Number of flows without rows from which on those that have had no more than their share are forgotten."""


class FlowKey(NamedTuple):
    """What flow a request belongs to."""

    priority: int
    """Level of its caller: 1 is interactive, any above it bulk."""
    client: str
    size: int
    """Class of its number of rows: see `size_class`."""


def size_class(row_count: int, small_rows: int) -> int:
    """Return 0 for a small request, and one more for each doubling of `small_rows` that the request exceeds."""
    return ((row_count - 1) // small_rows).bit_length()


class Flow:
    """One node of the tree; a leaf has requests, the others have flows."""

    __slots__ = (
        "active",
        "busy",
        "cost",
        "flows",
        "now",
        "order",
        "parent",
        "requests",
        "rows",
        "tag",
        "turns",
        "waiting",
    )

    def __init__(self, parent: "Flow | None" = None, order: int = 0, cost: int = 1) -> None:
        """Begin without rows; `order` tells it from others of its tag, and `cost` is the virtual time of a row."""
        self.parent = parent
        self.order = order
        self.cost = cost
        self.requests: OrderedDict[Any, None] = OrderedDict()
        """A leaf's `fuseline.serve.batching.requests.Request`s, in the order of admission."""
        self.rows = 0
        """Number of waiting rows."""
        self.waiting = 0
        """Number of waiting rows, and of those that are reserved."""
        self.busy = 0
        """Number of its flows that have waiting or reserved rows."""
        self.tag = 0.0
        """Virtual time at which its next row starts, on the parent's clock."""
        self.active = False
        """Whether the parent has a turn for it."""
        self.now = 0.0
        """Virtual time among its flows: the tag of the one that was served last."""
        self.flows: dict[Hashable, Flow] = {}
        self.turns: list[tuple[float, int, Flow]] = []
        """Heap of its active flows; one of them may have lost its rows since."""


def new_tree() -> Flow:
    """Return the root of a tree: it has a flow for each priority, which has one for each client, by sizes."""
    root = Flow()
    root.flows = {1: Flow(root, 1), 2: Flow(root, 2, BULK_COST)}
    return root


def leaf_of(root: Flow, key: FlowKey) -> Flow:
    """Return the leaf of `key`, a new one if need be."""
    level = root.flows[key.priority]
    client = level.flows.get(key.client)
    if client is None:
        if len(level.flows) >= IDLE_FLOWS + 2 * len(level.turns):
            _forget_idle(level)
        # Among clients of one tag, the one who came first has its turn.
        level.order += 2
        client = level.flows[key.client] = Flow(level, level.order)
    leaf = client.flows.get(key.size)
    if leaf is None:
        leaf = client.flows[key.size] = Flow(client, key.size)
    return leaf


def _forget_idle(level: Flow) -> None:
    for name, flow in tuple(level.flows.items()):
        if not flow.waiting and not flow.active and flow.tag <= level.now:
            del level.flows[name]


def add_rows(leaf: Flow, count: int) -> None:
    """Note that so many more rows wait in `leaf`; below 0: that so many have left without having been served."""
    node = leaf
    while True:
        node.rows += count
        _wait(node, count)
        parent = node.parent
        if parent is None:
            return
        if not node.active and node.rows:
            node.tag = max(node.tag, parent.now)
            node.active = True
            heappush(parent.turns, (node.tag, node.order, node))
        node = parent


def reserve_rows(leaf: Flow, count: int) -> None:
    """Note that so many more rows of `leaf` are reserved; below 0: fewer."""
    node: Flow | None = leaf
    while node is not None:
        _wait(node, count)
        node = node.parent


def _wait(node: Flow, count: int) -> None:
    before, node.waiting = node.waiting, node.waiting + count
    if node.parent is not None:
        node.parent.busy += (node.waiting > 0) - (before > 0)


def next_leaf(root: Flow) -> Flow:
    """Return the leaf whose turn it is; some row must wait."""
    node = root
    while node.flows:
        while not (flow := node.turns[0][2]).rows:
            heappop(node.turns)
            flow.active = False
        node = flow
    return node


def rows_in_turn(leaf: Flow) -> int:
    """Return how many rows of the leaf that `next_leaf` returned start before it is another's turn; at least 1."""
    rows, node = leaf.rows, leaf
    while (parent := node.parent) is not None:
        if len(parent.turns) > 1:
            # The children of a heap's root are its next elements.
            rival = min(parent.turns[1:3])
            turns = int((rival[0] - node.tag) / node.cost)
            if node.tag + turns * node.cost < rival[0] or node.order < rival[1]:
                turns += 1
            rows = min(rows, max(turns, 1))
        node = parent
    return rows


def serve(leaf: Flow, count: int) -> None:
    """Charge so many rows of the leaf that `next_leaf` returned."""
    node = leaf
    while True:
        node.rows -= count
        _wait(node, -count)
        parent = node.parent
        if parent is None:
            return
        parent.now = node.tag
        node.tag += count * node.cost
        if node.rows:
            heapreplace(parent.turns, (node.tag, node.order, node))
        else:
            heappop(parent.turns)
            node.active = False
        node = parent


def requests_in_turn(node: Flow) -> Iterator[Any]:
    """Yield the waiting requests in the order in which they start, if none comes and each is served whole."""
    if not node.flows:
        yield from node.requests
        return
    turns: list[tuple[float, int, Any, int, Iterator[Any]]] = []
    for _, _, flow in node.turns:
        requests = requests_in_turn(flow)
        if (first := next(requests, None)) is not None:
            heappush(turns, (flow.tag, flow.order, first, flow.cost, requests))
    while turns:
        tag, order, request, cost, requests = turns[0]
        yield request
        if (following := next(requests, None)) is None:
            heappop(turns)
        else:
            tag += cost * (len(request.rows) - request.taken)
            heapreplace(turns, (tag, order, following, cost, requests))


class RowsUntil(NamedTuple):
    """How many rows start until so many of one flow have, themselves included."""

    of_client: float
    """Rows of its client at its priority."""
    of_priority: float
    """Rows of all clients at its priority."""
    total: float


def rows_until(root: Flow, key: FlowKey, own_rows: int) -> RowsUntil:
    """Return how many rows start until `own_rows` of the flow `key` have, if none come.

    Others get no more than their share meanwhile, and no more than they wait for.
    """
    level = root.flows[key.priority]
    client = level.flows.get(key.client)
    client_rows: float = own_rows
    if client is not None:
        for size, flow in client.flows.items():
            if size != key.size:
                client_rows += min(flow.waiting, own_rows)
    own = 0 if client is None else client.waiting
    level_rows = client_rows + min(level.waiting - own, client_rows * (level.busy - (own > 0)))
    rival = root.flows[3 - key.priority]
    return RowsUntil(client_rows, level_rows, level_rows + min(rival.waiting, level_rows * level.cost / rival.cost))


def waiting_of(root: Flow, key: FlowKey) -> tuple[int, int]:
    """Return how many rows wait or are reserved in the flow `key`, and of its client at either priority."""
    own = of_client = 0
    for priority, level in root.flows.items():
        if (client := level.flows.get(key.client)) is not None:
            of_client += client.waiting
            if priority == key.priority and (flow := client.flows.get(key.size)) is not None:
                own = flow.waiting
    return own, of_client
