"""`fuseline serve --workers 2`: real processes on the loopback."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import (
    ModelInferRequest,
    ModelStatisticsRequest,
    ServerReadyRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryUnregisterRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import Client
from fuseline.serve.grpc_options import SHORTEST_PING_INTERVAL_MS
from tests.fakes.colours import encoded, expected_logits, noise, plain
from tests.serve.http2_pings import pinging_connection
from tests.serve.processes import (
    FAST,
    ROOT,
    ServerProcess,
    check_drain_under_load,
    children_of,
    finished,
    free_port,
    get,
    lives,
    metric,
    one_of,
    own_channel,
    server_process,
    until,
)
from tests.serve.services.classify_requests import raw_request
from tests.serve.shared_memory.objects import shared_object

WORKERS = ("--workers", 2)


def request(seed: int, rows: int = 1, top_k: int = 2) -> ClassifyRequest:
    return raw_request(noise(rows, seed), top_k=top_k, return_logits=True, id=str(seed))


async def connections(stack: AsyncExitStack, server: ServerProcess, count: int) -> list[ClassifierStub]:
    """Each is a connection of its own, which the kernel gives to any of the workers."""
    return [ClassifierStub(await stack.enter_async_context(own_channel(server))) for _ in range(count)]


@pytest.fixture(scope="module")
def servers(package: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """One process, and a front end of two. Larger batches round differently, so theirs are of one image."""
    with ExitStack() as stack:
        one = stack.enter_context(server_process(package, *FAST, "--max-batch", 1))
        two = stack.enter_context(
            server_process(package, *FAST, "--max-batch", 1, *WORKERS, "--http-port", free_port())
        )
        yield one, two


def test_workers_answer_the_pings_of_idle_clients(servers: tuple[ServerProcess, ServerProcess]) -> None:
    with pinging_connection(servers[1].address) as connection:
        for _ in range(6):
            connection.ping()
            time.sleep(1.2 * SHORTEST_PING_INTERVAL_MS / 1000)


async def answers_of(server: ServerProcess) -> list[ClassifyResponse]:
    jpeg = encoded(np.kron(noise(1, 5)[0], np.ones((9, 9, 1), np.uint8)), "JPEG")
    requests = [request(seed) for seed in range(12)]
    requests += [request(20, rows=40), request(21, rows=3, top_k=4)]
    requests.append(ClassifyRequest(images=[Image(encoded=jpeg), Image(raw=plain("blue").tobytes())], id="jpeg"))
    async with AsyncExitStack() as stack:
        stubs = await connections(stack, server, 6)
        answers = await asyncio.gather(*(stubs[n % 6].Classify(its) for n, its in enumerate(requests)))
        stream = stubs[0].ClassifyStream()
        for its in requests:
            await stream.write(its)
        await stream.done_writing()
        streamed = [answer async for answer in stream]
    answers += sorted(streamed, key=lambda answer: answer.id)
    for answer in answers:
        assert answer.timing.batch_rows
        answer.ClearField("timing")
    return answers


async def test_its_answers_are_those_of_one_process_bit_for_bit(servers: tuple[ServerProcess, ServerProcess]) -> None:
    one, two = await asyncio.gather(*map(answers_of, servers))
    assert len(one) == 30
    assert one == two
    assert sorted(children_of(servers[1]).values()) == ["backend", "worker", "worker"]


async def test_metrics_and_statistics_are_the_sum_over_all_processes(
    servers: tuple[ServerProcess, ServerProcess],
) -> None:
    _, server = servers
    names = [
        'fuseline_requests_total{code="OK",method="Classify",model="colours",version="1"}',
        'fuseline_requests_total{code="INVALID_ARGUMENT",method="Classify",model="colours",version="1"}',
        'fuseline_request_seconds_count{method="Classify",model="colours",version="1"}',
        'fuseline_batch_rows_sum{model="colours",version="1"}',
    ]

    def counts() -> list[float]:
        return [metric(server, name) for name in names]

    before = await asyncio.to_thread(counts)
    async with AsyncExitStack() as stack:
        stubs = await connections(stack, server, 8)
        channel = await stack.enter_async_context(own_channel(server))
        inference = GRPCInferenceServiceStub(channel)
        earlier = (await inference.ModelStatistics(ModelStatisticsRequest(name="colours"))).model_stats[0]
        await asyncio.gather(*(stub.Classify(request(n, rows=2)) for n, stub in enumerate(stubs)))
        for stub in stubs[:3]:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Classify(ClassifyRequest(images=[Image(raw=b"short")]))
        later = (await inference.ModelStatistics(ModelStatisticsRequest(name="colours"))).model_stats[0]
    after = await asyncio.to_thread(counts)
    assert [b - a for a, b in zip(before, after, strict=True)] == [8, 3, 11, 16]
    assert later.inference_stats.success.count - earlier.inference_stats.success.count == 8
    assert later.inference_stats.fail.count - earlier.inference_stats.fail.count == 3
    assert later.inference_count - earlier.inference_count == 16
    text = (await asyncio.to_thread(get, str(server.http_address), "/metrics"))[1]
    assert text.count("fuseline_model_info{") == 1
    assert 'precision="fp32",version="1"} 1.0' in text


async def test_under_load_every_answer_arrives_and_the_rest_is_refused_when_the_signal_comes(package: Path) -> None:
    with server_process(package, *FAST, *WORKERS) as server:
        async with AsyncExitStack() as stack:
            await check_drain_under_load(server, await connections(stack, server, 8), request)


async def test_the_queue_is_one_for_all_workers_and_what_it_holds_is_answered_by_the_drain(package: Path) -> None:
    limits = ("--max-queue-rows", 6, "--max-images-per-request", 6, "--max-delay-ms", 10_000)
    with server_process(package, *FAST, *WORKERS, *limits, "--http-port", free_port()) as server:
        async with AsyncExitStack() as stack:
            stubs = await connections(stack, server, 10)
            waiting = [stub.Classify(request(seed)) for seed, stub in enumerate(stubs[:6])]
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 6)
            for stub in stubs[6:]:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.Classify(request(9), timeout=10)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "6 rows of at most 6 are queued" in str(refused.value.details())
            # What is cancelled makes room for others, whichever worker they come to.
            waiting.pop().cancel()
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 5)
            waiting.append(stubs[9].Classify(request(10)))
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 6)
            server.process.send_signal(signal.SIGTERM)
            assert {(await call).timing.batch_rows for call in waiting} == {6}
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr


async def test_a_killed_worker_loses_its_own_connections_only_and_comes_back(package: Path) -> None:
    with server_process(package, *FAST, *WORKERS, "--http-port", free_port()) as server:
        async with AsyncExitStack() as stack:
            stubs = await connections(stack, server, 12)
            await asyncio.gather(*(stub.Classify(request(seed)) for seed, stub in enumerate(stubs)))
            killed = one_of(server, "worker")
            os.kill(killed, signal.SIGKILL)
            # Connections of the other worker see nothing of it; those of this one are made again, by any that lives.
            answers = await asyncio.gather(
                *(stub.Classify(request(seed), wait_for_ready=True, timeout=20) for seed, stub in enumerate(stubs)),
                return_exceptions=True,
            )
            lost = [answer for answer in answers if isinstance(answer, BaseException)]
            assert all(isinstance(error, grpc.aio.AioRpcError) for error in lost)
            assert {error.code() for error in lost} <= {grpc.StatusCode.UNAVAILABLE}
            await until(lambda: metric(server, 'fuseline_process_restarts_total{process="worker"}') == 1)
            await until(lambda: list(children_of(server).values()).count("worker") == 2)
            again = [stub.Classify(request(1), wait_for_ready=True, timeout=20) for stub in stubs]
            assert len(await asyncio.gather(*again)) == 12
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert f"(process {killed}) was ended by SIGKILL; it is started again" in stderr


async def test_when_the_backend_is_killed_all_that_waits_is_unavailable_at_once_and_it_comes_back(
    package: Path,
) -> None:
    arguments = (*FAST, *WORKERS, "--http-port", free_port(), "--max-batch", 16, "--max-delay-ms", 10_000)
    with server_process(package, *arguments) as server:
        async with AsyncExitStack() as stack:
            stubs = await connections(stack, server, 8)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            watch = HealthStub(channel).Watch(HealthCheckRequest(service="fuseline.v1.Classifier"))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            waiting = [stub.Classify(request(seed)) for seed, stub in enumerate(stubs)]
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 8)
            os.kill(one_of(server, "backend"), signal.SIGKILL)
            killed = time.monotonic()
            for call in waiting:
                with pytest.raises(grpc.aio.AioRpcError) as lost:
                    await call
                assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
                assert dict(lost.value.trailing_metadata())["fuseline-error"] == "BackendLostError"
            assert time.monotonic() - killed < 2
            open_inference = GRPCInferenceServiceStub(channel)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            assert not (await open_inference.ServerReady(ServerReadyRequest())).ready
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            assert (await open_inference.ServerReady(ServerReadyRequest())).ready
            assert server.http_address is not None
            await until(lambda: get(str(server.http_address), "/readyz")[0] == 200)
            full = await stubs[0].Classify(request(0, rows=16), wait_for_ready=True, timeout=20)
            assert full.timing.batch_rows == 16
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert re.search(r"backend \(process \d+\) was ended by SIGKILL; it is started again", stderr)
    assert "8 UNAVAILABLE" in stderr


def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(package: Path) -> None:
    """The terminal sends it to a whole process group, also while those that would ignore it still import."""
    with server_process(package, *FAST, *WORKERS) as server:
        groups = {os.getpgid(pid) for pid in children_of(server)}
        assert groups
        assert os.getpgid(server.process.pid) not in groups


async def test_its_processes_end_with_it_even_when_it_is_killed(package: Path, folder: Path) -> None:
    env = os.environ | {"TMPDIR": str(folder)}
    listen = ("--listen", f"unix-abstract:{folder}", "--listen", "127.0.0.1:0")
    with server_process(package, *FAST[2:], *WORKERS, *listen, env=env) as server:
        children = children_of(server)
        assert len(os.listdir(folder)) == 1  # noqa: PTH208
        address = re.search(r"127.0.0.1:\d+", server.announcement)
        assert address is not None
        server.process.kill()
        # Returns when stderr ends, which all its processes have.
        await asyncio.to_thread(server.end)
        await until(lambda: not any(map(lives, children)))
    assert len(children) == 3
    assert os.listdir(folder) == []  # noqa: PTH208
    # The port is free again, to a server that wants it alone.
    with server_process(package, *FAST, "--port", address[0].rpartition(":")[2]):
        pass


@pytest.mark.parametrize(("drain_timeout_s", "signals", "code"), [(0.3, 1, 1), (30, 2, 128 + signal.SIGTERM)])
async def test_a_backend_that_hangs_holds_nobody_up(
    package: Path, drain_timeout_s: float, signals: int, code: int
) -> None:
    with server_process(package, *FAST, *WORKERS, "--drain-timeout-s", drain_timeout_s) as server:
        children = children_of(server)
        os.kill(one_of(server, "backend"), signal.SIGSTOP)
        async with AsyncExitStack() as stack:
            (stub,) = await connections(stack, server, 1)
            call = stub.Classify(request(0))
            watch = HealthStub(grpc.aio.insecure_channel(server.address)).Watch(HealthCheckRequest(service=""))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
            its_code, stderr = await asyncio.to_thread(server.end)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        await until(lambda: not any(map(lives, children)))
    assert its_code == code, stderr
    assert ("given up" in stderr) == (signals == 1)


def test_what_keeps_it_from_starting_is_one_line_and_2(package: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(package, damaged)
    (damaged / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    code, stdout, stderr = finished(damaged, *FAST, *WORKERS)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(r"error: .*model\.onnx.*sha256.*\n", stderr)


def test_when_it_fails_it_leaves_no_process_behind(package: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(package, damaged)
    (damaged / "model.onnx").write_bytes(b"no graph")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fuseline.serve.errors import PackageError\n"
        "from fuseline.serve.settings import settings_from_flags\n"
        "from fuseline.serve.workers.supervisor import run_supervisor\n"
        "try:\n"
        "    run_supervisor([Path(sys.argv[1])], settings_from_flags(port=0, http_port=0, workers=2), print)\n"
        "except PackageError:\n"
        "    try:\n"
        "        print(os.waitpid(-1, os.WNOHANG))\n"
        "    except ChildProcessError:\n"
        "        print('none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, damaged], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("none\n", "")


async def test_its_port_is_refused_to_others_and_a_taken_one_is_refused_to_it(
    servers: tuple[ServerProcess, ServerProcess], package: Path
) -> None:
    one, two = (server.address.rpartition(":")[2] for server in servers)
    cases = [(one, WORKERS), (two, WORKERS), (two, ())]
    attempts = (asyncio.to_thread(finished, package, "--port", port, "--http-port", 0, *more) for port, more in cases)
    for (port, _), (code, stdout, stderr) in zip(cases, await asyncio.gather(*attempts), strict=True):
        assert (code, stdout) == (2, "")
        assert re.fullmatch(rf"error: .*:{port} \(Address already in use\); --port .*\n", stderr)


def test_a_client_is_answered_by_whichever_worker_it_meets(servers: tuple[ServerProcess, ServerProcess]) -> None:
    for _ in range(4):
        with Client(servers[1].address) as client:
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"


async def test_workers_share_a_unix_socket_and_drain_loses_nothing(package: Path, folder: Path) -> None:
    listen = ("--listen", f"unix:{folder}/its.sock")
    with server_process(package, *FAST[2:], *WORKERS, *listen) as server:
        async with AsyncExitStack() as stack:
            stubs = await connections(stack, server, 8)
            await check_drain_under_load(server, stubs, request)
    assert os.listdir(folder) == []  # noqa: PTH208


async def test_a_unix_socket_outlives_its_workers(package: Path, folder: Path) -> None:
    listen = ("--listen", f"unix:{folder}/its.sock")
    with server_process(package, *FAST[2:], *WORKERS, *listen) as server:
        for pid, kind in children_of(server).items():
            if kind == "worker":
                os.kill(pid, signal.SIGKILL)
        async with own_channel(server) as channel:
            answer = await ClassifierStub(channel).Classify(request(1), wait_for_ready=True, timeout=30)
            assert answer.timing.batch_rows == 1
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert os.listdir(folder) == []  # noqa: PTH208


def test_workers_share_several_addresses(package: Path) -> None:
    listen = [part for address in ("127.0.0.1:0", "127.0.0.2:0") for part in ("--listen", address)]
    with server_process(package, *FAST[2:], *WORKERS, *listen) as server:
        addresses = re.search(r"gRPC on (127\.0\.0\.1:\d+) and (127\.0\.0\.2:\d+)$", server.announcement, re.MULTILINE)
        assert addresses is not None
        for address in addresses.groups():
            with Client(address) as client:
                assert client.classify(plain("green")).results[0].predictions[0].label == "green"


def workers_with(server: ServerProcess, path: Path) -> set[int]:
    """The workers that have the object open that is, or was, at `path`."""
    found = set()
    for pid, kind in children_of(server).items():
        for link in (Path("/proc") / str(pid) / "fd").glob("*"):
            with suppress(OSError):
                if kind == "worker" and os.readlink(link).removesuffix(" (deleted)") == str(path):  # noqa: PTH115
                    found.add(pid)
    return found


def infer_in_memory(region: str, shape: tuple[int, ...]) -> ModelInferRequest:
    """Ask for the logits of the pixels at the beginning of `region`, in their place."""
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=shape)
    output = ModelInferRequest.InferRequestedOutputTensor(name="logits")
    for parameters, size in ((tensor.parameters, int(np.prod(shape))), (output.parameters, 16)):
        parameters["shared_memory_region"].string_param = region
        parameters["shared_memory_byte_size"].int64_param = size
    return ModelInferRequest(inputs=[tensor], outputs=[output])


async def test_shared_memory_belongs_to_the_server_not_to_a_worker(
    servers: tuple[ServerProcess, ServerProcess],
) -> None:
    server = servers[1]
    everything = SystemSharedMemoryStatusRequest()
    async with AsyncExitStack() as stack:
        stubs = [GRPCInferenceServiceStub(await stack.enter_async_context(own_channel(server))) for _ in range(12)]
        path = stack.enter_context(shared_object(size=4096))
        key = f"/{path.name}"
        mine = SystemSharedMemoryRegisterRequest(name="mine", key=key, offset=8, byte_size=192)
        memory = stack.enter_context(path.open("r+b", buffering=0))
        attempts = await asyncio.gather(
            *(stub.SystemSharedMemoryRegister(mine) for stub in stubs), return_exceptions=True
        )
        refused = [attempt for attempt in attempts if isinstance(attempt, grpc.aio.AioRpcError)]
        assert [error.code() for error in refused] == [grpc.StatusCode.ALREADY_EXISTS] * 11
        assert len(workers_with(server, path)) == 2
        for stub in stubs:
            regions = (await stub.SystemSharedMemoryStatus(everything)).regions
            assert {name: (its.key, its.offset, its.byte_size) for name, its in regions.items()} == {
                "mine": (key, 8, 192)
            }

        path.unlink()
        killed = min(workers_with(server, path))
        os.kill(killed, signal.SIGKILL)
        await until(lambda: len(workers_with(server, path) - {killed}) == 2)
        # The connections that the dead worker had are made anew, to any. Each worker reads and writes the same memory.
        for seed, stub in enumerate(stubs):
            assert set((await stub.SystemSharedMemoryStatus(everything, wait_for_ready=True)).regions) == {"mine"}
            pixels = noise(1, seed)
            memory.seek(8)
            memory.write(pixels.tobytes())
            await stub.ModelInfer(infer_in_memory("mine", pixels.shape))
            memory.seek(8)
            np.testing.assert_allclose(np.frombuffer(memory.read(16), "<f4"), expected_logits(pixels)[0], atol=1e-5)

        await stubs[0].SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest(name="mine"))
        assert not workers_with(server, path)
        for stub in stubs:
            assert not (await stub.SystemSharedMemoryStatus(everything)).regions


async def test_http_is_answered_by_workers_and_by_the_supervisor_when_they_all_hang(package: Path) -> None:
    with server_process(package, *FAST, *WORKERS, "--http-port", free_port()) as server:
        address = str(server.http_address)
        workers = [pid for pid, kind in children_of(server).items() if kind == "worker"]
        for stopped in ([server.process.pid], workers):
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                assert await asyncio.to_thread(get, address, "/readyz") == (200, "ready\n")
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
        assert metric(server, 'fuseline_process_restarts_total{process="worker"}') == 0


def http_connections_of(pid: int, port: int) -> int:
    """How many connections to the server's `port` the process has open."""
    files = (Path("/proc") / str(pid) / "fd").iterdir()
    sockets = {re.sub(r"\D", "", link) for link in map(os.readlink, files) if link.startswith("socket:")}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "01" and line[9] in sockets for line in lines)


async def test_http_connections_that_come_together_are_spread_over_the_workers(
    servers: tuple[ServerProcess, ServerProcess],
) -> None:
    port = int(str(servers[1].http_address).rpartition(":")[2])
    workers = [pid for pid, kind in children_of(servers[1]).items() if kind == "worker"]
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
    try:
        await until(lambda: sum(http_connections_of(pid, port) for pid in workers) == 32)
        assert min(http_connections_of(pid, port) for pid in workers) >= 8
        assert http_connections_of(servers[1].process.pid, port) == 0
    finally:
        for client in clients:
            client.close()


def test_while_its_workers_start_the_supervisor_answers_http(package: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    shutil.copytree(package, slow)
    (slow / "model.onnx").unlink()
    os.mkfifo(slow / "model.onnx")
    port = free_port()
    command = (sys.executable, "-m", "serve", slow, *FAST, *WORKERS, "--http-port", port)
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE)
    try:
        # Opening returns once the backend reads the model, which then never comes.
        with (slow / "model.onnx").open("wb"):
            assert get(f"127.0.0.1:{port}", "/healthz") == (200, "alive\n")
            assert get(f"127.0.0.1:{port}", "/readyz") == (503, "not ready\n")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0


async def test_while_it_drains_it_is_alive_and_not_ready(package: Path) -> None:
    with server_process(package, *FAST, *WORKERS, "--http-port", free_port()) as server:
        address = str(server.http_address)
        os.kill(one_of(server, "backend"), signal.SIGSTOP)
        async with AsyncExitStack() as stack:
            (stub,) = await connections(stack, server, 1)
            call = stub.Classify(request(0))
            watch = HealthStub(grpc.aio.insecure_channel(server.address)).Watch(HealthCheckRequest(service=""))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            for _ in range(8):
                assert await asyncio.to_thread(get, address, "/healthz") == (200, "alive\n")
                assert await asyncio.to_thread(get, address, "/readyz") == (503, "not ready\n")
            call.cancel()
