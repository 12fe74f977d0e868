"""Clients that ask all the time, and hold every answer against the package's own."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
from fuseline.serve.reference import read_reference
from tests.serve.services.classify_requests import logits_of, raw_request

TOLERANCE = 1e-4
"""Largest difference of logits, of a range of about one: a batch of another size sums in another order."""


@dataclass(frozen=True)
class Expected:
    """Pictures, and the logits of the package's own backend for them."""

    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, folder: Path) -> "Expected":
        """Compute the package's reference pictures in this process."""
        package = load_package(folder)
        backend, _ = open_backend(package, backend="onnxruntime", buckets=(8,), threads=1)
        pixels, _ = read_reference(package)
        try:
            return cls(pixels, np.array(backend.infer(pixels)))
        finally:
            backend.close()

    def is_right(self, row: int, logits: NDArray[np.float32]) -> bool:
        """Return whether `logits` are those of picture `row`."""
        return bool(np.allclose(logits, self.logits[row], atol=TOLERANCE))


@dataclass
class Load:
    """What came of the requests so far."""

    answered: int = 0
    wrong: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)
    """When each failed request ended, by `time.monotonic`, and its status."""
    slowest_s: float = 0.0
    by_version: Counter[str] = field(default_factory=Counter)

    @property
    def codes(self) -> dict[str, int]:
        """Number of failures by status."""
        return dict(Counter(text.partition(":")[0] for _, text in self.failed))

    def failures_after(self, since: float) -> float:
        """Return the seconds from `since` to the last failure; 0: there is none."""
        return max((when - since for when, _ in self.failed), default=0.0)


@contextmanager
def load_on(
    address: str, expected: Sequence[Expected], *, clients: int, app: str = "", pause_s: float = 0.0
) -> Iterator[Load]:
    """Have `clients` ask one picture after another, from a thread of their own, until the block ends.

    An answer is right if it is that of any one of `expected`. `pause_s` is the time from an answer to the next request.
    """
    load, stop = Load(), threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_ask_all(address, expected, load, stop, clients, app, pause_s)), daemon=True
    )
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join(90)
        assert not thread.is_alive(), "a request hangs"


async def _ask_all(
    address: str,
    expected: Sequence[Expected],
    load: Load,
    stop: threading.Event,
    clients: int,
    app: str,
    pause_s: float,
) -> None:
    metadata = (("application", app),) if app else ()

    async def ask(number: int) -> None:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub, row = ClassifierStub(channel), number
            while not stop.is_set():
                row = (row + 1) % len(expected[0].pixels)
                request = raw_request(expected[0].pixels[row : row + 1], return_logits=True)
                began = time.monotonic()
                try:
                    answer = await stub.Classify(request, timeout=60, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    load.failed.append((time.monotonic(), f"{error.code().name}: {error.details()}"))
                    await asyncio.sleep(0.02)
                    continue
                load.answered += 1
                load.slowest_s = max(load.slowest_s, time.monotonic() - began)
                load.by_version[answer.model_version] += 1
                (logits,) = logits_of(answer)
                load.wrong += not any(each.is_right(row, logits) for each in expected)
                if pause_s:
                    await asyncio.sleep(pause_s)

    await asyncio.gather(*(ask(number) for number in range(clients)))
