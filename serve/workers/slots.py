"""The slots of a worker's shared memory: which are free, and which are taken."""


class SlotTable:
    """A fixed number of slots, each of which holds one row; any free slots make up a request.

    The slot that was freed last is taken first: its memory is in use already, and most likely in a CPU's cache.
    """

    def __init__(self, capacity: int) -> None:
        """Begin with `capacity` slots, all free."""
        self._capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._is_taken = bytearray(capacity)

    @property
    def free(self) -> int:
        """Number of slots that can be taken."""
        return len(self._free)

    @property
    def taken(self) -> int:
        """Number of slots that are taken."""
        return self._capacity - len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Take and return `count` free slots; None, and nothing is taken, if there are fewer."""
        free = self._free
        if count > len(free):
            return None
        slots = [free.pop() for _ in range(count)]
        for slot in slots:
            self._is_taken[slot] = 1
        return slots

    def release(self, slots: list[int]) -> None:
        """Free `slots`. Raises `ValueError` if one of them is free already; then none is freed."""
        if not all(self._is_taken[slot] for slot in slots):
            raise ValueError(f"slots {slots} are given back, not all of which are taken")
        for slot in slots:
            self._is_taken[slot] = 0
        self._free += slots
