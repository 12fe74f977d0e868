"""Fixtures of the export's tests."""

import pytest

from fuseline.export.commands.export_command import main
from tests.commands import Outcome, Run, exit_code


@pytest.fixture
def run_export(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `export ARGUMENTS` in this process."""

    def run(*arguments: object) -> Outcome:
        return Outcome(exit_code("export", *arguments, main=main), *capfd.readouterr())

    return run
