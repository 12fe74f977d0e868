"""The sum of what all processes of a server have counted."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from fuseline.serve.metrics.log_metrics import show_log
from fuseline.serve.metrics.tls_metrics import show_certificates
from fuseline.serve.tls.certificates import Certificates
from fuseline.serve.tracing.tracing import BACKEND
from fuseline.serve.workers.process_counts import ProcessCounts, forget_gone
from fuseline.serve.workers.reports import Report, report_of, summed
from fuseline.serve.workers.supervised import SupervisedProcess

_REPORT_TIMEOUT_S = 0.5
_REQUESTS = "fuseline_requests_total"


class Totals:
    """The sum of what the supervisor and its processes have counted, those that have ended included.

    A version that is served no more leaves it at once, with all its series, when the last process has dropped it.
    """

    def __init__(self, running: Mapping[str, SupervisedProcess]) -> None:
        """Sum up the processes in `running`, which its owner keeps up to date."""
        self._running = running
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        show_log(self._registry)
        self._restarts = Counter(
            "fuseline_process_restarts",
            "Processes started again after they had died.",
            ["process"],
            registry=self._registry,
        )
        for kind in ("backend", "worker"):
            self._restarts.labels(kind)
        self._ended = ProcessCounts()
        self._forgotten_by_code: dict[str, float] = {}
        self._numbers = itertools.count()

    def show_certificates(self, certificates: Certificates) -> None:
        """Show what becomes of the files of TLS; each worker shows its own certificate's expiry, of which the earliest
        counts.
        """
        show_certificates(certificates, self._registry)

    def count_restart(self, kind: str) -> None:
        """Count one more restart of a process of `kind`, `backend` or `worker`."""
        self._restarts.labels(kind).inc()

    def add_ended(self, process: SupervisedProcess) -> None:
        """Keep the counts of `process`, which has ended."""
        self._ended.add(process.counted)

    async def read(self) -> Report:
        """Return the present sum. A process that doesn't answer at once counts with its latest report."""
        asked = [process for process in self._running.values() if process.ready is not None]
        if await self._update(asked) == len(asked):
            self._forget_gone()
        return self._latest()

    async def any_answers(self, processes: Sequence[SupervisedProcess]) -> bool:
        """Return whether one of `processes` at least gives a sign of life at once."""
        return await self._update(processes, asyncio.FIRST_COMPLETED) > 0

    def answers(self) -> str:
        """Return how many requests were answered since the start, by gRPC status, for people."""
        by_code = self._latest().totals(_REQUESTS, "code")
        _add(by_code, self._forgotten_by_code)
        return ", ".join(f"{count:.0f} {code}" for code, count in sorted(by_code.items())) or "none"

    async def _update(self, processes: Sequence[SupervisedProcess], return_when: str = asyncio.ALL_COMPLETED) -> int:
        """Ask `processes` for their reports, and return how many have answered, or ended, in time."""
        if not processes:
            return 0
        updates = [asyncio.create_task(process.update_report(next(self._numbers))) for process in processes]
        answered, late = await asyncio.wait(updates, timeout=_REPORT_TIMEOUT_S, return_when=return_when)
        for task in late:
            task.cancel()
        return len(answered)

    def _latest(self) -> Report:
        own = report_of(self._registry, {})
        counted = (self._ended, *(process.counted for process in self._running.values()))
        return summed((own, *(part for its in counted for part in its.parts())))

    def _forget_gone(self) -> None:
        """Drop what is kept of versions that no process tells of any more; the backend's tells of all that are served.

        While it is being started again, nothing is known of what is served.
        """
        if (backend := self._running.get(BACKEND)) is not None and backend.counted.latest.families:
            forgotten = forget_gone((self._ended, *(process.counted for process in self._running.values())))
            _add(self._forgotten_by_code, forgotten.totals(_REQUESTS, "code"))


def _add(totals: dict[str, float], more: Mapping[str, float]) -> None:
    for code, count in more.items():
        totals[code] = totals.get(code, 0.0) + count
