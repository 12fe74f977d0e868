"""A process of its own for work that may crash, hang, or break a GPU's context; asked and answered over a pipe."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, Self

from fuseline.benchmarks.harness.results import without_folders
from fuseline.serve.errors import BackendUnavailableError

Failing = Literal["not here", "out of memory", "too slow", "failed"]
Answerer = Callable[[str, tuple[Any, ...]], Any]
"""What answers a question in the process: its name and its arguments. An exception that it returns is raised where it
was asked, and the process goes on; one that it raises ends the process."""

_END_TIMEOUT_S = 10.0
_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "cudaerrormemoryallocation",
    "failed to allocate memory",
    "memoryerror",
    "bad_alloc",
)


class WorkFailedError(Exception):
    """Work in a worker process failed; the message is for people.

    The process is to be closed then: after most CUDA errors a context answers every later call with the same error
    (CUDA Runtime API, cudaError_t), and what an allocation that failed half-way leaves behind, only the end of its
    process surely gives back.
    """

    def __init__(self, kind: Failing, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind: Failing = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class WorkerProcess:
    """A context manager around one process, which is asleep unless it is asked."""

    def __init__(self, start: Callable[..., Answerer], *arguments: Any) -> None:
        """Start the process, which calls `start(*arguments)` for what answers; `ready` or `ask` waits for it."""
        self._at_work = True
        self._is_ready = False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, start, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def ready(self, timeout_s: float) -> None:
        """Wait until it has started. Raises as `ask` does."""
        if not self._is_ready:
            self._answer(timeout_s)
            self._is_ready = True

    def ask(self, question: str, *arguments: Any, timeout_s: float) -> Any:
        """Return the answer to `question`.

        Raises:
            WorkFailedError: it raised an error there, died, or gave no answer for `timeout_s`; close the process then.
            Exception: the answer, if it is one.
        """
        self.ready(timeout_s)
        self._at_work = True
        try:
            # As `send` does, whose buffer, where it fails, Python 3.13 and later can't free without complaint.
            self._connection.send_bytes(pickle.dumps((question, arguments)))
        except OSError as error:
            raise WorkFailedError(
                "failed", f"its process is gone{exit_words(self._process.exitcode)}: {error}"
            ) from error
        return self._answer(timeout_s)

    def close(self) -> None:
        """End the process, at once if it is at work. Calling it again does nothing."""
        self._connection.close()
        if not self._at_work:
            self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._connection.poll(timeout_s):
                self._process.kill()
                raise WorkFailedError("too slow", f"it gave no answer for {timeout_s:.0f} s and was ended")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(_END_TIMEOUT_S)
            raise WorkFailedError(
                "failed", f"its process died{exit_words(self._process.exitcode)}; what it said is on stderr"
            ) from error
        self._at_work = False
        if isinstance(answer, Exception):
            raise answer
        return answer


def exit_words(code: int | None) -> str:
    """` by SIGSEGV`, ` with exit code 3`, to stand behind a verb; nothing of a process that has no exit code yet."""
    if code is None:
        return ""
    return f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _work(connection: Connection, start: Callable[..., Answerer], arguments: tuple[Any, ...]) -> None:
    # The terminal sends Ctrl-C to every process; the parent alone decides, and closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: Answerer | None = None
    try:
        while True:
            # Whatever a runtime raises is one contender's failure, told in its row, and not the run's.
            try:
                if answer is None:
                    answer, said = start(*arguments), None
                else:
                    question, details = connection.recv()
                    said = answer(question, details)
            except EOFError:
                raise
            except Exception as error:  # noqa: BLE001
                connection.send(_failure(error))
                return
            connection.send(said)
    except (EOFError, ConnectionError):
        # Runtimes that tear down their threads at exit take seconds, and nothing is left to save.
        sys.stdout.flush()
        os._exit(0)


def _failure(error: Exception) -> WorkFailedError:
    here = not isinstance(error, BackendUnavailableError)
    words = without_folders(f"{type(error).__name__}: {error}" if here else f"{error}")
    if any(sign in words.lower() for sign in _OUT_OF_MEMORY):
        return WorkFailedError("out of memory", words)
    return WorkFailedError("failed" if here else "not here", words)
