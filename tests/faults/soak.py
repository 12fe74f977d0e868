"""`python -m tests.faults.soak --minutes 30`: a mixed load on a real server, whose memory and descriptors stay flat.

Unary calls, streams and REST, raw pixels and pictures, statistics and metrics; now and then a client is killed in the
middle of its streams. Flags after `--` are the server's. It prints a line every ten seconds and a summary, and exits
with 1 when a bound is broken: a request that was lost or answered wrongly, memory or descriptors that grew.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ModelStatisticsRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import Client
from fuseline.serve.errors import FuselineError
from tests.fakes.colours import LABELS, encoded, expected_logits, plain, write_colours_package
from tests.faults.load import is_right
from tests.faults.process_figures import Figures, figures_of
from tests.serve.processes import FAST, ROOT, ServerProcess, free_port, get, own_channel, server_process
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request, logits_of

FLAT_SHARE = 1.05
"""Largest share that memory may grow to between the first measure and the last."""
MORE_FILES = 8
"""Descriptors that connections which come and go may add at any time."""
STREAMED = 50
"""Requests of one stream."""
SAMPLE_S = 1.0

_PICTURES = {label: encoded(plain(label, 24, 20)) for label in LABELS}


@dataclass
class Tally:
    """What became of the requests of each kind, and what the server held meanwhile."""

    answered: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[tuple[int, Figures]] = field(default_factory=list)
    """Figures of the server, each with the number of requests that were answered by then."""
    killed: int = 0

    @property
    def total(self) -> int:
        return self.answered.total()

    def broken_bounds(self, first: int) -> list[str]:
        """Say which bounds are broken, memory and descriptors being measured from the request numbered `first` on."""
        broken = list(self.wrong[:5])
        if lost := self.sent.total() - self.answered.total() - self.refused.total():
            broken.append(f"{lost} requests had no end")
        if unexpected := set(self.refused) - {"RESOURCE_EXHAUSTED"}:
            broken.append(f"refused as {unexpected}: {dict(self.refused)}")
        early, late = self.ends(first)
        if late.resident_bytes > FLAT_SHARE * early.resident_bytes:
            broken.append(f"memory grew from {early} to {late}")
        if late.files > early.files + MORE_FILES:
            broken.append(f"descriptors grew from {early} to {late}")
        return broken

    def ends(self, first: int) -> tuple[Figures, Figures]:
        """The least that was held in the first and in the last quarter of the time from request `first` on.

        A burst leaves freed memory behind, which the server keeps for the next one; what is never given back is in the
        least, too.
        """
        later = [figures for number, figures in self.samples if number >= first]
        count = max(1, len(later) // 4)
        return _least(later[:count]), _least(later[-count:])

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))
        return f"{self.total} answered ({kinds}), refused {dict(self.refused)}, {self.killed} clients killed"


def _least(figures: Sequence[Figures]) -> Figures:
    return Figures(*(min(getattr(its, name) for its in figures) for name in Figures.__dataclass_fields__))


class Callers:
    """Makes requests of every kind, and checks each answer."""

    def __init__(self, server: ServerProcess, tally: Tally) -> None:
        self._server = server
        self._tally = tally
        self._logits = expected_logits(np.stack([plain(label) for label in LABELS]))

    async def unary(self, stub: ClassifierStub, number: int) -> None:
        label = LABELS[number % 4]
        image = Image(encoded=_PICTURES[label]) if number % 3 else Image(raw=plain(label).tobytes())
        with self._counted("unary"):
            answer = await stub.Classify(ClassifyRequest(images=[image] * (1 + number % 5), top_k=1), timeout=60)
            self._answered("unary", right=is_right(answer, label))

    async def tensor(self, stub: GRPCInferenceServiceStub, number: int) -> None:
        with self._counted("tensor"):
            answer = await stub.ModelInfer(infer_request(plain(LABELS[number % 4])[None]), timeout=60)
            self._answered("tensor", right=np.allclose(logits_of(answer)[0], self._logits[number % 4], atol=1e-4))

    async def stream(self, stub: ClassifierStub, _: int) -> None:
        """Requests of one stream, of which a client that is refused sends no more."""
        call = stub.ClassifyStream(timeout=120)

        async def send() -> None:
            for number in range(STREAMED):
                self._tally.sent["streamed"] += 1
                await call.write(raw_request(plain(LABELS[number % 4])[None], top_k=1, id=str(number)))
            await call.done_writing()

        sending = asyncio.create_task(send())
        async for answer in call:
            if answer.HasField("error"):
                self._tally.refused[grpc.StatusCode.RESOURCE_EXHAUSTED.name] += 1
            else:
                self._answered("streamed", right=is_right(answer, LABELS[int(answer.id) % 4]))
        await sending

    async def rest(self, client: Client, number: int) -> None:
        label = LABELS[number % 4]
        with self._counted("REST"):
            answer = await asyncio.to_thread(client.classify, [_PICTURES[label]], top_k=1)
            self._answered("REST", right=answer.results[0].predictions[0].label == label)

    async def look(self, stub: GRPCInferenceServiceStub) -> None:
        """Ask for what monitoring asks for."""
        await stub.ModelStatistics(ModelStatisticsRequest(), timeout=60)
        await asyncio.to_thread(get, str(self._server.http_address), "/metrics")

    def _counted(self, kind: str) -> "_Counted":
        return _Counted(self._tally, kind)

    def _answered(self, kind: str, *, right: bool) -> None:
        self._tally.answered[kind] += 1
        if not right:
            self._tally.wrong.append(f"a {kind} request was answered wrongly")


class _Counted:
    """Counts a request as sent, and as refused where it ends by an error of the server."""

    def __init__(self, tally: Tally, kind: str) -> None:
        self._tally = tally
        self._kind = kind

    def __enter__(self) -> None:
        self._tally.sent[self._kind] += 1

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, grpc.aio.AioRpcError):
            self._tally.refused[error.code().name] += 1
        elif isinstance(error, FuselineError):
            overloaded = type(error).__name__ == "OverloadedError"
            self._tally.refused["RESOURCE_EXHAUSTED" if overloaded else type(error).__name__] += 1
        else:
            return False
        return True


@asynccontextmanager
async def soaking(server: ServerProcess, *, kill_every_s: float | None) -> AsyncIterator[Tally]:
    """Load `server` in every way while the context lasts; at its end no request is under way any more.

    A client is killed every `kill_every_s`; None: none is.
    """
    tally, stop = Tally(), asyncio.Event()
    callers = Callers(server, tally)
    channels = [own_channel(server) for _ in range(6)]
    classify = [ClassifierStub(channel) for channel in channels]
    infer = GRPCInferenceServiceStub(channels[-1])

    async def again(call: Callable[[int], Awaitable[None]], pause_s: float = 0.0) -> None:
        number = 0
        while not stop.is_set():
            await call(number)
            number += 1
            await asyncio.sleep(pause_s)

    async def kill(number: int) -> None:
        command = [sys.executable, "-m", "tests.faults.dying_client", server.address, str(server.http_address)]
        never = ["--never-read"] if number % 2 else []
        process = await asyncio.create_subprocess_exec(*command, *never, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            await asyncio.sleep(min(4.0, kill_every_s or 0.0))
        finally:
            process.kill()
            await process.communicate()
        tally.killed += 1

    async def sample(_: int) -> None:
        tally.samples.append((tally.total, await asyncio.to_thread(figures_of, server.process.pid)))

    with Client(f"http://{server.http_address}") as client:
        tasks = [
            *(again(lambda number, stub=stub: callers.unary(stub, number)) for stub in classify[:3]),
            *(again(lambda number, stub=stub: callers.stream(stub, number)) for stub in classify[3:5]),
            again(lambda number: callers.tensor(infer, number)),
            again(lambda number: callers.rest(client, number)),
            again(lambda _: callers.look(infer), 2.0),
            again(sample, SAMPLE_S),
        ]
        if kill_every_s is not None:
            tasks.append(again(kill, kill_every_s))
        running = [asyncio.ensure_future(task) for task in tasks]
        try:
            yield tally
        finally:
            stop.set()
            await asyncio.gather(*running)
            for channel in channels:
                await channel.close()


async def _soak(package: Path, minutes: float, flags: Sequence[str]) -> int:
    with server_process(package, *FAST, *flags, "--http-port", free_port()) as server:
        begun = time.monotonic()
        ends = begun + 60 * minutes
        # As a server that has run for a tenth of the time, with a client or two killed, has met all there is.
        first = 0
        async with soaking(server, kill_every_s=min(20.0, 6 * minutes)) as tally:
            while time.monotonic() < ends:
                await asyncio.sleep(min(10.0, max(0.1, ends - time.monotonic())))
                if not first and time.monotonic() > begun + 15 * minutes:
                    first = tally.total
                print(f"{time.monotonic() - begun:6.0f} s: {tally.samples[-1][1]}; {tally}", flush=True)
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end, 60)
    broken = tally.broken_bounds(first)
    if code:
        broken.append(f"the server ended with {code}: {stderr[-2000:]}")
    early, late = tally.ends(first)
    print(f"{tally}\nfrom {early}\nto   {late}, {100 * (late.resident_bytes / early.resident_bytes - 1):+.1f} % memory")
    for bound in broken:
        print(f"broken: {bound}")
    return 1 if broken else 0


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("flags", nargs="*", help="flags of `fuseline serve`, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuseline-soak-") as folder:
        package = write_colours_package(Path(folder) / "colours")
        sys.exit(asyncio.run(_soak(package, arguments.minutes, arguments.flags)))


if __name__ == "__main__":
    main()
