"""The servers that Fuseline is compared with, each in a process of its own: the echo, Triton and Mosec.

Triton and Mosec run in their own environments, which `make peers` makes, by the programs of `servers/`.
"""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import IO

import grpc

from fuseline.benchmarks.harness.server_process import free_ports
from fuseline.benchmarks.load.calls import CHANNEL_OPTIONS
from fuseline.benchmarks.peers.cases import OVERLOAD_DEADLINE_MS, PEER_SERVERS, PEERS
from fuseline.protos.open_inference_pb2 import ModelReadyRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.errors import BackendError

PEER_MODEL = "model"
"""What the peers call the model that they serve."""
MOSEC_PATH = "/model"
ECHOES = {"echo": "echo_server", "http-echo": "http_echo_server"}
"""Each server that answers the same to any bytes to its module."""
_CHECKOUT = Path(__file__).resolve().parents[2]
_PROGRAMS = Path(__file__).parent / "servers"
_MADE_OF = {
    "triton": ("nvidia-pytriton", "onnxruntime", "numpy", "pillow"),
    "mosec": ("mosec", "onnxruntime", "numpy", "pillow"),
}
_READY_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 40.0
_POLL_S = 0.1
_TOLD_CHARACTERS = 2000
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
_SETTINGS = ("MOSEC_", "PYTRITON_", "FUSELINE_", "PYTHON", "VIRTUAL_ENV")
"""What begins like this in the environment would change a peer."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server's address, and the process that it started as."""

    address: str
    pid: int
    http_address: str = ""
    """Of its HTTP port; empty where it has none or is asked by HTTP only."""


def peer_python(peer: str, root: Path = _CHECKOUT) -> Path:
    """The Python of `peer`'s environment, which need not exist; `root` is the checkout."""
    return root / f".venv-peer-{peer}" / "bin" / "python"


def why_left_out(peer: str, root: Path = _CHECKOUT) -> str | None:
    """Why `peer` can't be measured here, in a sentence; None if it is installed."""
    python = peer_python(peer, root)
    if python.exists():
        return None
    return f"{PEERS[peer]} is left out: there is no {python.parents[1].name}; make peers makes it"


def peer_versions(peer: str, root: Path = _CHECKOUT) -> dict[str, str]:
    """Versions of what makes `peer`, as its environment has them; empty where there is none."""
    site_packages = map(str, peer_python(peer, root).parents[1].glob("lib/python*/site-packages"))
    found = {each.name: each.version for each in distributions(path=list(site_packages))}
    return {name: found[name] for name in _MADE_OF[peer] if name in found}


@contextmanager
def started_peer(server: str, graph: Path, *, threads: int, folder: Path, resize: int = 0) -> Iterator[Server]:
    """Serve the ONNX file `graph` by `server` on a free loopback port, yield when it is ready, and end it.

    Args:
        server: of `PEER_SERVERS`; its peer is installed.
        graph: takes uint8 pixels.
        threads: of ONNX Runtime; 0 leaves it to it.
        folder: for the peer's own temporary files.
        resize: what the shorter side of a JPEG is resized to before the centre is cropped; 0: pixels are sent.

    Raises:
        BackendError: it ended, or wasn't ready in time; the message has what it said.
    """
    peer = PEER_SERVERS[server]
    port, other_port = free_ports(2)
    if peer == "triton":
        settings = {"PYTRITON_HOME": str(folder)}
        queue_timeout_us = round(1e3 * OVERLOAD_DEADLINE_MS) if server == "triton-policy" else 0
        numbers = (port, other_port, threads, queue_timeout_us, resize)
        arguments = ["triton_server.py", str(graph), *map(str, numbers)]
        is_ready = _triton_is_ready
    else:
        arguments = ["mosec_server.py", "--address", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        # Sockets of Mosec's own, whose paths may have 108 characters.
        arguments += ["--path", str(folder / f"mosec-{port}"), "--timeout", "30000"]
        settings = {"PEER_GRAPH": str(graph), "PEER_THREADS": str(threads), "PEER_RESIZE": str(resize)}
        is_ready = _mosec_is_ready
    command = [str(peer_python(peer)), str(_PROGRAMS / arguments[0]), *arguments[1:]]
    with tempfile.TemporaryFile() as log, _session(command, settings, log) as process:
        address = f"127.0.0.1:{port}"
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-_TOLD_CHARACTERS:]
                ended = "it still runs" if process.returncode is None else f"exit code {process.returncode}"
                raise BackendError(f"{PEERS[peer]} was never ready ({ended}); --peer leaves it out. It said: {said}")
            time.sleep(_POLL_S)
        yield Server(address, process.pid, f"127.0.0.1:{other_port}" if peer == "triton" else "")


@contextmanager
def started_echo(server: str = "echo") -> Iterator[Server]:
    """Start `server`, of `ECHOES`, yield when it listens, and end it.

    Raises:
        BackendError: it never came up.
    """
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", f"fuseline.benchmarks.peers.{ECHOES[server]}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not _ADDRESS.fullmatch(address):
            raise BackendError(f"the echo server never came up: it said {address!r}")
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def busy_neighbour(most_seconds: float = 600.0) -> Iterator[int]:
    """Keep a process of this one's priority busy, yield its id, and end it; by itself it ends after `most_seconds`.

    Raises:
        BackendError: it ended before what ran beside it.
    """
    program = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", program, str(most_seconds)])  # noqa: S603
    try:
        yield process.pid
        if process.poll() is not None:
            raise BackendError(f"the busy process ended before what was measured beside it ({most_seconds:g} s)")
    finally:
        process.kill()
        process.wait()


@contextmanager
def _session(
    command: Sequence[str], settings: Mapping[str, str], log: IO[bytes]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with its descendants in a session of their own, so that none of them outlives it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    process = subprocess.Popen(  # noqa: S603
        command,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        env={**environment, **settings, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # What both tidy up after; Triton's Python wrapper doesn't on SIGTERM.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _triton_is_ready(address: str) -> bool:
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            return bool(stub.ModelReady(ModelReadyRequest(name=PEER_MODEL), timeout=5).ready)
        except grpc.RpcError:
            return False


def _mosec_is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
