"""What one process has counted, as its reports tell, and what it counts no more."""

from collections.abc import Iterable, Set

from fuseline.serve.metrics.fast_metrics import VersionKey
from fuseline.serve.workers.reports import Report, summed


class ProcessCounts:
    """The counts of one process. They never fall while processes, each at its own time, drop versions that went."""

    def __init__(self) -> None:
        self.latest = Report()
        """Latest report."""
        self._dropped = Report()

    def take(self, report: Report) -> None:
        """Note the latest report; what the process has dropped since the one before is kept."""
        if report.dropped:
            self._dropped = summed((self._dropped, self.latest.about(set(report.dropped))))
        self.latest = report

    def add(self, other: "ProcessCounts") -> None:
        """Keep the counts of `other` too, a process that has ended."""
        self._dropped = summed((self._dropped, other._dropped, other.latest.counts()))

    def parts(self) -> tuple[Report, Report]:
        """Return what the process counts, and what it has dropped: their sum is all that it has counted."""
        return self.latest, self._dropped

    def forget_all_but(self, versions: Set[VersionKey]) -> Report:
        """Drop what is kept of versions that are not among `versions`, and return it."""
        gone = self._dropped.versions() - versions
        forgotten = self._dropped.about(gone)
        self._dropped = self._dropped.without(gone)
        return forgotten


def forget_gone(processes: Iterable[ProcessCounts]) -> Report:
    """Drop what is kept of versions that none of `processes` tells of any more, and return it.

    One of them tells of every version that is served.
    """
    processes = tuple(processes)
    known = set[VersionKey]().union(*(its.latest.versions() for its in processes))
    return summed(its.forget_all_but(known) for its in processes)
