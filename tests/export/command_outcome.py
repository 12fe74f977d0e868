"""`export` as a user runs it, and what it leaves."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str


RunExport = Callable[..., Outcome]


def only_error(result: Outcome) -> str:
    """The one error line; asserts that the exit code says wrong input."""
    assert result.exit_code == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
