"""Fixtures of the export's tests."""

import sys

import pytest

from fuseline.export.commands.export_command import main
from tests.export.command_outcome import Outcome, RunExport


@pytest.fixture
def run_export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunExport:
    """Run `export ARGUMENTS` in this process, which has imported torch already."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capfd.readouterr()
        return Outcome(int(exited.value.code or 0), captured.out, captured.err)

    return run
