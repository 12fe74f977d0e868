"""The servers of a client that has several: who they are, which one gets a call, and how it went."""

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fuseline.serve.balancing.balancer import Balancer, Member
from fuseline.serve.balancing.ejection import Standing
from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.client.client_tls import ClientTls
from fuseline.serve.client.name_lookup import Resolver
from fuseline.serve.client.server_addresses import Target
from fuseline.serve.errors import InputError
from fuseline.serve.model_description import ModelDescription

_log = logging.getLogger(__name__)

LOOK_UP_EVERY_S = 30.0
"""Seconds from one lookup of names to the next, where calls are made; Kubernetes lets its answers be kept so long."""
LOOK_UP_AGAIN_S = 1.0
"""Seconds until names are looked up again because a server can't be reached or ends."""
DESCRIBE_TIMEOUT_S = 10.0
"""Seconds at most that a description may take which a request has to be held against."""
CHECK_TIMEOUT_S = 2.0
"""Seconds that a server which was out may take to say that it serves."""


@dataclass(eq=False, slots=True)
class Link:
    """The connection to one server."""

    address: str
    stub: Any
    """Has the methods of the service."""
    channel: Any
    """Has `close`."""
    tls: ClientTls | None = None
    requests: Any = None
    """Stream that carries requests; None: each is a call of its own."""
    known_models: dict[tuple[str, str], ModelDescription] = field(default_factory=dict)
    """Descriptions that this server gave; another may serve another version."""


@dataclass(eq=False, slots=True)
class Lease:
    """A call to one server, which begins as this is made and must be ended."""

    link: Link
    member: Member[str]
    began: float


class Servers(ABC):
    """Who the servers are, and how they do. Threads may share it."""

    def __init__(
        self,
        targets: Sequence[Target],
        resolver: Resolver,
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._targets = targets
        self._resolver = resolver
        self._clock = clock
        self._balancer: Balancer[str] = Balancer(rand, has_check=True)
        self._links: dict[str, Link] = {}
        self._leaving: dict[Member[str], Link] = {}
        """Servers that are no more among the names' addresses, and have calls under way."""
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, ...]] = {}
        """Addresses by name."""
        self._looked_up_at: float | None = None
        self._is_looking_up = False
        self._has_trouble = False
        self._is_ended = False
        if all(target.name is None for target in targets):
            self._take_members()

    @property
    def needs_first_lookup(self) -> bool:
        """Whether names have to be looked up before there is any server."""
        return not self._balancer.members

    def look_up(self) -> tuple[dict[str, tuple[str, ...]], str]:
        """Return the addresses by name, and why a name has none; it may wait, and changes nothing."""
        found, reason = {}, ""
        for target in self._targets:
            if target.name is None:
                continue
            host, port = target.name
            try:
                found[target.address] = tuple(self._resolver(host, port))
                if not found[target.address]:
                    reason = f"{host} has no address"
            except Exception as error:  # noqa: BLE001 a resolver may be anybody's; what fails here is told, or tried again
                reason = f"{host} can't be looked up ({getattr(error, 'strerror', None) or error})"
        return found, reason

    def take(self, found: Mapping[str, tuple[str, ...]], reason: str) -> None:
        """Take in what `look_up` has returned. A name that isn't found now keeps the addresses that it had.

        Raises:
            InputError: no server is known.
        """
        with self._lock:
            if self._is_ended:
                return
            self._found.update({name: addresses for name, addresses in found.items() if addresses})
            self._looked_up_at, self._is_looking_up, self._has_trouble = self._clock(), False, False
            self._take_members()
            if not self._balancer.members:
                raise InputError(f"no server is known: {reason}; give a name that stands for one or more servers")
        if reason:
            _log.info("%s; the servers known before are kept", reason)

    def begin(self, without: Collection[str] = ()) -> Lease | None:
        """Begin a call to a server that is none of `without`, chosen by `Balancer`; None: there is no other one."""
        with self._lock:
            now = self._clock()
            self._begin_upkeep(now)
            member = self._balancer.begin(now, without)
            return None if member is None else Lease(self._links[member.key], member, now)

    def end(self, lease: Lease, outcome: Outcome, retry_after_s: float | None = None) -> bool:
        """End a call; return whether its end says something new about the server."""
        member, unused = lease.member, None
        with self._lock:
            now = self._clock()
            was_in = member.ejection.standing(now) is Standing.IN
            is_news = self._balancer.end(member, outcome, lease.began, now, retry_after_s)
            if outcome in {Outcome.UNREACHABLE, Outcome.DRAINING}:
                self._has_trouble = True
            is_out = was_in and member.ejection.standing(now) is not Standing.IN
            if not member.under_way:
                unused = self._leaving.pop(member, None)
        if is_out:
            _log.info("%s gets no requests for now: %s", member.key, outcome.name.lower())
        if unused is not None:
            self._close(unused)
        return is_news

    def is_any_free(self, without: Collection[str]) -> bool:
        """Return whether a server that is none of `without` takes requests now."""
        with self._lock:
            return self._balancer.is_any_free(self._clock(), without)

    def has_other(self, without: Collection[str]) -> bool:
        """Return whether there is a server that is none of `without`, be it well or not."""
        with self._lock:
            return any(member.key not in without for member in self._balancer.members)

    @property
    def count(self) -> int:
        """Number of servers known now."""
        return len(self._balancer.members)

    def end_all(self) -> list[Link]:
        """Take no further servers, and return every connection, to be closed."""
        with self._lock:
            self._is_ended = True
            return [*self._links.values(), *self._leaving.values()]

    def checked(self, member: Member[str], outcome: Outcome) -> None:
        """Take in what `_begin_check` has found out."""
        with self._lock:
            self._balancer.checked(member, outcome, self._clock())
            # It may have moved.
            self._has_trouble = self._has_trouble or outcome is not Outcome.ANSWERED

    @abstractmethod
    def _open(self, address: str, target: Target) -> Link:
        """Return a new connection to `address`, one of those that `target` stands for."""

    @abstractmethod
    def _close(self, link: Link) -> None:
        """Close a connection on which nothing is under way."""

    @abstractmethod
    def _begin_check(self, member: Member[str], link: Link) -> None:
        """Begin to ask a server whether it serves, and tell `checked` its answer."""

    @abstractmethod
    def _begin_lookup(self) -> None:
        """Begin to look names up, in the background, and tell `take`."""

    def _begin_upkeep(self, now: float) -> None:
        for member in self._balancer.due(now):
            self._begin_check(member, self._links[member.key])
        if self._looked_up_at is None or self._is_looking_up:
            return
        if now - self._looked_up_at >= (LOOK_UP_AGAIN_S if self._has_trouble else LOOK_UP_EVERY_S):
            self._is_looking_up = True
            self._begin_lookup()

    def _take_members(self) -> None:
        """Let the servers be what the targets are and their names stand for."""
        targets: dict[str, Target] = {}
        for target in self._targets:
            for address in [target.address] if target.name is None else self._found.get(target.address, ()):
                targets.setdefault(address, target)
        for address, target in targets.items():
            if address not in self._links:
                self._links[address] = self._open(address, target)
        for member in self._balancer.set_members(targets):
            link = self._links.pop(member.key)
            if member.under_way:
                self._leaving[member] = link
            else:
                self._close(link)


def described_within(left_s: float | None) -> float:
    """Return the seconds that a description may take where a call has `left_s`."""
    return DESCRIBE_TIMEOUT_S if left_s is None else min(left_s, DESCRIBE_TIMEOUT_S)
