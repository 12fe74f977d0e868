import errno
import io
import os
import pty

from fuseline.serve.backends.engine.display import show_build


def test_elsewhere_than_on_a_terminal_it_is_a_line_for_each_quarter():
    said = []
    with show_build("building", said.append, io.StringIO()) as on_progress:
        for share in (0.0, 0.1, 0.3, 0.31, 0.8, 0.9, 1.0):
            on_progress("phase", share)
    assert said == ["building", "building: 25 %", "building: 75 %", "building: 100 %"]


def test_on_a_terminal_it_is_a_bar_that_goes_when_it_is_done(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    reader, writer = pty.openpty()
    said = []
    with (
        os.fdopen(writer, "w", encoding="utf-8") as terminal,
        show_build("building [the] engine", said.append, terminal) as on_progress,
    ):
        on_progress("Choosing kernels", 0.4)
    shown = _until_the_end(reader)
    os.close(reader)
    assert said == []
    assert "building [the] engine" in shown
    assert "━" in shown
    assert "\x1b[2K" in shown, "the bar is wiped away"


def _until_the_end(terminal_reader: int) -> str:
    # A terminal hands over what was written in pieces; once its other side is closed, Linux answers
    # EIO when all was read.
    pieces = []
    while True:
        try:
            piece = os.read(terminal_reader, 2**16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            piece = b""
        if not piece:
            return b"".join(pieces).decode()
        pieces.append(piece)
