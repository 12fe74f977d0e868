"""What the server itself counted while it was measured: its CPU time and its batches."""

import dataclasses
import time
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.load.calls import CHANNEL_OPTIONS
from fuseline.benchmarks.load.target import Target
from fuseline.protos.open_inference_pb2 import ModelStatisticsRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.errors import InputError

_TIMEOUT_S = 10.0
_BATCH_ROWS = "fuseline_batch_rows"
_PADDING_ROWS = "fuseline_padding_rows_total"


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that the server ran."""

    by_rows: tuple[tuple[int, int, int], ...]
    """(fewest rows, most rows, batches), ascending; without empty ones. Padding is no row."""
    batches: int
    rows: int
    padding_rows: int | None
    """None where the server doesn't tell."""

    @property
    def mean_rows(self) -> float:
        """Rows of a batch."""
        return self.rows / self.batches if self.batches else 0.0


def with_metrics(target: Target, metrics_address: str) -> Target:
    """`target` with where its batches are counted.

    Raises:
        InputError: no metrics are there, or none of the batches that `target` has been answered from.
    """
    if not counts_from_prometheus(_metrics_text(metrics_address), target.model.name).batches:
        raise InputError(
            f"--metrics-address {metrics_address} counts no batches of {target.model.name}; expected the HTTP endpoint "
            "of the same `fuseline serve`"
        )
    return dataclasses.replace(target, metrics_address=metrics_address)


@dataclass(slots=True)
class ServerWatch:
    """Reads the server's counters at both edges of a window: call it at each."""

    target: Target
    _edges: list[tuple[float, float | None, "Counts | None"]] = field(default_factory=list)

    def __call__(self) -> None:
        """Read them now."""
        # At the start first the batches and then the CPU time, at the end the other way round: so what the reading
        # costs the server is not counted.
        at_start = not self._edges
        counts = self._counts() if at_start else None
        pid = self.target.pid
        now, cpu_s = time.monotonic(), None if pid is None else cpu_seconds(pid)
        self._edges.append((now, cpu_s, counts if at_start else self._counts()))

    def cpu_cores(self) -> float | None:
        """CPU seconds of the server for each second between the two edges; None without a pid."""
        (start_s, before, _), (end_s, after, _) = self._edges
        return None if before is None or after is None else (after - before) / (end_s - start_s)

    def batches(self) -> Batches | None:
        """Batches between the two edges; None if the server doesn't tell."""
        (_, _, before), (_, _, after) = self._edges
        return None if before is None or after is None else batches_between(before, after)

    def _counts(self) -> "Counts | None":
        if self.target.metrics_address is not None:
            return counts_from_prometheus(_metrics_text(self.target.metrics_address), self.target.model.name)
        if self.target.protocol.name == "open-inference":
            return _counts_from_statistics(self.target.address, self.target.model.name)
        return None


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the server's start."""

    by_rows: dict[tuple[int, int], int]
    """(fewest, most rows) to batches."""
    batches: int
    rows: int
    padding_rows: int | None


def batches_between(before: Counts, after: Counts) -> Batches:
    """What came between two readings."""
    differences = {span: count - before.by_rows.get(span, 0) for span, count in after.by_rows.items()}
    return Batches(
        by_rows=tuple((*span, count) for span, count in sorted(differences.items()) if count),
        batches=after.batches - before.batches,
        rows=after.rows - before.rows,
        padding_rows=None
        if after.padding_rows is None or before.padding_rows is None
        else after.padding_rows - before.padding_rows,
    )


def _metrics_text(address: str) -> str:
    # A proxy has no part in what is measured.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/metrics", timeout=_TIMEOUT_S) as response:
            return str(response.read().decode("utf-8"))
    except (OSError, ValueError, HTTPException) as error:
        raise InputError(
            f"--metrics-address {address} gave no metrics ({error}); expected HOST:PORT of the server's HTTP "
            "endpoint, which `fuseline serve` prints when it is ready"
        ) from error


def counts_from_prometheus(text: str, model: str) -> Counts:
    """What the text of `fuseline.serve.metrics` says of `model`'s batches; all 0 if it has run none."""
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") == model:
                samples.setdefault(sample.name, []).append(sample)
    cumulative: dict[float, float] = {}
    for sample in samples.get(f"{_BATCH_ROWS}_bucket", []):
        bound = float(sample.labels["le"])
        cumulative[bound] = cumulative.get(bound, 0.0) + sample.value
    by_rows, fewest, below = {}, 1, 0.0
    for bound in sorted(cumulative):
        # Beyond the last bound there is no most; no batch of Fuseline's is as large.
        most = int(bound) if bound != float("inf") else fewest
        by_rows[fewest, most] = int(cumulative[bound] - below)
        fewest, below = most + 1, cumulative[bound]

    def total(name: str) -> int:
        return int(sum(sample.value for sample in samples.get(name, [])))

    return Counts(by_rows, total(f"{_BATCH_ROWS}_count"), total(f"{_BATCH_ROWS}_sum"), total(_PADDING_ROWS))


def _counts_from_statistics(address: str, model: str) -> Counts | None:
    """Read the counters by ModelStatistics, an extension of Triton's that Fuseline has too; None without it."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.ModelStatistics(ModelStatisticsRequest(name=model), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise InputError(
                f"{address} told no statistics of {model} ({error.code().name}: {error.details()})"
            ) from error
    by_rows: dict[tuple[int, int], int] = {}
    for statistics in answer.model_stats:
        for batch in statistics.batch_stats:
            span = (int(batch.batch_size),) * 2
            by_rows[span] = by_rows.get(span, 0) + int(batch.compute_infer.count)
    rows = sum(most * count for (_, most), count in by_rows.items())
    return Counts(by_rows, sum(by_rows.values()), rows, None)
