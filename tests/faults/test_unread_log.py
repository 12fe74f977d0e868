"""A log that nobody reads, or that is read late: real servers whose stderr is a pipe, or whose stdout is one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import LogSettingsRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import Client
from tests.fakes.colours import plain
from tests.serve.processes import FAST, ROOT, ServerProcess, children_of, free_port, get, lives, metric, server_process

PIPE_BYTES = 64 * 2**10
"""What a pipe holds, beyond which a write to it waits."""
PROCESSES = pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)


def log_much(server: ServerProcess, bytes_: int) -> None:
    """Have each request logged, and make so many that the log has `bytes_` at least; each is answered."""
    with grpc.insecure_channel(server.address) as channel:
        settings = {"log_verbose_level": {"uint32_param": 1}}
        GRPCInferenceServiceStub(channel).LogSettings(LogSettingsRequest(settings=settings), timeout=20)
        metadata = (("x-request-id", "x" * 128),)
        classify = ClassifierStub(channel).Classify
        for _ in range(0, bytes_, 200):
            with pytest.raises(grpc.RpcError) as caught:
                classify(ClassifyRequest(), metadata=metadata, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def check_answers(server: ServerProcess) -> None:
    with Client(server.address) as client:
        assert client.classify(plain("green")).results[0].predictions[0].label == "green"
    assert server.http_address is not None
    for path in ("/livez", "/readyz", "/metrics"):
        assert get(server.http_address, path)[0] == 200


@PROCESSES
def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(
    package: Path, workers: Sequence[object]
) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port()) as server:
        log_much(server, 4 * PIPE_BYTES)
        check_answers(server)
        signalled = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        print(f"ended {time.monotonic() - signalled:.1f} s after SIGTERM, its log unread")
        server.process.communicate()


@PROCESSES
def test_a_log_that_is_read_late_has_every_line_in_its_order(package: Path, workers: Sequence[object]) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port(), "--log-format", "json") as server:
        log_much(server, 2 * PIPE_BYTES)
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr[-2000:]
    assert stderr.count("Classify of colours: INVALID_ARGUMENT") == len(range(0, 2 * PIPE_BYTES, 200))
    assert "missing" not in stderr
    for process in set(re.findall(r'"process": "([^"]+)"', stderr)):
        times = re.findall(rf'"time": "([^"]+)".*"process": "{process}"', stderr)
        assert times == sorted(times)
    assert stderr.count("drained; answers since the start") == 1


def test_lines_for_which_there_is_no_room_are_counted_and_told(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        log_much(server, 24 * PIPE_BYTES)
        dropped = metric(server, "fuseline_log_dropped_lines_total")
        assert dropped > 0
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr[-2000:]
    (told,) = re.findall(r"WARNING fuseline.serve.process.server_log: (\d+) lines of the log are missing here", stderr)
    assert int(told) >= dropped


def is_ready(http_address: str) -> bool:
    try:
        return get(http_address, "/readyz")[0] == 200
    except OSError:
        return False


@contextmanager
def full_pipe() -> Iterator[int]:
    """The end of a pipe to which nothing more can be written without waiting."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        while os.write(theirs, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(theirs, True)
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


@PROCESSES
@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_server_that_starts_with_a_full_pipe_serves_and_ends(
    package: Path, full: str, workers: Sequence[object]
) -> None:
    port, http_port = free_port(), free_port()
    command = [sys.executable, "-m", "serve", package, *FAST, *workers, "--port", port, "--http-port", http_port]
    with full_pipe() as pipe:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {full: pipe}
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, **streams)
        try:
            until_s = time.monotonic() + 60
            while not is_ready(f"127.0.0.1:{http_port}"):
                assert process.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.05)
            with Client(f"127.0.0.1:{port}") as client:
                assert client.classify(plain("green")).results[0].predictions[0].label == "green"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_a_failed_start_ends_though_nobody_reads_why(tmp_path: Path) -> None:
    with full_pipe() as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", str(tmp_path / "none"), "--http-port", "0"], cwd=ROOT, stderr=pipe
        )
        try:
            assert process.wait(60) == 2
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_processes_whose_supervisor_was_killed_end_though_nobody_reads_their_log(package: Path) -> None:
    with server_process(package, *FAST, "--workers", 2) as server:
        log_much(server, 4 * PIPE_BYTES)
        children = children_of(server)
        server.process.kill()
        until_s = time.monotonic() + 20
        while any(map(lives, children)):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        server.process.communicate()
