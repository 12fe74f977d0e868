"""The `fuseline` command, and how it mounts the others."""

import re
import signal
import subprocess
import sys

import pytest

from tests.commands import Run
from tests.serve.processes import ROOT

COMMANDS = [
    "export",
    "serve",
    "classify",
    "models",
    "health",
    "token",
    "convert",
    "inspect",
    "engine",
    "doctor",
    "plan",
    "manifest",
    "bench",
]


@pytest.mark.parametrize("module", ["fuseline.command", "fuseline.export.commands.export_command"])
def test_an_extra_that_is_not_installed_is_one_line_and_2(module: str) -> None:
    """In a process where torch can't be imported, as in the serving container."""
    command = ["fuseline", "export"] if module == "fuseline.command" else ["export"]
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = {[*command, 'resnet18.pt']}\n"
        f"from {module} import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: torch is not installed; pip install 'fuseline[export]'\n")


def test_version_and_unknown_command(run_fuseline: Run) -> None:
    code, stdout, _ = run_fuseline("--version")
    assert code == 0
    assert re.fullmatch(r"fuseline \d+\.\d+\.\d+\n", stdout)
    assert run_fuseline("sing")[0] == 2


def test_help_lists_every_command_and_neither_it_nor_the_client_imports_torch() -> None:
    code = (
        "import sys\n"
        "from fuseline import Client\n"
        "from fuseline.command import main\n"
        "sys.argv = ['fuseline', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "unwanted = {'torch', 'onnx', 'fuseline.export', 'fuseline.benchmarks', 'onnxruntime', 'openvino'}\n"
        "assert not unwanted & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^│ (\w+) {2,}[A-Z]", done.stdout, flags=re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_mounted(run_fuseline: Run, command: str) -> None:
    code, stdout, _ = run_fuseline(command, "--help")
    assert code == 0
    assert f"Usage: fuseline {command} " in stdout


def test_after_a_signal_the_next_ctrl_c_ends_the_process_though_a_thread_still_computes() -> None:
    """As long as threads are waited for; else Python would finalise below them, and native code would crash."""
    program = (
        "import sys, threading, time\n"
        "from fuseline.serve.command_line import run_command_line\n"
        "def compute():\n"
        "    while threading.main_thread().is_alive():\n"
        "        time.sleep(0.001)\n"
        "    print('ending', flush=True)\n"
        "    time.sleep(60)\n"
        "def command():\n"
        "    threading.Thread(target=compute).start()\n"
        "    raise SystemExit(130)\n"
        "run_command_line(command)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (-signal.SIGINT, "")
