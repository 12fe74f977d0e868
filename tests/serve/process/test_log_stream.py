"""What stands in the place of sys.stderr."""

import io
import os

from fuseline.serve.process.log_stream import LogStream


def stream_to(lines: list[str]) -> LogStream:
    return LogStream(lines.append, io.StringIO())


def test_what_is_written_in_pieces_joins_the_log_by_whole_lines() -> None:
    lines: list[str] = []
    print("one", "two", file=stream_to(lines))
    stream = stream_to(lines)
    stream.write("begun")
    assert lines == ["one two\n"]
    stream.write(", ended\nbegun again")
    assert lines == ["one two\n", "begun, ended\n"]
    stream.flush()
    stream.flush()
    assert lines == ["one two\n", "begun, ended\n", "begun again"]


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    lines: list[str] = []
    stream = stream_to(lines)
    for _ in range(10):
        stream.write("x" * 10_000)
    assert sum(map(len, lines)) >= 60_000


def test_it_has_the_descriptor_and_the_encoding_of_the_stream_in_whose_place_it_stands() -> None:
    with open(os.devnull, "w", encoding="latin-1", errors="backslashreplace") as file:  # noqa: PTH123
        stream = LogStream(lambda _: None, file)
        assert (stream.fileno(), stream.encoding, stream.errors) == (file.fileno(), "latin-1", "backslashreplace")
        assert not stream.isatty()
        assert stream.writable()
