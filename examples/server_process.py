"""`fuseline serve` as a child process: started, waited for, and ended as a service manager would end it."""

import http.client
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0
_LOOK_S = 0.2
"""Seconds between two looks at whether the server still runs."""
_READY = re.compile(r"gRPC on (127\.0\.0\.1:\d+)(?:.*, HTTP on (127\.0\.0\.1:\d+))?")


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready."""

    process: subprocess.Popen[str]
    address: str
    """Where it answers gRPC."""
    http_address: str | None

    def page(self) -> str | None:
        """The URL of the page that it shows to browsers; None if it shows none."""
        if self.http_address is None:
            return None
        connection = http.client.HTTPConnection(self.http_address, timeout=10)
        try:
            connection.request("GET", "/", headers={"Accept": "text/html"})
            kind = connection.getresponse().getheader("Content-Type", "")
        finally:
            connection.close()
        return f"http://{self.http_address}/" if kind.startswith("text/html") else None

    def wait(self) -> None:
        """Return when the server has ended."""
        # A signal that comes just before a wait without end would be heeded only after it.
        while self.process.poll() is None:
            time.sleep(_LOOK_S)


@contextmanager
def running_server(command: list[str], folder: Path, log: Path) -> Iterator[RunningServer]:
    """Start `command` in `folder`, yield the server once it is ready, and end it with SIGTERM.

    Its stderr goes to `log`. Ctrl-C doesn't reach it: a second signal would end it before it has drained.

    Raises:
        RuntimeError: it ended or was silent before it was ready, or its exit code after SIGTERM was not 0.
    """
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
        )
    try:
        yield _ready(process, log)
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


def _ready(process: subprocess.Popen[str], log: Path) -> RunningServer:
    assert process.stdout is not None
    # Ending the process ends the loop below, whatever the server prints or doesn't.
    alarm = Timer(START_TIMEOUT_S, process.kill)
    alarm.start()
    try:
        for line in process.stdout:
            if ready := _READY.search(line):
                return RunningServer(process, ready[1], ready[2])
    finally:
        alarm.cancel()
    raise RuntimeError(
        f"the server was not ready within {START_TIMEOUT_S:g} s (exit code {process.wait()}); it said:\n"
        f"{_last_lines(log)}"
    )


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]) or "(nothing)"
