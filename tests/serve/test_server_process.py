"""`fuseline serve` as a process: start, ports, signals, what it imports."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client import Client
from fuseline.serve.errors import InputError, UnknownModelError
from fuseline.serve.server import Server
from tests.fakes.colours import encoded, noise, plain, write_colours_package
from tests.serve.conftest import StartServer, settings
from tests.serve.processes import (
    FAST,
    ROOT,
    ServerProcess,
    check_drain_under_load,
    finished,
    free_port,
    get,
    server_process,
)
from tests.serve.services.classify_requests import raw_request


def request(seed: int) -> ClassifyRequest:
    return raw_request(noise(1, seed))


async def until_queued(server: ServerProcess, rows: int) -> None:
    assert server.http_address is not None
    async with asyncio.timeout(30):
        while (
            f'fuseline_queued_rows{{model="colours",version="1"}} {rows}.0'
            not in (await asyncio.to_thread(get, server.http_address, "/metrics"))[1]
        ):
            pass


def test_it_says_what_it_serves_answers_without_torch_and_ends_with_0(package: Path) -> None:
    tell_imports = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write(f'imported: {sorted(sys.modules)}'))\n"
        "sys.argv[0] = 'fuseline'\n"
        "import fuseline.command\n"
        "fuseline.command.main()\n"
    )
    with server_process("serve", package, *FAST, command=("-c", tell_imports)) as server:
        assert re.search(
            r"^colours \(version 1\): onnxruntime on .*, fp32, batches of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32; .+$",
            server.announcement,
            re.MULTILINE,
        )
        with Client(server.address) as client:
            answer = client.classify([encoded(plain("green")), plain("blue")])
        assert [result.predictions[0].label for result in answer.results] == ["green", "blue"]
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0
    imported = re.search(r"imported: (.*)", stderr)
    assert imported is not None
    modules = set(re.findall(r"'([^']+)'", imported[1]))
    unwanted = {"torch", "torchvision", "onnx", "onnxscript", "opentelemetry", "fuseline.export", "fuseline.benchmarks"}
    # Nothing is imported by the name that its folder has in a checkout.
    assert modules & (unwanted | {"export", "serve", "protos", "benchmarks"}) == set()
    assert {"grpc", "fuseline.serve", "uvloop"} <= modules


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_answers_everything_that_waits_then_exits_with_0(package: Path, number: signal.Signals) -> None:
    # The delay keeps an idle backend waiting for a fuller batch, so that the queue is full when the signal comes.
    with server_process(package, *FAST, "--http-port", free_port(), "--max-delay-ms", 10_000) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = ClassifierStub(channel)
            unary = [stub.Classify(request(seed)) for seed in range(5)]
            stream = stub.ClassifyStream()
            for seed in range(3):
                await stream.write(request(seed))
            await until_queued(server, 8)
            watch = HealthStub(channel).Watch(HealthCheckRequest(service="fuseline.v1.Classifier"))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            server.process.send_signal(number)
            assert [(await call).timing.batch_rows for call in unary] == [8] * 5
            assert [(await stream.read()).timing.batch_rows for _ in range(3)] == [8] * 3
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "drained" in stderr


async def test_under_load_every_answer_arrives_and_the_rest_is_refused_when_the_signal_comes(package: Path) -> None:
    with server_process(package, *FAST) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await check_drain_under_load(server, [ClassifierStub(channel)], request)


IN_THREAD = ("-m", "tests.serve.hanging_server", "--in-thread")
ON_LOOP = ("-m", "tests.serve.hanging_server")


@pytest.mark.parametrize("command", [IN_THREAD, ON_LOOP], ids=["in the thread", "on the event loop"])
async def test_when_the_drain_takes_too_long_it_gives_up_with_1(
    package: Path, folder: Path, command: Sequence[str]
) -> None:
    flags = (*FAST, "--drain-timeout-s", 0.2, "--listen", f"unix:{folder}/its.sock")
    with server_process(package, *flags, command=command) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = await hang(channel, server)
            server.process.send_signal(signal.SIGTERM)
            code, stderr = await asyncio.to_thread(server.end)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    assert code == 1
    assert "given up" in stderr
    assert not (folder / "its.sock").exists()


async def test_a_health_watch_that_stays_open_is_no_answer_still_owed(package: Path) -> None:
    with server_process(package, *FAST, "--drain-timeout-s", 1) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=""))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr


@pytest.mark.parametrize(
    ("command", "number"),
    [(IN_THREAD, signal.SIGTERM), (ON_LOOP, signal.SIGTERM), (ON_LOOP, signal.SIGINT)],
    ids=["in the thread", "on the event loop", "Ctrl-C twice"],
)
async def test_a_second_signal_ends_it_at_once(
    package: Path, folder: Path, command: Sequence[str], number: signal.Signals
) -> None:
    with server_process(package, *FAST, "--listen", f"unix:{folder}/its.sock", command=command) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = await hang(channel, server)
            server.process.send_signal(number)
            assert server.process.stderr is not None
            assert f"{number.name}: draining" in await asyncio.to_thread(server.process.stderr.readline)
            server.process.send_signal(number)
            code, _ = await asyncio.to_thread(server.end)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    assert code == 128 + number
    assert not (folder / "its.sock").exists()


async def test_health_is_answered_over_http_while_the_event_loop_hangs(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port(), command=ON_LOOP) as server:
        address = str(server.http_address)
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = await hang(channel, server)
            answers = [await asyncio.to_thread(get, address, path) for path in ("/healthz", "/readyz", "/metrics")]
            call.cancel()
    assert [status for status, _ in answers] == [200, 200, 200]
    assert answers[0][1] == "alive\n"
    assert 'fuseline_model_info{backend="onnxruntime"' in answers[2][1]


async def test_health_turns_not_serving_while_it_drains(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port(), command=IN_THREAD) as server:
        address = str(server.http_address)
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = await hang(channel, server)
            health = HealthStub(channel).Watch(HealthCheckRequest(service=""))
            assert (await health.read()).status == HealthCheckResponse.SERVING
            assert await asyncio.to_thread(get, address, "/readyz") == (200, "ready\n")
            server.process.send_signal(signal.SIGTERM)
            assert (await health.read()).status == HealthCheckResponse.NOT_SERVING
            assert await asyncio.to_thread(get, address, "/readyz") == (503, "not ready\n")
            assert await asyncio.to_thread(get, address, "/healthz") == (200, "alive\n")
            call.cancel()


async def hang(channel: grpc.aio.Channel, server: ServerProcess) -> grpc.aio.UnaryUnaryCall:
    """Give the backend a picture on which it hangs; return, once it does, the call, which ends if it is dropped."""
    white = np.full((8, 8, 3), 255, np.uint8).tobytes()
    call = ClassifierStub(channel).Classify(ClassifyRequest(images=[Image(raw=white)]))
    assert await asyncio.to_thread(server.next_line) == "hanging\n"
    return call


def test_http_tells_metrics_and_health(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        assert server.http_address is not None
        with Client(server.address) as client:
            client.classify(list(noise(5)))
            with pytest.raises(InputError):
                client.classify(plain("red"), top_k=9)
        assert get(server.http_address, "/healthz")[0] == 200
        assert get(server.http_address, "/readyz")[0] == 200
        status, body = get(server.http_address, "/nothing")
        assert status == 404
        assert "/openapi.json lists" in json.loads(body)["error"]
        status, metrics = get(server.http_address, "/metrics")
        assert status == 200
        for code in ("OK", "INVALID_ARGUMENT"):
            labels = f'code="{code}",method="Classify",model="colours",version="1"'
            assert f"fuseline_requests_total{{{labels}}} 1.0" in metrics
        assert 'fuseline_batch_rows_sum{model="colours",version="1"} 5.0' in metrics
        assert 'fuseline_padding_rows_total{model="colours",version="1"} 1.0' in metrics


@pytest.mark.parametrize(
    ("flags", "shown"),
    [((), "127.0.0.1"), (("--host", "0.0.0.0"), None), (("--host", "0.0.0.0", "--console"), "localhost")],
)
def test_it_says_where_its_page_is(package: Path, flags: tuple[str, ...], shown: str | None) -> None:
    port = free_port()
    with server_process(package, *FAST, "--http-port", port, *flags) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        out = server.process.stdout.read()
        server.process.communicate(timeout=60)
        assert out == ("" if shown is None else f"watch it: http://{shown}:{port}/\n")


def test_two_models_are_found_by_name_and_a_nameless_request_is_refused(package: Path, tmp_path: Path) -> None:
    second = write_colours_package(tmp_path / "second", name="second", labels=("a", "b", "c", "d"))
    with server_process(package, second, *FAST) as server, Client(server.address) as client:
        assert client.classify(plain("red"), model="colours").results[0].predictions[0].label == "red"
        assert client.classify(plain("red"), model="second").results[0].predictions[0].label == "a"
        with pytest.raises(InputError, match="colours, second"):
            client.classify(plain("red"))


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--workers", 2), marks=pytest.mark.slow)], ids=["one process", "workers"]
)
def test_a_package_is_served_by_the_name_that_it_is_given(package: Path, flags: tuple[object, ...]) -> None:
    with server_process(package, *FAST, *flags, "--name", "my-service") as server, Client(server.address) as client:
        assert client.classify(plain("red")).model == "my-service"
        assert client.model("my-service").name == "my-service"
        with pytest.raises(UnknownModelError):
            client.classify(plain("red"), model="colours")


def test_a_name_for_several_packages_or_one_that_no_model_may_have_is_one_line_and_2(package: Path) -> None:
    code, _, stderr = finished(package, package, *FAST, "--name", "one")
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("error: --name one is for one PACKAGE, and 2 were given; ")
    code, _, stderr = finished(package, *FAST, "--name", "my service")
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("error: --name was given 'my service': ")


async def test_a_taken_port_is_refused_although_a_server_of_ours_has_it(
    package: Path, start_server: StartServer
) -> None:
    served = await start_server()
    port = served.server.port
    with pytest.raises(InputError, match=rf"127.0.0.1:{port} \(Address already in use\); --port"):
        await Server.for_packages([package], settings(port=port)).start()
    code, stdout, stderr = await asyncio.to_thread(finished, package, "--port", port, "--http-port", 0)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"error: .*:{port} .*\n", stderr)


def test_a_taken_http_port_and_a_host_that_is_not_here_are_refused(package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more in ((), ("--workers", 2)):
            code, _, stderr = finished(package, "--port", 0, "--http-port", port, *more)
            assert code == 2
            assert re.fullmatch(rf"error: .*127.0.0.1:{port} \(Address already in use\).*--http-port.*\n", stderr)
    code, _, stderr = finished(package, "--host", "203.0.113.1", "--http-port", 0)
    assert code == 2
    # After the warning that whoever reaches this host may use the server.
    error = stderr.splitlines()[-1]
    assert re.fullmatch(r"error: .*203.0.113.1:8001 \(Cannot assign requested address\).*--host.*", error)


def test_a_damaged_package_is_one_line_and_2(package: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(package, damaged)
    (damaged / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    code, stdout, stderr = finished(damaged, *FAST)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(r"error: .*model\.onnx.*sha256.*\n", stderr)


def test_while_it_loads_it_is_alive_but_not_ready_and_a_signal_ends_it_with_0(package: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    shutil.copytree(package, slow)
    (slow / "model.onnx").unlink()
    os.mkfifo(slow / "model.onnx")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", slow, *map(str, FAST), "--http-port", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Opening returns once the server reads the model, which then never comes.
        with (slow / "model.onnx").open("wb"):
            assert get(f"127.0.0.1:{port}", "/healthz")[0] == 200
            assert get(f"127.0.0.1:{port}", "/readyz")[0] == 503
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, stdout) == (0, "")


def test_it_listens_on_ipv6_too(package: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with server_process(package, *FAST, "--host", "::1", "--http-port", free_port()) as server:
        assert server.address.startswith("[::1]:")
        assert server.http_address is not None
        assert get(server.http_address, "/readyz")[0] == 200
        with Client(server.address) as client:
            assert client.classify(plain("red")).results[0].predictions[0].label == "red"


async def test_a_call_made_before_it_is_ready_waits_for_its_answer(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuseline.serve.model_source

    loading, load = asyncio.Event(), fuseline.serve.model_source.load_model
    loop = asyncio.get_running_loop()
    may_load = asyncio.Event()

    def slow_load(*args: Any, **names: Any) -> object:
        loop.call_soon_threadsafe(loading.set)
        asyncio.run_coroutine_threadsafe(may_load.wait(), loop).result(30)
        return load(*args, **names)

    monkeypatch.setattr(fuseline.serve.model_source, "load_model", slow_load)
    server = Server.for_packages([package], settings())
    starting = asyncio.create_task(server.start())
    await loading.wait()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        early = ClassifierStub(channel).Classify(request(0), timeout=30)
        assert not server.ready
        may_load.set()
        await starting
        assert (await early).results
    await server.drain()
