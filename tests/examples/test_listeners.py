"""How the examples tell what they are doing."""

import importlib
import io

import pytest
from rich.console import Console


@pytest.fixture(scope="module")
def listeners():
    return importlib.import_module("listeners")


def test_terminal_has_a_bar_for_each_piece_of_work_and_lines_above_it(listeners):
    screen = io.StringIO()
    with listeners.listener_for(Console(file=screen, force_terminal=True, width=80)) as listener:
        listener.progress("reading", 5, 10)
        listener.say("[bold] is no markup here")
        listener.progress("training", 1, 4)
        bar = listener._bar
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total) == ("training", 1, 4)
        bar.refresh()
    assert "[bold] is no markup here" in screen.getvalue()
    assert "training" in screen.getvalue()


def test_pipe_gets_lines_alone(listeners, capsys):
    with listeners.listener_for(Console(file=io.StringIO(), force_terminal=False)) as listener:
        listener.progress("training", 1, 4)
        listener.say("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"
