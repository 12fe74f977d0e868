"""OpenVINO in a process that gets signals."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.colours import write_colours_package
from tests.serve.processes import ROOT

_CLOSE_THEN_SIGNAL = """
import os, signal, sys
from pathlib import Path
from threading import Thread
from fuseline.serve.backends.openvino import graph_runner

handled = []
signal.signal(signal.SIGTERM, lambda *_: handled.append(True))
graph = Path(sys.argv[1]).read_bytes()
runners = [graph_runner(graph) for _ in range(int(sys.argv[2]))]

def close_all():
    # The oldest is closed first.
    while runners:
        del runners[0]

if sys.argv[3] == "other":
    closing = Thread(target=close_all)
    closing.start()
    closing.join()
else:
    close_all()
os.kill(os.getpid(), signal.SIGTERM)
assert handled
"""


@pytest.mark.parametrize(("models", "thread"), [(2, "same"), (1, "other")])
def test_signals_are_handled_after_models_were_closed_in_any_order_and_thread(
    models: int, thread: str, tmp_path: Path
) -> None:
    graph = write_colours_package(tmp_path / "colours") / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-c", _CLOSE_THEN_SIGNAL, graph, str(models), thread],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
