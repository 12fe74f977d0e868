"""A uniform sample of bounded size of items that come one after another.

Algorithm R of Vitter, Random sampling with a reservoir (ACM Transactions on Mathematical Software, 1985).
"""

from collections.abc import Callable
from random import random
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps `size` of the items that are offered, each with the same chance, and counts all of them."""

    def __init__(self, size: int, random: Callable[[], float] = random) -> None:
        """Begin empty. `random` returns numbers in [0, 1)."""
        self.items: list[T] = []
        self.seen = 0
        """Number of items that were offered."""
        self._size = size
        self._random = random

    def place(self) -> int | None:
        """Count an item, and return where `put` has to put it; None: it is not kept, so it need not be made."""
        seen = self.seen = self.seen + 1
        if seen <= self._size:
            return seen - 1
        place = int(seen * self._random())
        return place if place < self._size else None

    def put(self, place: int, item: T) -> None:
        """Keep `item` at the `place` that was just returned for it."""
        if place == len(self.items):
            self.items.append(item)
        else:
            self.items[place] = item

    def take(self) -> tuple[list[T], int]:
        """Return what is kept and how much was offered, and begin again."""
        taken = self.items, self.seen
        self.items, self.seen = [], 0
        return taken
