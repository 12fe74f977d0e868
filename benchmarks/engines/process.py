"""One candidate engine in a process of its own, asleep unless it is asked.

So no engine shares threads, allocator or caches with another, one that crashes takes nothing with it, and its memory
and its start can be measured.
"""

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import open_engine
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb
from fuseline.benchmarks.harness.stats import BURN_IN_S, call_times
from fuseline.benchmarks.harness.subject import Subject
from fuseline.serve.errors import BackendError, FuselineError

_ANSWER_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 10.0


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
    """A context manager around the process of one candidate; every method waits for its answer."""

    def __init__(self, name: str, subject: Subject, threads: int = 0) -> None:
        """Start the process and load the engine.

        Raises:
            FuselineError: what `open_engine` raised there.
            BackendError: the process died.
        """
        self.asked_name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        started = time.monotonic()
        self._process = context.Process(target=_serve, args=(theirs, name, subject, threads), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.name, self.precision, self.device = self._answer()
        except FuselineError:
            self.close()
            raise
        self.start_s = time.monotonic() - started
        """From nothing to loaded: the interpreter, the imports, the model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (rows, classes) of `pixels` (rows, height, width, channels)."""
        logits: NDArray[np.float32] = self._ask("logits", pixels)
        return logits

    def measure(self, pixels: NDArray[np.uint8], seconds: float) -> Stretch:
        """Run `pixels` again and again for `seconds`, at least once, after one call that isn't counted."""
        return Stretch(len(pixels), self._ask("measure", pixels, seconds))

    def peak_memory_mb(self) -> float | None:
        """Largest resident set so far, in MB."""
        return peak_memory_mb(self.pid)

    def close(self) -> None:
        """End the process. Calling it again does nothing."""
        self._connection.close()
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, *question: Any) -> Any:
        try:
            self._connection.send(question)
        except OSError as error:
            raise BackendError(f"the process of {self.asked_name} is gone: {error}") from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(_ANSWER_TIMEOUT_S):
                raise BackendError(f"the process of {self.asked_name} gave no answer for {_ANSWER_TIMEOUT_S:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BackendError(f"the process of {self.asked_name} died; what it said is on stderr") from error
        if isinstance(answer, FuselineError):
            raise answer
        return answer


def _serve(connection: Connection, name: str, subject: Subject, threads: int) -> None:
    """Answer until the other end closes. An error that wasn't foreseen ends the process with its traceback."""
    # The terminal sends Ctrl-C to every process; the parent alone decides, and closes the connection.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine = open_engine(name, subject, threads)
        connection.send((engine.name, engine.precision, engine.device))
    except FuselineError as error:
        connection.send(error)
        return
    try:
        while True:
            command, pixels, *arguments = connection.recv()
            try:
                run = engine.prepare(pixels)
                connection.send(run() if command == "logits" else _timed(run, *arguments))
            except FuselineError as error:
                connection.send(error)
    except (EOFError, BrokenPipeError):
        # Runtimes that tear down their threads at exit take seconds, and nothing is left to save.
        os._exit(0)


def _timed(run: Any, seconds: float) -> tuple[float, ...]:
    # As long as a load's, so that both are measured on a machine in the same state: the first second is often faster.
    began = time.perf_counter()
    run()
    while time.perf_counter() - began < min(BURN_IN_S, seconds):
        run()
    return call_times(run, seconds)
