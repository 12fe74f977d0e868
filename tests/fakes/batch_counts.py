"""What a model tells of its batches."""

from fuseline.serve.batching.batcher import BatchStats, Misses
from fuseline.serve.batching.latency_control import Decision


class RecordedBatches:
    """`BatchCounts` that keeps what it is told."""

    def __init__(self) -> None:
        self.stats: list[tuple[str, BatchStats]] = []
        """(model, batch) in the order of the batches."""
        self.decisions: list[tuple[str, Decision]] = []
        self.misses: list[tuple[str, Misses]] = []

    def count_batch(self, model: str, stats: BatchStats, version: str = "") -> None:
        self.stats.append((model, stats))

    def count_decision(self, model: str, decision: Decision) -> None:
        self.decisions.append((model, decision))

    def count_misses(self, model: str, misses: Misses) -> None:
        self.misses.append((model, misses))
