"""`fuseline serve` in a process of its own, started and ended around a benchmark."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuseline.serve.errors import BackendError

_READY_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
_ADDRESS = re.compile(r"\b127\.0\.0\.1:(\d+)\b")
_HTTP_ADDRESS = re.compile(r"\bHTTP on (127\.0\.0\.1:\d+)\b")


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that is ready."""

    address: str
    pid: int
    ready_s: float
    """Seconds from the process's start to its ready line: interpreter, imports, model, warm-up, reference check."""
    announcement: str
    """What it wrote before it was ready, that line included: the model, the backend and its device."""

    @property
    def http_address(self) -> str:
        """Where it answers HTTP; empty if it doesn't."""
        found = _HTTP_ADDRESS.search(self.announcement)
        return found[1] if found else ""


@contextmanager
def started_server(
    package_folder: Path | None,
    *flags: str,
    module: str = "fuseline.serve",
    variables: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Serve `package_folder`, or what `flags` name, on a free loopback port; yield when ready, end it with SIGTERM.

    `module` is what `python -m` runs; it takes the flags of `fuseline serve`. `variables` come to the environment.

    Raises:
        BackendError: it ended, or wasn't ready in time; the message has what it said.
    """
    packages = () if package_folder is None else (str(package_folder),)
    command = [sys.executable, "-m", module, *packages, "--host", "127.0.0.1", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FUSELINE_")}
    environment |= variables or {}
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603
            [*command, "--http-port", "0", *flags], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        watchdog = threading.Timer(_READY_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            address, announcement = _announced(process)
            watchdog.cancel()
            if address is None:
                process.wait(_END_TIMEOUT_S)
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-2000:]
                raise BackendError(f"the server was never ready (exit code {process.returncode}): {said}")
            yield ServerProcess(address, process.pid, time.perf_counter() - started, announcement)
        finally:
            watchdog.cancel()
            _end(process)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now; found together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _announced(process: subprocess.Popen[str]) -> tuple[str | None, str]:
    """Return the address, None if the process ended first, and what it wrote until then."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := _ADDRESS.search(line):
            return found[0], "".join(lines)
    return None, "".join(lines)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
