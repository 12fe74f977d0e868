"""The lock between real processes and between threads."""

import threading

import pytest

from fuseline.serve.backends.engine.lock import file_lock
from tests.serve.child_process import ChildProcess

HOLDS = """
from pathlib import Path
from fuseline.serve.backends.engine.lock import file_lock
with file_lock(Path(sys.argv[1]), lambda: say("waiting")):
    say("holding")
    hear()
say("released")
"""


def test_one_process_at_a_time_and_the_other_says_that_it_waits(tmp_path):
    with (
        ChildProcess(HOLDS, tmp_path / "a.lock") as first,
        ChildProcess(HOLDS, tmp_path / "a.lock", start=False) as second,
    ):
        assert first.hear() == "holding"
        second.start()
        assert second.hear() == "waiting"
        first.say("go on")
        assert first.hear() == "released"
        assert second.hear() == "holding"
        second.say("go on")
        assert second.hear() == "released"


def test_a_process_that_is_killed_releases_it(tmp_path):
    with (
        ChildProcess(HOLDS, tmp_path / "a.lock") as first,
        ChildProcess(HOLDS, tmp_path / "a.lock", start=False) as second,
    ):
        assert first.hear() == "holding"
        second.start()
        assert second.hear() == "waiting"
        first.kill()
        assert second.hear() == "holding"
        second.say("go on")


def test_threads_of_one_process_are_kept_apart_too(tmp_path):
    waits, order = threading.Event(), []

    def other():
        with file_lock(tmp_path, waits.set):
            order.append("other")

    with file_lock(tmp_path, lambda: pytest.fail("nobody else holds it")):
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(30)
        order.append("this")
    thread.join(30)
    assert order == ["this", "other"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "no/a.lock", lambda: None):
        pass
