"""Carries what each process tells of batches and requests to the workers that somebody watches."""

from collections.abc import Callable, Iterable
from typing import Any

from fuseline.serve.feed.source import SAMPLED_PER_S
from fuseline.serve.tracing.tracing import BACKEND
from fuseline.serve.workers.supervised import SupervisedProcess


class FeedRelay:
    """Has processes tell of what happens while any worker is watched, and nothing otherwise."""

    def __init__(self, processes: Callable[[], Iterable[SupervisedProcess]], workers: int) -> None:
        """`processes` returns those that run now. All `workers` together tell of as many requests as one would."""
        self._processes = processes
        self._rate_of_worker = SAMPLED_PER_S / workers
        self._watched: set[SupervisedProcess] = set()

    def begin(self, process: SupervisedProcess) -> None:
        """Have a process that was just started tell what happens, if anyone watches."""
        if self._watched:
            self._tell(process)

    def take(self, process: SupervisedProcess, message: dict[str, Any]) -> None:
        """Receive a process's message about the feed."""
        if message["kind"] == "chunk":
            for watched in self._watched:
                watched.send_chunk(message["chunk"])
        elif message["is_watched"]:
            self._watched.add(process)
            if len(self._watched) == 1:
                self._tell_all()
        else:
            self.leave(process)

    def leave(self, process: SupervisedProcess) -> None:
        """Send a process nothing more: nobody watches it, or it has ended."""
        if process in self._watched:
            self._watched.remove(process)
            if not self._watched:
                self._tell_all()

    def _tell_all(self) -> None:
        for process in self._processes():
            self._tell(process)

    def _tell(self, process: SupervisedProcess) -> None:
        rate = SAMPLED_PER_S if process.title == BACKEND else self._rate_of_worker
        process.send_feed(rate if self._watched else 0.0)
