"""One contender's engine in a process of its own, asleep unless it is asked.

So no engine shares threads, allocator or caches with another, one that crashes takes nothing with it, and its memory
and its start can be measured.
"""

import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import Engine, open_engine
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.harness.timing import BURN_IN_S, timed_calls, timed_calls_side_by_side
from fuseline.benchmarks.harness.worker_process import Answerer, WorkerProcess, WorkFailedError
from fuseline.serve.backends.base import Infer
from fuseline.serve.errors import BackendError, FuselineError

_ANSWER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Calls of an engine, one after the other in each lane."""

    rows: int
    """Images of each call."""
    call_s: tuple[float, ...]
    """Those of all lanes."""
    lanes: int = 1
    """Number of instances that were called side by side."""

    @property
    def images_per_s(self) -> float:
        """Throughput over the whole stretch, of all lanes."""
        return self.lanes * self.rows * len(self.call_s) / sum(self.call_s)


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
            self.name, self.precision, self.device, self.has_lanes = self._ask("open")
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

    def measure(self, pixels: NDArray[np.uint8], seconds: float, *, lanes: int | None = None) -> Stretch:
        """Run `pixels` again and again for `seconds`, at least once, after a burn-in that isn't counted.

        `lanes`: that many instances are called side by side with `pixels` each, if the engine `has_lanes`; None: the
        one that was opened.
        """
        return Stretch(len(pixels), self._ask("measure", pixels, seconds, lanes), lanes or 1)

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
    """Answer `open` with name, precision, device and whether it has lanes; `logits`; and `measure`.

    A `FuselineError` is an answer too.
    """
    engine: Engine | None = None
    opened: dict[int, tuple[Infer, ...]] = {}

    def answered(question: str, details: tuple[Any, ...]) -> Any:
        nonlocal engine
        if engine is None:
            engine = open_engine(name, subject, threads)
            return engine.name, engine.precision, engine.device, engine.open_lanes is not None
        if question == "logits":
            return engine.prepare(*details)()
        pixels, seconds, lanes = details
        # As long as a load's, so that both are measured on a machine in the same state: the first second is often
        # faster.
        burn_in_s = min(BURN_IN_S, seconds)
        if lanes is None:
            return timed_calls(engine.prepare(pixels), seconds, burn_in_s=burn_in_s)
        if lanes not in opened:
            assert engine.open_lanes is not None
            opened[lanes] = engine.open_lanes(lanes)
            expected = engine.prepare(pixels)()
            for infer in opened[lanes]:
                check_logits(f"a lane of {name}", engine.precision, infer(engine.to_rows(pixels)), expected)
        rows = engine.to_rows(pixels)
        runs = [partial(infer, rows) for infer in opened[lanes]]
        by_lane = timed_calls_side_by_side(runs, seconds, burn_in_s=burn_in_s)
        return tuple(call_s for calls_s in by_lane for call_s in calls_s)

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
