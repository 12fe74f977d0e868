"""Probes are answered while the event loop hangs; whatever else comes then is served once it turns again."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from fuseline.serve.http.app import http_app
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.http.http_services import HttpServices
from fuseline.serve.http.stand_in import StandIn
from fuseline.serve.settings import Settings
from tests.serve.certificates import Authority
from tests.serve.http.apps import echo
from tests.serve.http.http_process import Tls, listener, post
from tests.serve.processes import get

Result = TypeVar("Result")


async def metrics() -> bytes:
    return b"counted 1\n"


@asynccontextmanager
async def standing_in(tls: Tls | None = None, **its_limits: float) -> AsyncIterator[tuple[str, int]]:
    """A server of `echo`, for which a stand-in answers probes."""
    its, limits = listener(), HttpLimits(**its_limits)  # type: ignore[arg-type]
    context = None if tls is None else lambda: tls.context
    server = HttpServer(echo, its, limits, tls=context)
    await server.start()
    services = HttpServices(None, None, metrics, lambda: False, Settings())
    stand_in = StandIn(server, its, http_app(services), limits, tls=context)
    stand_in.start()
    try:
        yield its.getsockname()
    finally:
        await stand_in.close()
        await server.close()


def while_the_loop_hangs(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread while the calling thread, that of the event loop, is blocked."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(30)
    return results[0]


async def test_probes_are_answered_while_the_event_loop_hangs() -> None:
    async with standing_in() as (host, port):
        address = f"{host}:{port}"
        answers = while_the_loop_hangs(
            lambda: [get(address, path) for path in ("/healthz", "/readyz", "/metrics?all", "/healthz")]
        )
        assert answers == [(200, "alive\n"), (503, "not ready\n"), (200, "counted 1\n"), (200, "alive\n")]
        # Once the loop turns, the server answers again.
        status, body = await asyncio.to_thread(get, address, "/healthz")
        assert (status, body) == (200, "GET /healthz? 0 ")


async def test_what_is_no_probe_waits_for_the_event_loop_and_is_served_by_it() -> None:
    async with standing_in() as (host, port):

        def connect() -> list[socket.socket]:
            clients = [socket.create_connection((host, port), timeout=20) for _ in range(3)]
            clients[0].sendall(post(b"abc", target="/first"))
            clients[1].sendall(b"GE")
            assert get(f"{host}:{port}", "/healthz")[0] == 200
            assert get(f"{host}:{port}", "/healthz")[0] == 200
            return clients

        whole, part, silent = while_the_loop_hangs(connect)
        part.sendall(b"T /second HTTP/1.1\r\n\r\n")
        silent.sendall(b"GET /third HTTP/1.1\r\n\r\n")
        for client, told in ((whole, b"POST /first? 3 abc"), (part, b"GET /second? 0 "), (silent, b"GET /third? 0 ")):
            with client:
                assert (await asyncio.to_thread(client.recv, 1000)).endswith(told)


async def test_more_than_a_bounded_number_that_waits_is_told_that_nothing_is_served() -> None:
    async with standing_in() as (host, port):

        def connect() -> tuple[list[socket.socket], bytes]:
            clients = []
            for _ in range(129):
                clients.append(socket.create_connection((host, port), timeout=20))
                clients[-1].sendall(post(b"abc", target="/nothing"))
            return clients, clients[-1].recv(1000)

        clients, last = while_the_loop_hangs(connect)
        assert last.startswith(b"HTTP/1.1 404")
        for client in clients[:128]:
            with client:
                assert (await asyncio.to_thread(client.recv, 1000)).endswith(b"POST /nothing? 3 abc")
        clients[-1].close()


async def test_the_port_is_free_once_it_is_closed() -> None:
    async with standing_in() as address:
        while_the_loop_hangs(lambda: get(f"{address[0]}:{address[1]}", "/healthz"))
    with socket.create_server(address):
        pass


async def test_over_tls_probes_are_answered_and_the_rest_keeps_its_session(tmp_path: Path) -> None:
    tls = Tls(Authority(tmp_path / "tls"))
    context = tls.client()

    async with standing_in(tls) as (host, port):

        def connected(*, encrypted: bool = True) -> socket.socket:
            plain = socket.create_connection((host, port), timeout=20)
            return context.wrap_socket(plain, server_hostname="localhost") if encrypted else plain

        def probe(path: str) -> bytes:
            with connected() as client:
                client.sendall(b"GET %s HTTP/1.1\r\nConnection: close\r\n\r\n" % path.encode())
                return b"".join(iter(lambda: client.recv(1000), b""))

        def connect() -> tuple[list[bytes], list[socket.socket]]:
            answers = [probe(path) for path in ("/healthz", "/readyz")]
            whole, part, plain = connected(), connected(), connected(encrypted=False)
            whole.sendall(post(b"abc", target="/first"))
            part.sendall(b"GE")
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"200 OK" in probe("/healthz")
            assert b"200 OK" in probe("/healthz")
            return answers, [whole, part, plain]

        (alive, not_ready), (whole, part, plain) = while_the_loop_hangs(connect)
        assert alive.endswith(b"alive\n")
        assert not_ready.startswith(b"HTTP/1.1 503")
        await asyncio.to_thread(part.sendall, b"T /second HTTP/1.1\r\n\r\n")
        for client, told in ((whole, b"POST /first? 3 abc"), (part, b"GET /second? 0 ")):
            with client:
                assert (await asyncio.to_thread(client.recv, 1000)).endswith(told)
        with plain:
            assert b"this port speaks TLS only" in await asyncio.to_thread(plain.recv, 1000)


async def test_over_tls_a_handshake_that_never_ends_or_fails_keeps_no_probe_from_its_answer(tmp_path: Path) -> None:
    tls = Tls(Authority(tmp_path / "tls"), wants_certificates=True)
    own = tls.client(tls.authority.issue("client"))

    async with standing_in(tls, head_s=0.1) as (host, port):

        def connect() -> bytes:
            with socket.create_connection((host, port), timeout=20) as silent:
                silent.sendall(b"\x16\x03")
                with (
                    socket.create_connection((host, port), timeout=20) as stranger,
                    tls.client().wrap_socket(stranger, server_hostname="localhost") as encrypted,
                    pytest.raises((ssl.SSLError, ConnectionError)),
                ):
                    assert encrypted.recv(1)
                assert silent.recv(1) == b""
            with (
                socket.create_connection((host, port), timeout=20) as plain,
                own.wrap_socket(plain, server_hostname="localhost") as client,
            ):
                client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
                return client.recv(1000)

        assert while_the_loop_hangs(connect).endswith(b"alive\n")
