"""Result files as the report reads them: of `bench serve`, `engines` and `loadgen`, and `peers` with its overload."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from fuseline.benchmarks.engines.contenders import TELL_PRECISION, TITLES
from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.serve.broken_rules import broken_rules
from fuseline.serve.errors import InputError


class _Record(BaseModel):
    """Unknown keys are left aside: a report reads less than a result holds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class BatchesRecord(_Record):
    """As `fuseline.benchmarks.load.server_watch.Batches`."""

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
    """As `fuseline.benchmarks.serving.figures.ServingFigures`."""

    concurrency: int

    @property
    def load(self) -> str:
        return f"{self.concurrency} under way"


class OpenPoint(Point):
    """As `fuseline.benchmarks.serving.figures.OpenFigures`."""

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
    """A result of `bench serve`."""

    benchmark: Literal["serve"]
    server: Served
    deadline_ms: float | None = None
    closed_loop: tuple[ClosedPoint, ...] = ()
    open_loop: tuple[OpenPoint, ...] = ()


class SpreadRecord(_Record):
    """As `fuseline.benchmarks.harness.stats.Spread`."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int


class EngineRecord(_Record):
    """As `fuseline.benchmarks.engines.compare.EngineFigures`."""

    candidate: str
    precision: str
    batch: int
    images_per_s_spread: SpreadRecord
    ratio_spread: SpreadRecord
    ratio_to_best_pytorch_spread: SpreadRecord | None = None
    first_answer_s: float | None = None
    peak_memory_mb: float | None

    @property
    def title(self) -> str:
        """Title for people; it leaves out a precision that the name tells."""
        title = TITLES.get(self.candidate, self.candidate)
        return title if self.candidate in TELL_PRECISION else f"{title} {self.precision.upper()}"


class EnginesResult(_Result):
    """A result of `bench engines`."""

    benchmark: Literal["engines"]
    baseline: str
    best_pytorch: dict[int, str] = {}
    """Batch to contender; results of before PyTorch was given every chance have none."""
    skipped: dict[str, str] = {}
    engines: Annotated[tuple[EngineRecord, ...], Field(min_length=1)]

    @property
    def model(self) -> str:
        """What was named on the command line."""
        return self.command.split()[3]


class AgreementRecord(_Record):
    """As `fuseline.benchmarks.serving.loadgen_comparison.Agreement`."""

    scenario: str
    quantity: str
    theirs: SpreadRecord
    ours: SpreadRecord
    ratio: SpreadRecord


class LoadGenResult(_Result):
    """A result of `bench loadgen`."""

    benchmark: Literal["loadgen"]
    server: Served
    agreements: tuple[AgreementRecord, ...]


class OverloadStretchRecord(_Record):
    """As `fuseline.benchmarks.peers.overload.OverloadStretch`."""

    load: float
    goodput_of_capacity: float


class OverloadRoundRecord(_Record):
    """As `fuseline.benchmarks.peers.overload.OverloadRound`."""

    stretches: Annotated[tuple[OverloadStretchRecord, ...], Field(min_length=1)]


class OverloadCaseRecord(_Record):
    """As `fuseline.benchmarks.peers.cases.OverloadCase`."""

    title: str
    network: str
    deadline_ms: float


class OverloadRecord(_Record):
    """As `fuseline.benchmarks.peers.overload.OverloadRounds`."""

    case: OverloadCaseRecord
    rounds: dict[str, Annotated[tuple[OverloadRoundRecord, ...], Field(min_length=1)]]


class ContenderRecord(_Record):
    """As `fuseline.benchmarks.peers.cases.Contender`."""

    title: str


class PeersResult(_Result):
    """A result of `bench peers`, of which only the overload is read."""

    benchmark: Literal["peers"]
    contenders: dict[str, ContenderRecord]
    cases: tuple[OverloadRecord, ...]

    @field_validator("cases", mode="before")
    @classmethod
    def _with_overload(cls, cases: Any) -> Any:
        if not isinstance(cases, list):
            return cases
        overload = [case for case in cases if isinstance(case, dict) and case.get("name") == "overload"]
        if not overload:
            raise ValueError("there is no case overload, and others aren't drawn")
        return overload

    @property
    def overload(self) -> OverloadRecord:
        """The case that is drawn."""
        return self.cases[0]

    def curves(self) -> dict[str, dict[float, Spread]]:
        """As `fuseline.benchmarks.peers.overload.OverloadRounds.curves`."""
        found = {}
        for name, rounds in self.overload.rounds.items():
            by_load: dict[float, list[float]] = {}
            for each in rounds:
                for stretch in each.stretches:
                    by_load.setdefault(stretch.load, []).append(stretch.goodput_of_capacity)
            found[self.contenders[name].title] = {load: spread_of(values) for load, values in by_load.items()}
        return found


Result = ServeResult | EnginesResult | LoadGenResult | PeersResult
_ADAPTER: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="benchmark")])


def read_results(paths: Sequence[Path]) -> tuple[Result, ...]:
    """Read result files, in their order.

    Raises:
        InputError: one can't be read, or is no result of `serve`, `engines`, `loadgen` or `peers` with its overload.
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
        raise InputError(
            f"{path} is no result that a report is made of: {broken_rules(error, most=1)}; expected what "
            "`fuseline bench serve|engines|loadgen|peers --json FILE` wrote"
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
