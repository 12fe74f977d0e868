"""The thread that writes a log, whose reader the test is."""

import os
import threading
import time

import pytest

from fuseline.serve.process.log_writer import LogWriter, write_whole


class Reader:
    """A stream that takes writes only while it is open, and `room` bytes at most."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)
        self.read = b""
        self.room = 2**30

    def write(self, data: bytes) -> int:
        self.begun.release()
        assert self.open.wait(30)
        taken = data[: self.room]
        self.room -= len(taken)
        self.read += taken
        return len(taken)

    def lines(self) -> list[str]:
        return self.read.decode().splitlines()


@pytest.fixture
def reader() -> Reader:
    return Reader()


def writer_to(reader: Reader, most_bytes: int = 2**20) -> LogWriter:
    return LogWriter(reader.write, "{} missing\n".format, most_bytes=most_bytes)


def held(reader: Reader, most_bytes: int) -> LogWriter:
    """A writer that is writing its first line, `first`, and waits."""
    writer = writer_to(reader, most_bytes)
    reader.open.clear()
    writer.put("first\n")
    assert reader.begun.acquire(timeout=30)
    return writer


def test_lines_are_written_in_their_order(reader: Reader) -> None:
    writer = writer_to(reader)
    for number in range(1000):
        writer.put(f"{number}\n")
    assert writer.flush(30)
    assert reader.lines() == [str(number) for number in range(1000)]
    assert writer.dropped == 0


def test_nobody_waits_for_the_reader_and_what_has_no_room_is_counted_and_told_in_its_place(reader: Reader) -> None:
    writer = held(reader, most_bytes=1100)
    for number in range(50):
        writer.put(f"{number}\n")
    dropped = writer.dropped
    assert dropped == 40
    reader.open.set()
    assert writer.flush(30)
    writer.put("after\n")
    assert writer.flush(30)
    assert reader.lines() == ["first", *map(str, range(10)), "40 missing", "after"]
    assert writer.dropped == dropped


def test_the_queue_is_bounded_in_bytes_too(reader: Reader) -> None:
    writer = held(reader, most_bytes=2**20)
    for _ in range(1000):
        writer.put("x" * 60_000 + "\n")
    assert 1000 - writer.dropped == 2**20 // 60_101
    reader.open.set()
    assert writer.flush(30)


def test_a_text_that_is_longer_than_the_bound_loses_its_middle_and_is_written(reader: Reader) -> None:
    writer = writer_to(reader)
    writer.put("a" * 2**21 + "b" * 2**21 + "\n")
    assert writer.flush(30)
    (line,) = reader.lines()
    assert line.startswith("aaa")
    assert line.endswith("bbb")
    assert len(line) < 66_000


def test_the_end_waits_for_the_reader_no_longer_than_it_is_told(reader: Reader) -> None:
    writer = held(reader, most_bytes=2**20)
    begun = time.monotonic()
    assert not writer.flush(0.05)
    assert time.monotonic() - begun < 10
    reader.open.set()
    assert writer.flush(30)
    assert reader.lines() == ["first"]


def test_a_line_that_cannot_be_written_is_counted_and_told_once_one_can_be(reader: Reader) -> None:
    writer = writer_to(reader)
    reader.room = 0
    for number in range(3):
        writer.put(f"{number}\n")
        assert writer.flush(30)
    assert writer.dropped == 3
    reader.room = 2**20
    writer.put("room\n")
    assert writer.flush(30)
    assert reader.lines() == ["3 missing", "room"]


def test_a_line_that_was_cut_short_is_ended_before_the_next_one(reader: Reader) -> None:
    writer = writer_to(reader)
    reader.room = 3
    writer.put("whole\n")
    assert writer.flush(30)
    reader.room = 2**20
    writer.put("next\n")
    assert writer.flush(30)
    assert reader.lines() == ["who", "1 missing", "next"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_writes_its_own_lines_alone(reader: Reader) -> None:
    ours, theirs = os.pipe()
    writer = LogWriter(lambda data: write_whole(theirs, data), "{} missing\n".format)
    writer.put("before\n")
    assert writer.flush(30)
    if (child := os.fork()) == 0:
        writer.put("child\n")
        os._exit(not writer.flush(30))
    assert os.waitpid(child, 0) == (child, 0)
    writer.put("parent\n")
    assert writer.flush(30)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b"before\nchild\nparent\n"


def test_a_pipe_that_its_owner_made_not_wait_is_written_whole() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    data = bytes(2**20)
    written: list[int] = []
    thread = threading.Thread(target=lambda: written.append(write_whole(theirs, data)))
    thread.start()
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read(len(data)) == data
        thread.join(30)
    os.close(theirs)
    assert written == [len(data)]


def test_a_pipe_whose_reader_is_gone_takes_nothing_and_raises_nothing() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    assert write_whole(theirs, b"x\n") == 0
    os.close(theirs)
