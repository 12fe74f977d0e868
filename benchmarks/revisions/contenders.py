"""What is measured of one revision in a round, in short stretches: a case in a process of its own, or a server."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np

from fuseline.benchmarks.harness.answers import check_response
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.load.calls import CLASSIFY
from fuseline.benchmarks.revisions import worker
from fuseline.benchmarks.revisions.trees import Tree
from fuseline.benchmarks.revisions.worker import PACKAGE_NAME
from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.serve.errors import BackendError
from fuseline.serve.reference import REFERENCE_NAME

SERVER_CONCURRENCY = 16

_SERVER_REQUESTS = 32
_SERVER_WARM_REQUESTS = 320
_ANSWER_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 60.0

Costs = dict[str, float]
"""`cpu` and `wall` seconds of a unit."""


class Contender(Protocol):
    """One revision, ready to be measured."""

    def stretch(self) -> Costs:
        """Measure one stretch of a few milliseconds."""
        ...


class CaseContender:
    """A process that runs one case in stretches of `cycles` cycles, which the caller sets alike for every revision."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.cycles = 0
        self.suggested_cycles = int(self._ask(0)["cycles"])

    def stretch(self) -> Costs:
        """One stretch."""
        return self._ask(self.cycles)

    def _ask(self, cycles: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        # If it has ended, its last answer says why.
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{cycles}\n")
            self._process.stdin.flush()
        return read_answer(self._process)


class ServerContender:
    """A server process, asked by `SERVER_CONCURRENCY` callers that each send their next request after the answer."""

    def __init__(self, address: str, pid: int, runner: asyncio.Runner, package: Path) -> None:
        self._runner = runner
        # Linux's clock of another process's CPU time, all threads, in nanoseconds; /proc has it in steps of 10 ms.
        self._cpu_clock = (~pid << 3) | 2
        with np.load(package / REFERENCE_NAME) as reference:
            self._pixels, self._logits = reference["pixels"], reference["logits"]
        self._requests = [
            ClassifyRequest(images=[Image(raw=pixels.tobytes())], return_logits=True).SerializeToString()
            for pixels in self._pixels
        ]
        runner.run(self._connect(address))
        runner.run(self._ask(_SERVER_WARM_REQUESTS))

    def stretch(self) -> Costs:
        """One stretch; its last answers are checked."""
        cpu, wall = time.clock_gettime(self._cpu_clock), time.perf_counter()
        answers = self._runner.run(self._ask(_SERVER_REQUESTS))
        wall, cpu = time.perf_counter() - wall, time.clock_gettime(self._cpu_clock) - cpu
        index, answer = answers[-1]
        check_response("the server", "fp32", ClassifyResponse.FromString(answer), self._logits[index : index + 1])
        return {"cpu": cpu / _SERVER_REQUESTS, "wall": wall / _SERVER_REQUESTS}

    def close(self) -> None:
        """Close the connection."""
        self._runner.run(self._channel.close())

    async def _connect(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._call: Any = self._channel.unary_unary(CLASSIFY)

    async def _ask(self, count: int) -> list[tuple[int, bytes]]:
        left = iter(range(count))
        answers: list[tuple[int, bytes]] = []

        async def caller() -> None:
            for number in left:
                index = number % len(self._requests)
                answers.append((index, await self._call(self._requests[index], timeout=_CALL_TIMEOUT_S)))

        try:
            await asyncio.gather(*[caller() for _ in range(SERVER_CONCURRENCY)])
        except grpc.aio.AioRpcError as error:
            raise BackendError(f"the server answered {error.code().name}: {error.details()}") from error
        return answers


@contextmanager
def started_case(tree: Tree, case: str, files: Path, core: int) -> Iterator[CaseContender]:
    """Start `case` of `tree`, on that core only; `BackendError` if the revision can't run it."""
    command = [*worker_command(tree, files), "time", case]
    with _on_core(core):
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=tree.environment()
        )
    try:
        yield CaseContender(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def started_server_of(tree: Tree, files: Path, core: int, runner: asyncio.Runner) -> Iterator[ServerContender]:
    """Start a server of `tree` on that core only, connect to it on `runner`; `BackendError` if it fails."""
    package = files / PACKAGE_NAME
    with ExitStack() as stack:
        with _environment(tree.environment()), _on_core(core):
            server = stack.enter_context(
                started_server(package, "--backend", "onnxruntime", "--threads", "1", module="serve")
            )
        contender = ServerContender(server.address, server.pid, runner, package)
        stack.callback(contender.close)
        yield contender


def worker_command(tree: Tree, files: Path) -> list[str]:
    """How `worker` of this checkout is started on the code of `tree`."""
    return [sys.executable, worker.__file__, str(tree.folder), str(files)]


def read_answer(process: subprocess.Popen[str], timeout_s: float = _ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """The worker's next answer; `BackendError` if it is an error, or none comes in time."""
    assert process.stdout is not None
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
    answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended without an answer; stderr has more"}
    if "error" in answer:
        raise BackendError(answer["error"])
    return answer


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Be in this environment, which a server that is started meanwhile inherits."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Keep to one core; so does a process that is started meanwhile, for as long as it lives."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
