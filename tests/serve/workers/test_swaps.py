"""Models that come and go while `fuseline serve --workers 2` is under load: real processes on the loopback."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import (
    LogSettingsRequest,
    ModelReadyRequest,
    ModelStatisticsRequest,
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
    ServerLiveRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import encoded, noise
from tests.serve.model_control.repositories import content_of, put, take_away
from tests.serve.processes import (
    FAST,
    ServerProcess,
    children_of,
    free_port,
    metric,
    one_of,
    own_channel,
    server_process,
    until,
)
from tests.serve.services.open_inference_requests import infer_request, logits_of

PIXELS = noise(2)
PICTURE = encoded(noise(1)[0])
CONNECTIONS = 6
"""Connections, which the kernel spreads over two workers."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with version 1 of colours, and of shapes."""
    for name in ("colours", "shapes"):
        put(tmp_path / "models", name, 1)
    return tmp_path / "models"


EXPLICIT = ("explicit", "--load-model", "colours")
POLL = ("poll", "--repository-poll-secs", 0.2)


@contextmanager
def serving(root: Path, *mode: object) -> Iterator[ServerProcess]:
    """A server of two workers; by default it loads by request, and has loaded colours."""
    repository = ("--model-repository", root, "--model-control-mode", *(mode or EXPLICIT))
    with server_process(*FAST, "--max-batch", 4, "--workers", 2, "--http-port", free_port(), *repository) as server:
        yield server


class Clients:
    """Connections to all workers, and what their requests were answered."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self.stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        self._classifiers = [ClassifierStub(channel) for channel in channels]
        self._stop = asyncio.Event()
        self.answers = 0

    async def versions(self, name: str = "colours") -> set[int]:
        """The versions that answer a request on each connection now."""
        return set(await asyncio.gather(*(self._infer(stub, name) for stub in self.stubs)))

    async def load(self, name: str) -> None:
        await self.stubs[0].RepositoryModelLoad(RepositoryModelLoadRequest(model_name=name), timeout=60)

    async def unload(self, name: str) -> None:
        await self.stubs[0].RepositoryModelUnload(RepositoryModelUnloadRequest(model_name=name), timeout=60)

    async def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        """State and reason of each version, which all workers must agree on."""
        answers = await asyncio.gather(*(stub.RepositoryIndex(RepositoryIndexRequest()) for stub in self.stubs))
        assert all(answer == answers[0] for answer in answers)
        return {(line.name, line.version): (line.state, line.reason) for line in answers[0].models}

    async def call_for_ever(self, number: int) -> None:
        """Call on one connection, one request after the other, and check that versions never go back to older ones."""
        latest = 0
        while not self._stop.is_set():
            if number % 3 == 2:
                version = await self._classify(self._classifiers[number])
            else:
                version = await self._infer(self.stubs[number], "colours")
            assert version >= latest
            latest = version
            self.answers += 1

    async def stream_for_ever(self) -> None:
        """The same in one stream, with several requests under way."""
        call = self._classifiers[0].ClassifyStream()
        under_way = asyncio.Semaphore(4)

        async def write() -> None:
            while not self._stop.is_set():
                await under_way.acquire()
                await call.write(ClassifyRequest(images=[Image(encoded=PICTURE)], model="colours", return_logits=True))
            await call.done_writing()

        writing = asyncio.create_task(write())
        async for answer in call:
            under_way.release()
            assert not answer.error.code, answer
            content_of(np.frombuffer(answer.results[0].logits, "<f4")[np.newaxis], noise(1))
            self.answers += 1
        await writing

    def stop(self) -> None:
        self._stop.set()

    async def _infer(self, stub: GRPCInferenceServiceStub, name: str) -> int:
        answer = await stub.ModelInfer(infer_request(PIXELS, model_name=name), timeout=30)
        version = content_of(logits_of(answer), PIXELS)
        assert answer.model_version == str(version)
        return version

    async def _classify(self, stub: ClassifierStub) -> int:
        request = ClassifyRequest(images=[Image(encoded=PICTURE)], model="colours", return_logits=True)
        answer = await stub.Classify(request, timeout=30)
        return content_of(np.frombuffer(answer.results[0].logits, "<f4")[np.newaxis], noise(1))


@asynccontextmanager
async def clients_of(server: ServerProcess) -> AsyncIterator[Clients]:
    channels = [own_channel(server) for _ in range(CONNECTIONS)]
    try:
        yield Clients(channels)
    finally:
        for channel in channels:
            await channel.close()


@asynccontextmanager
async def load_on(clients: Clients) -> AsyncIterator[None]:
    """Keep requests under way on every connection meanwhile; fail if one of them fails."""
    calling = [asyncio.create_task(clients.call_for_ever(number)) for number in range(CONNECTIONS)]
    calling.append(asyncio.create_task(clients.stream_for_ever()))
    try:
        yield
    finally:
        clients.stop()
        await asyncio.gather(*calling)
    assert clients.answers > 2 * CONNECTIONS


def damage(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"no graph")


async def test_models_come_and_go_in_all_workers_without_a_failed_request(root: Path) -> None:
    with serving(root) as server:
        async with clients_of(server) as clients:
            async with load_on(clients):
                assert await clients.versions() == {1}
                put(root, "colours", 2)
                await clients.load("colours")
                assert await clients.versions() == {2}
                damage(put(root, "colours", 3))
                with pytest.raises(grpc.aio.AioRpcError, match=r"version 2 is served still: .*sha256") as refused:
                    await clients.load("colours")
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert await clients.versions() == {2}
                index = await clients.index()
                assert index["colours", "2"] == ("READY", "")
                assert index["colours", "3"][0] == "UNAVAILABLE"
                assert "sha256" in index["colours", "3"][1]
                await clients.load("shapes")
                assert await clients.versions("shapes") == {1}
            statistics = await clients.stubs[1].ModelStatistics(ModelStatisticsRequest())
            counted = {(its.name, its.version): its.inference_stats.success.count for its in statistics.model_stats}
            assert counted["shapes", "1"] == CONNECTIONS
            assert counted["colours", "2"] > 2 * CONNECTIONS
            answered = 'fuseline_requests_total{{code="OK",method="ModelInfer",model="{}",version="{}"}}'
            assert metric(server, answered.format("shapes", 1)) == CONNECTIONS
            for version in (1, 2):
                assert metric(server, answered.format("colours", version)) >= CONNECTIONS
                assert metric(server, f'fuseline_batch_rows_count{{model="colours",version="{version}"}}') > 0
            await clients.unload("shapes")
            for stub in clients.stubs:
                assert not (await stub.ModelReady(ModelReadyRequest(name="shapes"))).ready
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await stub.ModelInfer(infer_request(PIXELS, model_name="shapes"))
                assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError, match="has no model 'nothing'") as unknown:
                await clients.load("nothing")
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            for version in (2, 3):
                take_away(root / "colours" / str(version))
            await clients.load("colours")
            assert await clients.versions() == {1}
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr


@pytest.mark.slow
async def test_workers_follow_a_repository_that_is_looked_at(root: Path) -> None:
    with serving(root, *POLL) as server:
        async with clients_of(server) as clients, load_on(clients):
            assert await clients.versions("shapes") == {1}
            put(root, "shapes", 2)
            put(root, "colours", 2)
            async with asyncio.timeout(60):
                for name in ("shapes", "colours"):
                    while await clients.versions(name) != {2}:
                        pass


@pytest.mark.slow
async def test_a_backend_that_is_killed_comes_back_with_what_was_loaded_by_request_as_it_is_now(root: Path) -> None:
    put(root, "signs", 1)
    with serving(root) as server:
        async with clients_of(server) as clients:
            await clients.load("shapes")
            await clients.load("signs")
            await clients.unload("colours")
            # What happens on disk meanwhile is seen then; a broken package is no reason not to come back.
            put(root, "shapes", 2)
            damage(root / "signs" / "1")
            os.kill(one_of(server, "backend"), signal.SIGKILL)

            async def versions() -> set[int]:
                while True:
                    try:
                        return await clients.versions("shapes")
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
                        await asyncio.sleep(0.05)

            assert await versions() == {2}
            index = await clients.index()
            assert index["shapes", "2"][0] == "READY"
            assert index["signs", "1"][0] == "UNAVAILABLE"
            assert ("colours", "1") not in index
            put(root, "signs", 1)
            await clients.load("signs")
            assert await clients.versions("signs") == {1}
            assert metric(server, 'fuseline_process_restarts_total{process="worker"}') == 0
            assert metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1


@pytest.mark.slow
async def test_a_load_during_which_the_backend_dies_is_unavailable_and_can_be_repeated(root: Path) -> None:
    with serving(root) as server:
        async with clients_of(server) as clients:
            package = put(root, "colours", 2)
            (package / "model.onnx").unlink()
            os.mkfifo(package / "model.onnx")
            loading = asyncio.create_task(clients.load("colours"))
            # Opening returns once the backend reads the graph, which then never comes.
            with await asyncio.to_thread((package / "model.onnx").open, "wb"):
                os.kill(one_of(server, "backend"), signal.SIGKILL)
                with pytest.raises(grpc.aio.AioRpcError, match="has ended and is being started again") as lost:
                    await loading
            assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
            take_away(package)
            labels = 'backend="onnxruntime",device="CPU",model="colours",precision="fp32",version="1"'
            await until(lambda: metric(server, f"fuseline_model_info{{{labels}}}") == 1)
            put(root, "colours", 2)
            await clients.load("colours")
            assert await clients.versions() == {2}


@asynccontextmanager
async def answering(server: ServerProcess) -> AsyncIterator[GRPCInferenceServiceStub]:
    """A connection to a worker that is not stopped."""
    async with AsyncExitStack() as stack:
        while True:
            stub = GRPCInferenceServiceStub(await stack.enter_async_context(own_channel(server)))
            with suppress(grpc.aio.AioRpcError):
                await stub.ServerLive(ServerLiveRequest(), timeout=1)
                yield stub
                return


@pytest.mark.slow
async def test_a_change_waits_for_a_worker_that_is_stopped_until_it_goes_on_or_ends(root: Path) -> None:
    with serving(root) as server:
        for version, then in ((2, signal.SIGCONT), (3, signal.SIGKILL)):
            put(root, "colours", version)
            worker = one_of(server, "worker")
            os.kill(worker, signal.SIGSTOP)
            async with answering(server) as stub:
                request = RepositoryModelLoadRequest(model_name="colours")
                loading = asyncio.ensure_future(stub.RepositoryModelLoad(request, timeout=60))
                while (await stub.ModelInfer(infer_request(PIXELS))).model_version != str(version):
                    assert not loading.done()
                assert not loading.done()
                os.kill(worker, then)
                await loading
            await until(lambda: list(children_of(server).values()).count("worker") == 2)
            async with clients_of(server) as clients:
                assert await clients.versions() == {version}


def files_of(server: ServerProcess) -> dict[str, int]:
    """The most open files of a process of each kind."""
    counts: dict[str, int] = {}
    for pid, kind in children_of(server).items():
        counts[kind] = max(counts.get(kind, 0), len(list((Path("/proc") / str(pid) / "fd").iterdir())))
    return counts


def shared_bytes_of(server: ServerProcess) -> int:
    """The memory that workers share with the backend, mapped by both."""
    total = 0
    for pid in children_of(server):
        status = (Path("/proc") / str(pid) / "status").read_text()
        total += 1024 * int(status.partition("RssShmem:")[2].split()[0])
    return total


@pytest.mark.slow
async def test_a_hundred_swaps_under_load_leave_files_and_shared_memory_as_they_were(root: Path) -> None:
    with serving(root) as server:
        async with clients_of(server) as clients, load_on(clients):
            # Nobody reads the server's stderr before its end, and a pipe holds 64 KiB: the log of so many swaps.
            quiet = LogSettingsRequest.SettingValue(bool_param=False)
            await clients.stubs[0].LogSettings(LogSettingsRequest(settings={"log_info": quiet}))
            files, shared = {}, 0
            for version in range(2, 102):
                put(root, "colours", version)
                await clients.load("colours")
                take_away(root / "colours" / str(version - 1))
                assert await clients.versions() == {version}
                if version == 11:
                    files, shared = files_of(server), shared_bytes_of(server)
            for kind, count in files_of(server).items():
                assert count <= files[kind] + 3
            assert shared_bytes_of(server) <= 1.05 * shared + 2**20
