"""One of the comparer's cases, run on whichever revision's code PYTHONPATH names. A script, started by its path.

It imports nothing of `benchmarks`, whose modules would be that revision's: both revisions are measured by this very
file. Of the revision it needs only what the case names.

    worker.py CODE FILES WAY CASE

Every answer is a line of JSON on stdout. A revision that can't run the case, or whose code isn't what was imported,
answers with an `error`.
"""

import asyncio
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE_NAME = "package"
PICTURE_NAME = "picture.jpg"
BURSTS = (1, 8, 32)
"""Requests of one row that come at once, in turn: each burst is a batch."""
SEGMENTS = 6
"""Equal stretches of work that are counted apart."""

_ROW_SHAPE = (32, 32, 3)
_CLASSES = 10
_BUCKETS = (1, 2, 4, 8, 16, 32)
_DECODED_SIDE = 224
_WARM_CYCLES = 10
_SEGMENT_CYCLES = 3
_STRETCH_S = 0.008
"""A machine's speed changes within tenths of a second; in stretches this short it changes that of both revisions."""
_NO_SWITCH_S = 1000.0
_SETTLE_S = 0.01

Cycle = Callable[[], Awaitable[None]]
Measure = Callable[[Cycle, int], Awaitable[None]]
"""Given a cycle of work and how many units (requests, pictures) it is."""


def main() -> None:
    """Do what the command line says."""
    code, files, way, case = sys.argv[1:]
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        _check_origin(Path(code))
        _run(CASES[case](partial(WAYS[way], answer), Path(files)))
    except Exception as error:  # noqa: BLE001 whatever a revision lacks, the parent tells it
        answer(error=f"{type(error).__name__}: {error}")


async def time_stretches(answer: Callable[..., None], cycle: Cycle, units: int) -> None:
    """Answer each line of stdin, a number of cycles, with the CPU and wall seconds of a unit; 0 cycles: with how many
    cycles make a stretch.
    """
    await _repeat(cycle, _WARM_CYCLES)
    started = time.process_time()
    await _repeat(cycle, _WARM_CYCLES)
    enough = max(1, round(_STRETCH_S * _WARM_CYCLES / (time.process_time() - started)))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        cycles = int(line)
        if not cycles:
            answer(cycles=enough)
            continue
        cpu, wall = time.process_time(), time.perf_counter()
        await _repeat(cycle, cycles)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        answer(cpu=cpu / (cycles * units), wall=wall / (cycles * units))


async def mark_for_callgrind(answer: Callable[..., None], cycle: Cycle, units: int) -> None:
    """Call `os.getpgid` between equal stretches of work; answer with the units of each.

    callgrind, told to, writes its counts at each such call: the instructions of all threads since the one before.
    """
    async for _ in _segments(cycle):
        os.getpgid(0)
        for _ in range(_SEGMENT_CYCLES):
            await cycle()
    os.getpgid(0)
    answer(units=_SEGMENT_CYCLES * units)


async def measure_memory(answer: Callable[..., None], cycle: Cycle, units: int) -> None:
    """Answer with the most bytes a unit that a cycle holds above what was held before, of Python's and NumPy's memory.

    The median of several cycles.
    """
    tracemalloc.start()
    peaks = []
    async for _ in _segments(cycle):
        # The batcher's thread lets go of the last batch meanwhile.
        await asyncio.sleep(_SETTLE_S)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        await cycle()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    answer(bytes=sorted(peaks)[len(peaks) // 2] / units)


WAYS: dict[str, Callable[[Callable[..., None], Cycle, int], Awaitable[None]]] = {
    "time": time_stretches,
    "callgrind": mark_for_callgrind,
    "memory": measure_memory,
}


async def _segments(cycle: Cycle) -> AsyncIterator[int]:
    """Warm up, then yield for each segment, as little left to chance as can be."""
    # Else a thread that waits for the interpreter wakes by the clock, and how often depends on the machine's load.
    sys.setswitchinterval(_NO_SWITCH_S)
    await _repeat(cycle, _WARM_CYCLES)
    gc.collect()
    gc.disable()
    for number in range(SEGMENTS):
        yield number


def _new_batcher(infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Any:
    batcher_class = _of_revision("fuseline.serve.batching.batcher", "serve.batcher").Batcher
    try:
        policy_class = import_module("fuseline.serve.batching.policy").BatchPolicy
    except ImportError:
        # Revisions before it was there.
        return batcher_class(infer, row_shape=_ROW_SHAPE, buckets=_BUCKETS, max_queue_rows=1024)
    return batcher_class(infer, policy_class(_BUCKETS, max_queue_rows=1024), row_shape=_ROW_SHAPE)


async def with_batcher(measure: Measure, _: Path) -> None:
    """Requests of one row through a batcher whose backend takes no time."""

    def infer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels.reshape(len(pixels), -1)[:, :_CLASSES].astype(np.float32)

    batcher = _new_batcher(infer)
    rows = np.random.default_rng(0).integers(0, 256, (max(BURSTS), *_ROW_SHAPE), dtype=np.uint8)

    async def cycle() -> None:
        for burst in BURSTS:
            answers = await asyncio.gather(*[batcher.submit([row]) for row in rows[:burst]])
            last = answers[-1].logits[0]
            if last[0] != rows[burst - 1, 0, 0, 0]:
                raise RuntimeError(f"the batcher answered the last of {burst} rows with {last}")

    try:
        await measure(cycle, sum(BURSTS))
    finally:
        await batcher.drain()


async def with_service(measure: Measure, files: Path) -> None:
    """The whole path of a unary request but gRPC's own: from serialised request to serialised response."""
    import grpc

    endpoint = _Endpoint()
    grpc.aio.server = lambda *_, **__: endpoint  # type: ignore[assignment]
    messages = _of_revision("fuseline.protos.classify_pb2", "protos.classify_pb2")
    server_class = _of_revision("fuseline.serve.server", "serve.server").Server
    settings_class = _of_revision("fuseline.serve.settings", "serve.settings").Settings
    # Revisions before `for_packages` take the folders themselves.
    for_packages = getattr(server_class, "for_packages", server_class)
    server = for_packages([files / PACKAGE_NAME], settings_class(port=0, http_port=0, backend="onnxruntime", threads=1))
    await server.start()
    classify = endpoint.handlers["/fuseline.v1.Classifier/Classify"]
    with np.load(files / PACKAGE_NAME / "reference.npz") as reference:
        pixels = next(reference[name] for name in reference.files if reference[name].dtype == np.uint8)
    requests = [
        messages.ClassifyRequest(images=[messages.Image(raw=row.tobytes())]).SerializeToString() for row in pixels
    ]
    context = _Context()

    async def ask(request: bytes) -> bytes:
        message = classify.request_deserializer(request) if classify.request_deserializer else request
        response = await classify.unary_unary(message, context)
        serialised: bytes = classify.response_serializer(response) if classify.response_serializer else response
        return serialised

    async def cycle() -> None:
        for burst in BURSTS:
            answers = await asyncio.gather(*[ask(requests[number % len(requests)]) for number in range(burst)])
            if len(messages.ClassifyResponse.FromString(answers[-1]).results) != 1:
                raise RuntimeError(f"the service answered one picture with {answers[-1]!r}")

    try:
        await measure(cycle, sum(BURSTS))
    finally:
        await server.drain()


async def with_decoder(measure: Measure, files: Path) -> None:
    """JPEGs decoded, resized and cropped."""
    decode_image = _of_revision("fuseline.serve.images", "serve.images").decode_image

    data = (files / PICTURE_NAME).read_bytes()

    async def cycle() -> None:
        pixels = decode_image(data, height=_DECODED_SIDE, width=_DECODED_SIDE, resize_shorter_side=256)
        if pixels.shape != (_DECODED_SIDE, _DECODED_SIDE, 3):
            raise RuntimeError(f"decoding gave pixels of shape {pixels.shape}")

    await measure(cycle, 1)


CASES: dict[str, Callable[[Measure, Path], Awaitable[None]]] = {
    "batcher": with_batcher,
    "decode": with_decoder,
    "service": with_service,
}


class _Endpoint:
    """Takes a gRPC server's place and keeps what it is given to serve."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The handlers come by `add_registered_method_handlers` too."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}

    def add_insecure_port(self, _: str) -> int:
        return 1

    async def start(self) -> None:
        """Nothing listens."""

    async def wait_for_termination(self, timeout_s: float) -> bool:
        """It serves on, which is all that is told after each timeout."""
        await asyncio.sleep(timeout_s)
        return True

    async def stop(self, _: float | None) -> None:
        """Nothing listened."""


class _Context:
    """A call without a deadline, from this machine, with the metadata that every gRPC client sends."""

    _metadata = (("user-agent", "grpc-python/1.85.1 grpc-c/53.0.0 (linux; chttp2)"),)

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def set_trailing_metadata(self, _: Any) -> None:
        """Nobody reads it."""

    async def abort(self, code: Any, details: str = "", *_: Any) -> None:
        raise RuntimeError(f"the service refused the request: {code} {details}")


async def _repeat(cycle: Cycle, times: int) -> None:
    for _ in range(times):
        await cycle()


def _run(work: Awaitable[None]) -> None:
    import uvloop

    async def run() -> None:
        await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _of_revision(*names: str) -> Any:
    """The first of these modules that the revision has: its modules have had other names before."""
    for name in names[:-1]:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            # What the module itself lacks is another fault than its being elsewhere.
            if error.name is None or not name.startswith(error.name):
                raise
    return import_module(names[-1])


def _check_origin(code: Path) -> None:
    """Raise `ImportError` unless `serve` and `protos` are those in `code`."""
    for name in ("serve", "protos"):
        package = _of_revision(f"fuseline.{name}", name)
        folders = [Path(folder).resolve() for folder in package.__path__]
        if folders != [(code / name).resolve()]:
            raise ImportError(f"{name} is imported from {folders}, expected {code / name}")


if __name__ == "__main__":
    main()
