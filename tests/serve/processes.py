"""`fuseline serve` as a process of its own."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest
from fuseline.protos.classify_pb2_grpc import ClassifierStub

ROOT = Path(__file__).parents[2]
FAST = ("--port", 0, "--http-port", 0, "--backend", "onnxruntime", "--threads", 1)
"""Flags of a server that starts fast on a free port, without HTTP."""
_UNASSIGNED_PORTS = range(20_000, 32_000)
"""Below those that Linux gives out by itself, from 32,768 on."""
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass
class ServerProcess:
    """A server that is ready."""

    process: subprocess.Popen[str]
    announcement: str
    address: str
    http_address: str | None

    def next_line(self) -> str:
        """The next line of stdout, behind where its page is."""
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()).startswith("watch it: "):
            pass
        return line

    def end(self, timeout_s: float = 20) -> tuple[int, str]:
        """Wait for the process; return its exit code and what it wrote to stderr, if it hangs where each thread is."""
        try:
            _, stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            _, stderr = self.process.communicate()
        return self.process.returncode, stderr


@contextmanager
def server_process(
    *arguments: object,
    command: Sequence[str] = ("-m", "serve"),
    python: Path = Path(sys.executable),
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Run `python -m serve ARGUMENTS` until it says that it is ready; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [python, "-X", "faulthandler", *command, *map(str, arguments)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if ready := re.search(r"ready in [\d.]+ s: gRPC on (\S+?)(?: and \S+?)*(?:, HTTP on (\S+))?$", line):
                yield ServerProcess(process, "".join(lines), ready[1], ready[2])
                break
        else:
            raise AssertionError(f"never ready: {process.communicate()[1]}")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finished(*arguments: object) -> tuple[int, str, str]:
    """Run `python -m serve ARGUMENTS`, which ends by itself; return exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "serve", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def free_port() -> int:
    """A port on which nothing listens, and which the kernel gives to no connection and no other test meanwhile."""
    for port in random.SystemRandom().sample(_UNASSIGNED_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports are all taken")


def get(address: str, path: str) -> tuple[int, str]:
    """The status and the body of an HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def own_channel(server: ServerProcess) -> grpc.aio.Channel:
    """A channel with a connection of its own, which the kernel gives to any of the server's workers."""
    return grpc.aio.insecure_channel(server.address, options=_OWN_CONNECTION)


def lives(pid: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(server: ServerProcess) -> dict[int, str]:
    """The supervisor's processes that live: their ids, and `backend` or `worker`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            arguments = os.fsdecode((folder / "cmdline").read_bytes())
        except OSError:
            continue
        kind = re.search(r"serve\.workers\.(backend|worker)_process", arguments)
        if int(parent) == server.process.pid and state != "Z" and kind:
            found[int(folder.name)] = kind[1]
    return found


def one_of(server: ServerProcess, kind: str) -> int:
    return next(pid for pid, its in children_of(server).items() if its == kind)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """What is waited for lies in other processes, which tell no one."""
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def metric(server: ServerProcess, line: str) -> float:
    assert server.http_address is not None
    found = re.search(rf"^{re.escape(line)} (\S+)$", get(server.http_address, "/metrics")[1], re.MULTILINE)
    return 0.0 if found is None else float(found[1])


async def check_drain_under_load(
    server: ServerProcess, stubs: Sequence[ClassifierStub], request: Callable[[int], ClassifyRequest]
) -> None:
    """Have 32 clients call by `stubs` until they are refused, SIGTERM coming after 300 answers.

    Fails unless what was admitted got its answer, the rest was refused, and the server ended with 0.
    """
    answered = 0

    async def call_until_refused(stub: ClassifierStub) -> grpc.StatusCode:
        nonlocal answered
        while True:
            try:
                await stub.Classify(request(answered), timeout=30)
            except grpc.aio.AioRpcError as error:
                return error.code()
            answered += 1
            if answered == 300:
                server.process.send_signal(signal.SIGTERM)

    ends = await asyncio.gather(*(call_until_refused(stubs[n % len(stubs)]) for n in range(32)))
    code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    counts = {
        code: int(count) for count, code in re.findall(r"(\d+) ([A-Z_]+)", stderr.partition("since the start:")[2])
    }
    assert counts["OK"] == answered >= 300
    assert set(counts) <= {"OK", "UNAVAILABLE"}
    # gRPC itself answers CANCELLED to calls that no handler has seen when the server stops.
    assert set(ends) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
