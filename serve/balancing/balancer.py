"""Which of several servers gets the next request."""

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fuseline.serve.balancing.choice import MORE_THAN_BEGUN, less_loaded_of_two
from fuseline.serve.balancing.ejection import Ejection, Standing
from fuseline.serve.balancing.outcomes import Outcome

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(eq=False, slots=True)
class Member(Generic[KeyT]):
    """A server, and what is known of it."""

    key: KeyT
    ejection: Ejection
    begun: int
    """Number of requests that it was given, from where the others were as it came or came back."""
    under_way: int = 0
    """Number of requests that it has."""
    is_checked: bool = False
    """Whether it is being asked how it is."""


class Balancer(Generic[KeyT]):
    """The servers, the requests under way at each, and which of them are out.

    Of those that are in and have room two are drawn, and the less loaded one gets the request; if both have as many
    under way, as mostly where there is little to do, the one that was given fewer so far. All may be out: then one
    of them gets it nonetheless, since to fail the request unsent would be no better. It has no lock: one thread at a
    time may call it.
    """

    def __init__(self, rand: Callable[[], float], *, has_check: bool = False) -> None:
        """There is no server at first. `rand` returns numbers from 0 to below 1; `has_check` is that of `Ejection`."""
        self._rand = rand
        self._has_check = has_check
        self._members: dict[KeyT, Member[KeyT]] = {}

    @property
    def members(self) -> Collection[Member[KeyT]]:
        """The servers that may get requests."""
        return self._members.values()

    def set_members(self, keys: Iterable[KeyT]) -> list[Member[KeyT]]:
        """Let these be the servers; return those that are no more. What is known of the others stays known."""
        wanted = dict.fromkeys(keys)
        gone = [member for key, member in self._members.items() if key not in wanted]
        self._members = {key: self._members.get(key) or self._new(key) for key in wanted}
        return gone

    def begin(self, now: float, without: Collection[KeyT] = ()) -> Member[KeyT] | None:
        """Return the server for a request that is sent at `now`, none of `without`; None: there is no other one.

        The caller tells its end to `end`.
        """
        others = [member for member in self._members.values() if member.key not in without]
        chosen = self._chosen(others, now)
        if chosen is not None:
            chosen.under_way += 1
            chosen.begun += 1
        return chosen

    def end(
        self, member: Member[KeyT], outcome: Outcome, began: float, now: float, retry_after_s: float | None = None
    ) -> bool:
        """Take in the end of a request that `begin` gave to `member` at `began`; see `Ejection.note`."""
        member.under_way -= 1
        return member.ejection.note(outcome, began, now, retry_after_s)

    def is_any_free(self, now: float, without: Collection[KeyT] = ()) -> bool:
        """Return whether a server that is none of `without` takes requests at `now`."""
        return any(_takes(each, now) for each in self._members.values() if each.key not in without)

    def due(self, now: float) -> list[Member[KeyT]]:
        """Return the servers that are to be asked how they are, each only once until `checked` is told."""
        found = [
            member
            for member in self._members.values()
            if not member.is_checked and member.ejection.standing(now) is Standing.DUE
        ]
        for member in found:
            member.is_checked = True
        return found

    def checked(self, member: Member[KeyT], outcome: Outcome, now: float) -> None:
        """Take in what became of asking a server of `due`; see `Ejection.note_check`."""
        member.is_checked = False
        member.ejection.note_check(outcome, now)

    def _new(self, key: KeyT) -> Member[KeyT]:
        return Member(key, Ejection(has_check=self._has_check), self._most_begun())

    def _most_begun(self) -> int:
        return max((member.begun for member in self._members.values()), default=0)

    def _chosen(self, members: list[Member[KeyT]], now: float) -> Member[KeyT] | None:
        if not members:
            return None
        # Whoever is on trial comes first: else it would take long until a server of many is found to be well again.
        on_trial = [each for each in members if each.ejection.standing(now) is Standing.ON_TRIAL and not each.under_way]
        if on_trial and (first := on_trial[0]).ejection.has_room(now):
            # What the others got meanwhile is not made up for.
            first.begun = self._most_begun()
            return first
        free = [each for each in members if _takes(each, now)]
        # Else rather one that is well and has no room than one that may be sick, and that rather than one that says
        # itself that it ends.
        free = free or [each for each in members if each.ejection.standing(now) is Standing.IN]
        free = free or [each for each in members if not each.ejection.is_draining] or members
        least = min(each.begun for each in free)
        loads = [each.under_way * MORE_THAN_BEGUN + min(each.begun - least, MORE_THAN_BEGUN - 1) for each in free]
        return free[less_loaded_of_two(loads, self._rand)]


def _takes(member: Member[KeyT], now: float) -> bool:
    standing = member.ejection.standing(now)
    return (standing is Standing.IN or (standing is Standing.ON_TRIAL and not member.under_way)) and (
        member.ejection.has_room(now)
    )
