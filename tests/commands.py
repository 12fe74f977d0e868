"""Command lines run in this process, which has imported already what they need."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

import fuseline.command


class Outcome(NamedTuple):
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


def exit_code(*command: object, main: Callable[[], object] = fuseline.command.main) -> int:
    """Run the command line `command` by `main`; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def only_error(result: Outcome) -> str:
    """Return the one error line; the exit code must say wrong input."""
    assert result.exit_code == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
