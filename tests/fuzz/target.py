"""What a target is: a reader of bytes that others made, which may raise only what the tree of errors has.

Whatever the input, it takes about as much time and memory as a sound one.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_SECONDS = 5.0
"""Time of one input, on a machine that does other things as well; the readers' own bounds are far below."""
MOST_BYTES = 128 * 2**20
"""Memory that Python allocates for one input. A sound one takes a few MB."""


@dataclass(frozen=True)
class Target:
    """One reader of bytes."""

    run: Callable[[bytes], None]
    """Reads `data`; raises what is no error of the tree, or not one that this reader may raise."""
    seeds: Callable[[], list[bytes]]
    """Returns sound inputs, from which broken ones are made."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fail when what is done here takes too long or too much memory."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    took = time.monotonic() - begun
    assert took < MOST_SECONDS, f"took {took:.1f} s"
    assert peak < MOST_BYTES, f"took {peak / 2**20:.0f} MiB"


def check_message(error: Exception, most: int = 5000) -> None:
    """Fail unless the message is text of bounded length."""
    assert 0 < len(str(error)) <= most, len(str(error))
