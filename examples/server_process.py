"""`fuseline serve` as a child process: started, waited for, and ended as a service manager would end it."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


@contextmanager
def running_server(command: list[str], folder: Path, log: Path) -> Iterator[str]:
    """Start `command` in `folder`, yield the address in its ready line, and end it with SIGTERM.

    Its stderr goes to `log`.

    Raises:
        RuntimeError: it ended or was silent before it was ready, or its exit code after SIGTERM was not 0.
    """
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True)  # noqa: S603
    try:
        yield _ready_address(process, log)
        process.terminate()
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the server still ran {STOP_TIMEOUT_S:g} s after SIGTERM; see {log}") from None
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the server's exit code after SIGTERM was {code}, not 0; it said:\n{_last_lines(log)}")


def _ready_address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    # Ending the process ends the loop below, whatever the server prints or doesn't.
    alarm = Timer(START_TIMEOUT_S, process.kill)
    alarm.start()
    try:
        for line in process.stdout:
            if address := _ADDRESS.search(line):
                return address[0]
    finally:
        alarm.cancel()
    raise RuntimeError(
        f"the server was not ready within {START_TIMEOUT_S:g} s (exit code {process.wait()}); it said:\n"
        f"{_last_lines(log)}"
    )


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]) or "(nothing)"
