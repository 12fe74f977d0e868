"""One contender's engine in a process of its own, asleep unless it is asked.

So no engine shares threads, allocator or caches with another, one that crashes takes nothing with it, and its memory
and its start can be measured.
"""

import time
import traceback
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import Engine, open_engine
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.harness.timing import BURN_IN_S, timed_calls
from fuseline.benchmarks.harness.worker_process import Answerer, WorkerProcess, WorkFailedError
from fuseline.serve.errors import BackendError, FuselineError

_ANSWER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Calls of an engine, one after the other."""

    rows: int
    """Images of each call."""
    call_s: tuple[float, ...]

    @property
    def images_per_s(self) -> float:
        """Throughput over the whole stretch."""
        return self.rows * len(self.call_s) / sum(self.call_s)


class EngineProcess:
    """A context manager around the process of one engine; every method waits for its answer.

    Methods raise `BackendError` when the process died or gives no answer, and any `FuselineError` of the engine's.
    """

    def __init__(self, name: str, subject: Subject, threads: int = 0) -> None:
        """Start the process and load the engine.

        Raises:
            FuselineError: what `open_engine` raised there.
            BackendError: the process died.
        """
        self._asked_name = name
        started = time.monotonic()
        self._worker = WorkerProcess(start_engine, name, subject, threads)
        try:
            self.name, self.precision, self.device = self._ask("open")
        except FuselineError:
            self.close()
            raise
        self.start_s = time.monotonic() - started
        """Seconds from nothing to loaded: the interpreter, the imports, the model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._worker.pid

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (rows, classes) of `pixels` (rows, height, width, channels)."""
        logits: NDArray[np.float32] = self._ask("logits", pixels)
        return logits

    def measure(self, pixels: NDArray[np.uint8], seconds: float) -> Stretch:
        """Run `pixels` again and again for `seconds`, at least once, after a burn-in that isn't counted."""
        return Stretch(len(pixels), self._ask("measure", pixels, seconds))

    def peak_memory_mb(self) -> float | None:
        """Largest resident set so far, in MB."""
        return peak_memory_mb(self.pid)

    def close(self) -> None:
        """End the process. Calling it again does nothing."""
        self._worker.close()

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            return self._worker.ask(question, *arguments, timeout_s=_ANSWER_TIMEOUT_S)
        except WorkFailedError as failure:
            raise BackendError(f"{self._asked_name}: {failure}") from failure


def start_engine(name: str, subject: Subject, threads: int) -> Answerer:
    """Answer `open` with name, precision and device, `logits` and `measure`; a `FuselineError` is an answer too."""
    engine: Engine | None = None

    def answered(question: str, details: tuple[Any, ...]) -> Any:
        nonlocal engine
        if engine is None:
            engine = open_engine(name, subject, threads)
            return engine.name, engine.precision, engine.device
        pixels, *seconds = details
        run = engine.prepare(pixels)
        return run() if question == "logits" else _timed(run, *seconds)

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        try:
            return answered(question, details)
        except FuselineError as error:
            return error
        except Exception:
            # Not foreseen: it ends the process.
            traceback.print_exc()
            raise

    return answer


def _timed(run: Any, seconds: float) -> tuple[float, ...]:
    # As long as a load's, so that both are measured on a machine in the same state: the first second is often faster.
    return timed_calls(run, seconds, burn_in_s=min(BURN_IN_S, seconds))
