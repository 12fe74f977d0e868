import logging
from io import StringIO

import pytest
from rich.console import Console

from fuseline.export.progress import ConsoleProgress, LogProgress


def printed(*, terminal: bool) -> str:
    written = StringIO()
    progress = ConsoleProgress(Console(file=written, force_terminal=terminal, color_system=None, width=80))
    with progress.step("Folding [best]") as step:
        step.advance_to(0.5)
        step.done("20 folded")
    progress.warn("mean was [assumed]")
    with pytest.raises(ValueError, match="disk"), progress.step("Writing"):
        raise ValueError("disk")
    return written.getvalue()


def test_elsewhere_than_on_a_terminal_there_are_plain_lines_only() -> None:
    assert printed(terminal=False).splitlines() == ["Folding [best]: 20 folded", "warning: mean was [assumed]"]


def test_on_a_terminal_a_step_is_shown_while_it_runs_and_ticked_when_it_is_done() -> None:
    shown = printed(terminal=True)
    assert "━" in shown
    assert "✓" in shown
    assert "Folding [best]: 20 folded" in shown, "brackets of a file's name are no markup"
    assert shown.count("✓") == 1, "a step that failed is not ticked"


def test_in_a_program_warnings_and_steps_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fuseline.export")
    progress = LogProgress()
    with progress.step("Folding") as step:
        step.done("20 folded")
    progress.warn("mean was assumed")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "Folding: 20 folded"),
        ("WARNING", "mean was assumed"),
    ]
