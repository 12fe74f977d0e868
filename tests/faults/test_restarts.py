"""Processes that are ended or die while models load, are swapped, or are broken on disk."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import RepositoryModelLoadRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.model_control import lost_models
from tests.fakes.colours import noise, plain
from tests.serve.model_control.repositories import put, take_away
from tests.serve.processes import (
    FAST,
    ServerProcess,
    children_of,
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

WORKERS = ("--workers", 2)
PROCESSES = pytest.mark.parametrize("workers", [(), WORKERS], ids=["one process", "workers"])


def hang_on(package: Path) -> Path:
    """Have whoever reads the package's graph wait for ever; return the graph."""
    graph = package / "model.onnx"
    graph.unlink()
    os.mkfifo(graph)
    return graph


@asynccontextmanager
async def loading_of(graph: Path) -> AsyncIterator[None]:
    """Begin once a server reads `graph`, which then never comes."""
    with await asyncio.to_thread(graph.open, "wb"):
        yield


async def ended(server: ServerProcess, number: signal.Signals, within_s: float = 25) -> tuple[int, str]:
    """Send the signal; return exit code and log. Fails where it takes longer, or a process of the server stays."""
    children, begun = children_of(server), time.monotonic()
    server.process.send_signal(number)
    code, stderr = await asyncio.to_thread(server.end, within_s)
    took = time.monotonic() - begun
    assert took < within_s, f"{number.name}: {took:.1f} s; {stderr}"
    assert not any(map(lives, children))
    print(f"{number.name}: ended with {code} after {took:.2f} s")
    return code, stderr


@PROCESSES
@pytest.mark.parametrize("mode", ["explicit", "poll"])
async def test_sigterm_while_a_swap_loads_answers_what_was_admitted_and_waits_for_no_load(
    tmp_path: Path, workers: Sequence[object], mode: str
) -> None:
    root = tmp_path / "models"
    put(root, "colours", 1)
    flags = ("--model-repository", root, "--model-control-mode", mode, "--repository-poll-secs", 0.1)
    flags += ("--load-model", "*") if mode == "explicit" else ()
    # Requests wait for a fuller batch, so that they are there when the signal comes.
    http_port = free_port()
    with server_process(*FAST, *workers, *flags, "--http-port", http_port, "--max-delay-ms", 10_000) as server:
        async with own_channel(server) as channel:
            waiting = [ClassifierStub(channel).Classify(raw_request(noise(1, seed))) for seed in range(3)]
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 3)
            graph = hang_on(put(tmp_path / "slow", "colours", 2))
            graph.parent.rename(root / "colours" / "2")
            load = None
            if mode == "explicit":
                request = RepositoryModelLoadRequest(model_name="colours")
                load = GRPCInferenceServiceStub(channel).RepositoryModelLoad(request)
            async with loading_of(root / "colours" / "2" / "model.onnx"):
                code, stderr = await ended(server, signal.SIGTERM)
                assert [(await call).model_version for call in waiting] == ["1"] * 3
                if load is not None:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await load
                    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert code == 0, stderr
    assert "3 OK" in stderr


@PROCESSES
async def test_sighup_of_a_terminal_that_is_gone_drains_as_sigterm_does(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port(), "--max-delay-ms", 10_000) as server:
        async with own_channel(server) as channel:
            call = ClassifierStub(channel).Classify(raw_request(noise(1)))
            await until(lambda: metric(server, 'fuseline_queued_rows{model="colours",version="1"}') == 1)
            code, stderr = await ended(server, signal.SIGHUP)
            assert (await call).results
    assert code == 0, stderr
    assert "SIGHUP: draining" in stderr


def test_sighup_is_ignored_below_nohup(package: Path) -> None:
    ignoring = "import runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    command = ("-c", f"{ignoring}runpy.run_module('serve', run_name='__main__')")
    with server_process(package, *FAST, command=command) as server:
        server.process.send_signal(signal.SIGHUP)
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr
    assert "SIGHUP" not in stderr


async def test_a_supervisor_that_is_killed_while_a_model_loads_leaves_no_process(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, "colours", 1)
    flags = ("--model-repository", root, "--model-control-mode", "poll", "--repository-poll-secs", 0.1)
    with server_process(*FAST, *WORKERS, *flags) as server:
        children = children_of(server)
        graph = hang_on(put(tmp_path / "slow", "colours", 2))
        graph.parent.rename(root / "colours" / "2")
        async with loading_of(root / "colours" / "2" / "model.onnx"):
            server.process.kill()
            await asyncio.to_thread(server.end)
            await until(lambda: not any(map(lives, children)))
    assert len(children) == 3


@contextmanager
def broken(package: Path) -> Iterator[None]:
    """The package's graph is cut short meanwhile."""
    graph = package / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:10])
    try:
        yield
    finally:
        graph.write_bytes(whole)


def index(server: ServerProcess) -> dict[str, tuple[str, str]]:
    """State and reason of each model in the repository's index."""
    asked = urllib.request.Request(f"http://{server.http_address}/v2/repository/index", method="POST", data=b"")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return {line["name"]: (line["state"], line.get("reason", "")) for line in json.load(answer)}


async def test_a_backend_that_dies_while_its_package_is_broken_serves_again_once_that_is_whole(
    package: Path, tmp_path: Path
) -> None:
    its = shutil.copytree(package, tmp_path / "its")
    with server_process(its, *FAST, *WORKERS, "--http-port", free_port()) as server:
        workers = {pid for pid, kind in children_of(server).items() if kind == "worker"}
        refused = 'fuseline_model_loads_total{error="PackageError",model="colours",outcome="refused"}'
        with broken(its):
            os.kill(one_of(server, "backend"), signal.SIGKILL)
            await until(lambda: metric(server, refused) >= 2)
            address = str(server.http_address)
            assert await asyncio.to_thread(get, address, "/readyz") == (503, "not ready\n")
            assert await asyncio.to_thread(get, address, "/livez") == (200, "live\n")
            ((state, reason),) = (await asyncio.to_thread(index, server)).values()
            assert state == "UNAVAILABLE"
            assert re.search(r"model\.onnx has 10 bytes with sha256", reason)
            async with own_channel(server) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as lost:
                    await ClassifierStub(channel).Classify(raw_request(plain("red")[None]))
                assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        whole = time.monotonic()
        await until(lambda: get(address, "/readyz")[0] == 200, 2 * lost_models.MOST_PAUSE_S)
        print(f"served again {time.monotonic() - whole:.1f} s after the package was whole")
        async with own_channel(server) as channel:
            assert (await ClassifierStub(channel).Classify(raw_request(plain("red")[None]))).results
        assert metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1
        assert {pid for pid, kind in children_of(server).items() if kind == "worker"} == workers
        code, stderr = await ended(server, signal.SIGTERM)
    assert code == 0, stderr
    assert re.findall(r"model\.onnx has 10 bytes with sha256 .*; it is tried again in (\d+) s", stderr)[:2] == [
        "1",
        "2",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
async def test_of_three_models_one_of_which_is_broken_by_then_two_come_back_with_the_backend(
    tmp_path: Path, mode: str
) -> None:
    root = tmp_path / "models"
    for name in ("birds", "cats", "dogs"):
        put(root, name, 1)
    flags = ("--model-repository", root, "--model-control-mode", mode, "--repository-poll-secs", 0.5)
    flags += ("--load-model", "*") if mode == "explicit" else ()
    with server_process(*FAST, *WORKERS, "--max-batch", 4, *flags, "--http-port", free_port()) as server:
        (root / "cats" / "1" / "model.onnx").write_bytes(b"no graph")
        if mode == "none":
            take_away(root / "dogs")
        os.kill(one_of(server, "backend"), signal.SIGKILL)
        await until(lambda: metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1)
        await until(lambda: get(str(server.http_address), "/readyz")[0] == 200)
        entries = await asyncio.to_thread(index, server)
        assert entries["birds"] == ("READY", "")
        assert entries["cats"][0] == "UNAVAILABLE"
        assert "sha256" in entries["cats"][1]
        assert entries["dogs"][0] == ("UNAVAILABLE" if mode == "none" else "READY")
        refused = 'fuseline_model_loads_total{error="PackageError",model="cats",outcome="refused"}'
        await until(lambda: metric(server, refused) >= 1)
        put(root, "cats", 1)
        put(root, "dogs", 1)
        await until(lambda: all(state == "READY" for state, _ in index(server).values()), 60)
        code, stderr = await ended(server, signal.SIGTERM)
    assert code == 0, stderr
    assert "version 1 of cats is refused" in stderr


DYING = """
import sys, json
if json.loads(sys.argv[1])["again"]:
    sys.exit(9)
from fuseline.serve.workers.backend_process import main
main()
"""

SUPERVISOR = f"""
from functools import partial
import fuseline.serve.workers.supervisor as supervisor
from fuseline.serve.commands.serve_command import main
commands = supervisor.Commands(backend=("-c", {DYING!r}))
supervisor.run_supervisor = partial(supervisor.run_supervisor, commands=commands)
main()
"""


async def test_a_backend_that_dies_five_times_before_it_is_ready_ends_the_server_with_1(package: Path) -> None:
    with server_process(package, *FAST, *WORKERS, command=("-c", SUPERVISOR)) as server:
        children = children_of(server)
        os.kill(one_of_backends(server), signal.SIGKILL)
        code, stderr = await asyncio.to_thread(server.end, 60)
        assert not any(map(lives, children))
    assert code == 1, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.fullmatch(
        r"error: backend \(process \d+\) ended with exit code 9 before it was ready, 5 times in a row: .*", errors[0]
    )
    assert stderr.count("it is started again") == 5


REFUSED_TWICE = """
from itertools import count
import errno, os
import fuseline.serve.workers.supervisor as supervisor
from fuseline.serve.commands.serve_command import main
starts, start_process = count(1), supervisor.start_process

async def refused(*arguments):
    # The first three are the backend and the workers.
    if next(starts) in (4, 5):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return await start_process(*arguments)

supervisor.start_process = refused
main()
"""


async def test_a_process_that_the_system_does_not_let_start_for_a_moment_is_started_then(package: Path) -> None:
    flags = (*FAST, *WORKERS, "--http-port", free_port())
    with server_process(package, *flags, command=("-c", REFUSED_TWICE)) as server:
        os.kill(one_of(server, "backend"), signal.SIGKILL)
        await until(lambda: metric(server, 'fuseline_process_restarts_total{process="backend"}') == 1)
        await until(lambda: get(str(server.http_address), "/readyz")[0] == 200)
        code, stderr = await ended(server, signal.SIGTERM)
    assert code == 0, stderr
    assert stderr.count("backend can't be started: Resource temporarily unavailable; it is tried again") == 2


def one_of_backends(server: ServerProcess) -> int:
    """The backend process, whose command is not the usual one."""
    for folder in (Path("/proc") / str(server.process.pid) / "task").glob("*/children"):
        for pid in map(int, folder.read_text().split()):
            if '"title":"backend"' in (Path("/proc") / str(pid) / "cmdline").read_text():
                return pid
    raise AssertionError("there is no backend process")
