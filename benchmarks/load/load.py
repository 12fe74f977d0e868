"""What the load generator's two loops share: what is sent, what comes back, and the answers that are kept."""

from collections import Counter, deque
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.timing import BURN_IN_S
from fuseline.benchmarks.load.calls import CLASSIFY, Call, open_calls

_KEPT_ANSWERS = 256
"""How many answers of the burn-in each process keeps, to be checked."""


class Transport(Protocol):
    """How bytes get to a server: `fuseline.benchmarks.load.calls.open_calls`, or what stands in for it."""

    def __call__(
        self, address: str, method: str, /, *, streams: int = 0, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[Call]:
        """Yield what sends one request and returns its answer, or raises `CallError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent, and for how long."""

    address: str
    requests: tuple[bytes, ...]
    """Sent in turn while the clock runs."""
    burn_in_requests: tuple[bytes, ...]
    """Sent before, in turn: as many, for the same images, such that their answers can be checked closely."""
    seconds: float
    burn_in_s: float = BURN_IN_S
    method: str = CLASSIFY
    processes: int = 1
    streams: int = 0
    """0: `method` is unary. Else it is bidirectional and each process shares its requests out over so many streams."""
    transport: Transport = open_calls
    """What `method` is given to: gRPC, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What came back."""

    latency_s: NDArray[np.float64]
    """Latency of each request that counts."""
    errors: Counter[str]
    """gRPC status to how often, burn-in included."""
    answers: tuple[tuple[int, bytes], ...]
    """(index of the request, serialised answer): the latest of the burn-in and the last to each timed request."""
    generator_cpu_share: float
    """CPU seconds of the busiest generator process for each second of the window; near 1 it limits what is measured."""
    window_s: float


class KeptAnswers:
    """The answers of one process that are kept to be checked."""

    def __init__(self) -> None:
        self._burn_in: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_ANSWERS)
        self._last: dict[int, bytes] = {}

    def add(self, index: int, answer: bytes, *, is_timed: bool) -> None:
        """Keep the answer to request `index`: of the timed ones the last to each, of the others the latest."""
        if is_timed:
            self._last[index] = answer
        else:
            self._burn_in.append((index, answer))

    def all(self) -> list[tuple[int, bytes]]:
        """Return every kept answer with the index of its request."""
        return [*self._burn_in, *self._last.items()]


def counted(errors: Counter[str]) -> str:
    """Return the errors in words: `3 UNAVAILABLE, 1 INTERNAL`."""
    return ", ".join(f"{number} {status}" for status, number in errors.items()) or "no errors either"
