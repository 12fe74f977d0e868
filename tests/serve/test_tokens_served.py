"""`fuseline serve --token-hashes`: real processes."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.access.token_file import add_line, new_token, token_line
from fuseline.serve.client import Client
from fuseline.serve.errors import InputError, UnauthenticatedError
from fuseline.serve.settings import Settings
from tests.commands import Run
from tests.fakes.colours import encoded, plain
from tests.serve.access.token_files import TokenFile, bearer, withdraw
from tests.serve.certificates import Authority
from tests.serve.processes import FAST, finished, free_port, get, own_channel, server_process

RED = ClassifyRequest(images=[Image(raw=plain("red").tobytes())])
ELSEWHERE = "203.0.113.1"
"""An address that no machine has: a server ends when it can't listen there, having warned of it."""


def logged(stderr: str, tokens: TokenFile) -> str:
    """What a server logged, in which there must be no token."""
    assert "fuseline_" not in stderr.replace("fuseline_access", "")
    assert tokens.infer[9:] not in stderr
    return stderr


async def test_each_worker_asks_for_tokens_and_takes_a_new_one_within_seconds(package: Path, tokens: TokenFile) -> None:
    flags = ("--workers", 2, *FAST, "--http-port", free_port(), "--token-hashes", tokens.path)
    with server_process(package, *flags) as server:
        assert server.http_address is not None
        following = new_token()
        add_line(tokens.path, token_line(following, name="shop", role="infer"))
        channels = [own_channel(server) for _ in range(8)]
        try:
            stubs = [ClassifierStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
            for stub in stubs:
                assert (await stub.Classify(RED, metadata=bearer(tokens.infer), timeout=30)).results
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Classify(RED, timeout=30)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await asyncio.gather(*(_until_taken(stub, following) for stub in stubs))
            health = HealthStub(channels[0])  # type: ignore[no-untyped-call]
            assert (await health.Check(HealthCheckRequest(), timeout=30)).status == 1  # type: ignore[attr-defined]
        finally:
            for channel in channels:
                await channel.close()

        def over_http() -> None:
            assert server.http_address is not None
            for _ in range(8):
                with Client(f"http://{server.http_address}", token=following) as client:
                    _until_taken_over_http(client)
                with Client(f"http://{server.http_address}") as client, pytest.raises(UnauthenticatedError):
                    client.model()
            assert get(server.http_address, "/readyz")[0] == 200
            status, text = get(server.http_address, "/metrics")
            assert status == 200
            assert 'fuseline_access_events_total{event="unauthenticated"}' in text

        await asyncio.to_thread(over_http)
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
        assert code == 0, logged(stderr, tokens)


async def _until_taken(stub: ClassifierStub, token: str) -> None:
    """Call until `token` is taken, which is so a second after the file has it."""
    async with asyncio.timeout(30):
        while True:
            try:
                await stub.Classify(RED, metadata=bearer(token))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                await asyncio.sleep(0.1)
            else:
                return


def _until_taken_over_http(client: Client) -> None:
    """The same; the worker may be one that no call over gRPC has reached, and that has not looked at the file yet."""
    until = time.monotonic() + 30
    while True:
        try:
            assert client.classify(encoded(plain("red"))).results
        except UnauthenticatedError:
            assert time.monotonic() < until
            time.sleep(0.1)
        else:
            return


async def test_each_worker_ends_the_idle_streams_of_a_withdrawn_token(package: Path, tokens: TokenFile) -> None:
    with server_process(package, "--workers", 2, *FAST, "--token-hashes", tokens.path) as server:
        channels = [own_channel(server) for _ in range(8)]
        try:
            streams, others = (
                [ClassifierStub(channel).ClassifyStream(metadata=bearer(token)) for channel in channels]  # type: ignore[no-untyped-call]
                for token in (tokens.infer, tokens.admin)
            )
            for stream in (*streams, *others):
                await stream.write(RED)
                assert (await stream.read()).results
            withdraw(tokens, "shop")
            async with asyncio.timeout(20):
                for stream in streams:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stream.read()
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            for stream in others:
                await stream.write(RED)
                assert (await stream.read()).results
                stream.cancel()
        finally:
            for channel in channels:
                await channel.close()
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
        assert code == 0, logged(stderr, tokens)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_with_a_broken_file_of_hashes_does_not_start(package: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "hashes").write_text("shop infer sha256:0\n")
    code, _, stderr = finished(package, *FAST, "--workers", workers, "--token-hashes", tmp_path / "hashes")
    assert code == 2
    assert "line 1 of the file of token hashes" in stderr


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_whoever_lets_everyone_in_from_other_machines_is_told_so_at_each_start(
    package: Path, tmp_path: Path, workers: int
) -> None:
    # A name of loopback that only the system's resolver knows, so that nobody but this machine reaches the server.
    http = ("--host", "127.1", "--http-port", free_port())
    with server_process(
        package, "--backend", "onnxruntime", "--listen", f"unix:{tmp_path / 'grpc'}", *http, "--workers", workers
    ) as server:
        server.process.terminate()
        code, stderr = server.end()
    assert code == 0, stderr
    for told in (server.announcement, stderr):
        assert f"whoever reaches 127.1:{http[-1]} may use, change and read this server" in told
        assert "--token-hashes" in told
        assert "--tls-client-ca" in told
        assert "--host 127.0.0.1" in told


def test_who_listens_on_loopback_or_asks_who_comes_is_not_warned(
    run_fuseline: Run, package: Path, tokens: TokenFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, stdout, _ = run_fuseline("serve", package, "--host", ELSEWHERE, "--token-hashes", tokens.path)
    assert (code, stdout) == (2, "")
    assert "whoever reaches" not in caplog.text
    authority = Authority(tmp_path / "tls")
    files = {**authority.issue().settings, "tls_client_ca": authority.ca}
    for safe in ({}, {"host": "::1"}, {"listen": ("unix:/run/x",), "http_port": 0}, {"host": "0.0.0.0", **files}):
        assert Settings(**safe).unguarded_addresses == ()
    # TLS alone tells who the server is, not who its clients are.
    del files["tls_client_ca"]
    assert Settings(host="0.0.0.0", **files).unguarded_addresses == ("0.0.0.0:8001", "0.0.0.0:8002")
    assert Settings(listen=("unix:/run/x", "10.0.0.1:9")).unguarded_addresses == ("10.0.0.1:9",)
    assert Settings(host="0.0.0.0", http_port=0).unguarded_addresses == ("0.0.0.0:8001",)


async def test_a_token_goes_over_tls_to_a_name_that_is_not_this_machine(package: Path, tokens: TokenFile) -> None:
    with pytest.raises(InputError, match="unencrypted"):
        Client("gpu-host:8001", token=tokens.infer)
    with Client("gpu-host:8001", token=tokens.infer, tls=True):
        pass
    with pytest.raises(InputError, match="unencrypted"):
        Client("http://gpu-host:8002", token=tokens.infer)


def test_classify_sends_the_token_of_a_file(
    run_fuseline: Run, package: Path, tokens: TokenFile, tmp_path: Path
) -> None:
    picture, file = tmp_path / "red.png", tmp_path / "token"
    picture.write_bytes(encoded(plain("red")))
    file.write_text(f"{tokens.infer}\n")
    with server_process(package, *FAST, "--token-hashes", tokens.path) as server:
        code, stdout, stderr = run_fuseline("classify", picture, "--address", server.address, "--token-file", file)
        assert (code, stderr) == (0, "")
        assert "red" in stdout
        code, _, stderr = run_fuseline("classify", picture, "--address", server.address)
        assert code == 2
        assert "needs a token" in stderr
        assert run_fuseline("health", "--address", server.address)[0] == 0


def test_models_are_listed_with_a_token_and_changed_with_one_of_an_admin(
    run_fuseline: Run, package: Path, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = (*FAST, "--http-port", free_port(), "--token-hashes", tokens.path)
    with server_process(package, *flags) as server:
        for address in (server.address, f"http://{server.http_address}"):
            code, _, stderr = run_fuseline("models", "list", "--address", address)
            assert (code, stderr.count("\n")) == (2, 1)
            assert "needs a token" in stderr
            monkeypatch.setenv("FUSELINE_TOKEN", tokens.infer)
            assert "READY" in run_fuseline("models", "list", "--address", address)[1]
            code, _, stderr = run_fuseline("models", "unload", "colours", "--address", address)
            assert code == 2
            assert "needs a token of the role admin" in stderr
            (tmp_path / "token").write_text(tokens.admin)
            flags = ("--address", address, "--token-file", tmp_path / "token")
            code, _, stderr = run_fuseline("models", "unload", "colours", *flags)
            # Who may is told what the server's mode is.
            assert code == 1
            assert "mode" in stderr
            monkeypatch.delenv("FUSELINE_TOKEN")
