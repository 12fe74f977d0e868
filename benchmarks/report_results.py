"""Result files as the report reads them: those of `bench serve`, `bench engines` and `bench loadgen`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from benchmarks.candidates import TELL_PRECISION, TITLES
from serve.errors import InputError


class _Record(BaseModel):
    """Unknown keys are left aside: a report reads less than a result holds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class BatchesRecord(_Record):
    """As `benchmarks.server_watch.Batches`."""

    by_rows: tuple[tuple[int, int, int], ...]
    batches: int
    rows: int


class Point(_Record):
    """What both loops measure."""

    images_per_request: int
    requests_per_s: float
    images_per_s: float
    latency_ms: dict[str, float]
    server_cpu_ms_per_request: float | None
    generator_cpu_share: float
    generator_was_busy: bool = False
    errors: dict[str, int] = {}
    goodput_per_s: float | None = None
    batches: BatchesRecord | None = None
    latency_histogram: str = ""


class ClosedPoint(Point):
    """As `benchmarks.serving_figures.ServingFigures`."""

    concurrency: int

    @property
    def load(self) -> str:
        return f"{self.concurrency} under way"


class OpenPoint(Point):
    """As `benchmarks.serving_figures.OpenFigures`."""

    rate_per_s: float
    send_lag_ms: dict[str, float]
    was_sent_late: bool = False

    @property
    def load(self) -> str:
        return f"{self.rate_per_s:g}/s"


class Served(_Record):
    """The server that was measured."""

    model: str
    backend: str
    precision: str
    protocol: str = "classify"


class _Result(_Record):
    command: str
    started_utc: str
    load_average_before: float | None = None
    machine: dict[str, Any]
    file: str = ""
    """Name of the file it was read from, without its ending."""


class ServeResult(_Result):
    """Of `bench serve`."""

    benchmark: Literal["serve"]
    server: Served
    deadline_ms: float | None = None
    closed_loop: tuple[ClosedPoint, ...] = ()
    open_loop: tuple[OpenPoint, ...] = ()


class SpreadRecord(_Record):
    """As `benchmarks.stats.Spread`."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int


class EngineRecord(_Record):
    """As `benchmarks.engines.EngineFigures`."""

    candidate: str
    precision: str
    batch: int
    images_per_s_spread: SpreadRecord
    ratio_spread: SpreadRecord
    first_answer_s: float | None = None
    peak_memory_mb: float | None

    @property
    def title(self) -> str:
        """For people; the precision goes without saying where it is in the name."""
        title = TITLES.get(self.candidate, self.candidate)
        return title if self.candidate in TELL_PRECISION else f"{title} {self.precision.upper()}"


class EnginesResult(_Result):
    """Of `bench engines`."""

    benchmark: Literal["engines"]
    baseline: str
    skipped: dict[str, str] = {}
    engines: Annotated[tuple[EngineRecord, ...], Field(min_length=1)]

    @property
    def model(self) -> str:
        """What was named on the command line."""
        return self.command.split()[3]


class AgreementRecord(_Record):
    """As `benchmarks.loadgen_comparison.Agreement`."""

    scenario: str
    quantity: str
    theirs: SpreadRecord
    ours: SpreadRecord
    ratio: SpreadRecord


class LoadGenResult(_Result):
    """Of `bench loadgen`."""

    benchmark: Literal["loadgen"]
    server: Served
    agreements: tuple[AgreementRecord, ...]


Result = ServeResult | EnginesResult | LoadGenResult
_ADAPTER: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="benchmark")])


def read_results(paths: Sequence[Path]) -> tuple[Result, ...]:
    """Read result files, in their order.

    Raises:
        InputError: one can't be read, or is no result of `serve`, `engines` or `loadgen`.
    """
    return tuple(_read(path) for path in paths)


def _read(path: Path) -> Result:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    try:
        return _ADAPTER.validate_python(record | {"file": path.stem} if isinstance(record, dict) else record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path} is no result that a report is made of: {where}: {first['msg']}; expected what "
            "`fuseline bench serve|engines|loadgen --json FILE` wrote"
        ) from error


def labels_of(results: Sequence[ServeResult]) -> tuple[str, ...]:
    """A short name for each, by what tells them apart."""
    every = [result.server.model_dump() for result in results]
    keys = [key for key in ("model", "backend", "precision", "protocol") if len({each[key] for each in every}) > 1]
    labels = [" ".join(each[key] for key in keys or ("model", "backend", "precision")) for each in every]
    return tuple(
        f"{label}, {result.file}" if labels.count(label) > 1 else label
        for label, result in zip(labels, results, strict=True)
    )
