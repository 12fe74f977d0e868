"""`python -m fuseline.benchmarks.headline.plain_server PACKAGE`: the least that a gRPC server in Python does.

It is what a team writes for itself: grpc.aio, the same backend in as many lanes, a list of what waits. It checks
nothing, admits everything, knows neither deadlines nor statistics, and takes one raw image a request. What it serves
bounds what any server on grpc.aio can, and Fuseline, which does all of that, is held against it.
"""

import argparse
import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.grpc_process import serve_until_sigterm
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.protos.classify_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Infer
from fuseline.serve.batching.policy import DEFAULT_CPU_BATCHING
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import Manifest, load_package
from fuseline.serve.process.event_loop import run_event_loop
from fuseline.serve.process.memory import keep_freed_memory

_MAX_LANES = 4

_Waiting = deque[tuple[NDArray[Any], "asyncio.Future[NDArray[np.float32]]"]]


class _PlainService(ClassifierServicer):
    def __init__(self, lanes: tuple[Infer, ...], manifest: Manifest, max_rows: int) -> None:
        self._idle = list(lanes)
        self._pixel_shape = manifest.input.pixel_shape
        self._to_rows = row_maker(manifest)
        self._max_rows = max_rows
        self._threads = ThreadPoolExecutor(len(lanes))
        self._waiting: _Waiting = deque()

    async def Classify(self, request: ClassifyRequest, _: Any) -> ClassifyResponse:  # noqa: N802
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[NDArray[np.float32]] = loop.create_future()
        pixels = np.frombuffer(request.images[0].raw, np.uint8).reshape(1, *self._pixel_shape)
        self._waiting.append((self._to_rows(pixels)[0], answer))
        loop.call_soon(self._start)
        logits = await answer
        response = ClassifyResponse()
        result = response.results.add()
        exponentials = np.exp(logits - logits.max())
        best = int(logits.argmax())
        result.predictions.add(index=best, probability=float(exponentials[best] / exponentials.sum()))
        if request.return_logits:
            result.logits = logits.tobytes()
        return response

    def _start(self) -> None:
        """Give idle lanes what waits, spread evenly."""
        while self._idle and self._waiting:
            share = -(-len(self._waiting) // len(self._idle))
            batch = [self._waiting.popleft() for _ in range(min(share, self._max_rows))]
            lane = self._idle.pop()
            call = asyncio.get_running_loop().run_in_executor(self._threads, lane, np.stack([row for row, _ in batch]))
            call.add_done_callback(lambda done, lane=lane, batch=batch: self._answer(done, lane, batch))

    def _answer(self, done: "asyncio.Future[NDArray[np.float32]]", lane: Infer, batch: Any) -> None:
        self._idle.append(lane)
        self._start()
        for logits, (_, answer) in zip(done.result(), batch, strict=True):
            if not answer.cancelled():
                answer.set_result(logits)


def lane_count() -> int:
    """Return how many lanes a backend has without Fuseline's batcher: one for each core, up to 4."""
    return min(_MAX_LANES, usable_cores())


async def _serve(arguments: argparse.Namespace) -> None:
    package = load_package(arguments.package)
    spec = package.manifest.input
    count = lane_count()
    # Batches as large as Fuseline's own lanes have.
    buckets = DEFAULT_CPU_BATCHING.lane_buckets(spec.height * spec.width, usable_cores() / count)
    backend, _ = open_backend(
        package,
        buckets=buckets,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    lanes = backend.open_lanes(count) if count > 1 else (backend.infer,)
    for rows in buckets:
        for lane in lanes:
            lane(np.zeros((rows, *spec.row_shape), spec.row_dtype))
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service = _PlainService(lanes, package.manifest, buckets[-1])
    add_ClassifierServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    keep_freed_memory()
    await serve_until_sigterm(server, f"{arguments.host}:{arguments.port}")
    backend.close()


def main() -> None:
    """Serve until SIGTERM; flags are those of `fuseline serve`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    for flag, default in (("--host", "127.0.0.1"), ("--backend", "auto"), ("--precision", "auto")):
        parser.add_argument(flag, default=default)
    for flag in ("--port", "--http-port", "--threads"):
        parser.add_argument(flag, type=int, default=0)
    run_event_loop(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
