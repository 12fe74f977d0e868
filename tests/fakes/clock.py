"""A clock that a test moves on."""


class Clock:
    """Called for the seconds now, as `time.monotonic` is."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
