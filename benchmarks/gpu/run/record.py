"""What a run on a GPU found: one JSON file that is whole and true at any time, and its reader."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fuseline.benchmarks.harness.results import without_folders, write_json
from fuseline.serve.broken_rules import broken_rules
from fuseline.serve.errors import FuselineError, InputError, VerificationError

RowStatus = Literal["measured", "passed", "not here", "skipped", "dropped", "out of memory", "failed", "wrong answer"]
StepStatus = Literal["waiting", "running", "done", "not here", "out of time", "failed", "interrupted"]
_BAD_ROWS = ("failed", "wrong answer")
_BAD_STEPS = ("failed", "interrupted")

Figure = float | int | str | bool | None


class Row(BaseModel):
    """One thing that was tried."""

    model_config = ConfigDict(extra="forbid")

    what: str
    """`resnet50, batch 128: TensorRT FP16`; equal for equal things in every run."""
    status: RowStatus = "measured"
    reason: str | None = None
    """Why there are no figures, or fewer; names no folder of the machine."""
    figures: dict[str, Figure] = Field(default_factory=dict)
    """What the table shows; the unit is in the name."""
    details: dict[str, Any] = Field(default_factory=dict)
    """All else."""

    @field_validator("figures", "details", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        """NaN and infinity as text, since JSON has neither: what came of a fault must not end the run."""
        return _as_json_has_it(value)


def failure_row(what: str, error: FuselineError) -> Row:
    """The row of what came to `error`; what is only not here is no failure, and told otherwise."""
    status: RowStatus = "wrong answer" if isinstance(error, VerificationError) else "failed"
    return Row(what=what, status=status, reason=without_folders(str(error)))


def _as_json_has_it(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _as_json_has_it(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json_has_it(each) for each in value]
    return value


class StepRecord(BaseModel):
    """One step of a run."""

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    status: StepStatus = "waiting"
    reason: str | None = None
    limit_s: float | None = None
    seconds: float | None = None
    rows: list[Row] = Field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether it ended as it must not, or found something wrong."""
        return self.status in _BAD_STEPS or any(row.status in _BAD_ROWS for row in self.rows)


class RunRecord(BaseModel):
    """A run, as far as it has come."""

    model_config = ConfigDict(extra="forbid")

    benchmark: Literal["gpu-run"] = "gpu-run"
    format: Literal[1] = 1
    command: str
    started_utc: str
    load_average_before: float | None
    machine: dict[str, Any]
    gpu: dict[str, Any] | None
    """What nvidia-smi said before the run."""
    bundle: dict[str, Any] | None
    """Revision and target of the bundle that brought the code; None: a checkout, whose revision is in `machine`."""
    minutes: float
    device: Literal["cuda", "cpu"]
    steps: list[StepRecord]
    finished: bool = False
    """Whether every step had its turn."""

    @property
    def exit_code(self) -> int:
        """0: every step ran or says why not, and nothing was wrong. 1: something was."""
        return int(not self.finished or any(step.bad for step in self.steps))

    def write(self, path: Path) -> None:
        """Replace the file whole."""
        write_json(path, self.model_dump(mode="json"))


def read_record(path: Path) -> RunRecord:
    """Read what `RunRecord.write` wrote. Raises `InputError` if it is something else."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise InputError(f"{path} is no result of a GPU run: {broken_rules(error, most=1)}") from error
