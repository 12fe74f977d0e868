"""HTTP over TLS: what is so of TLS alone. What holds for HTTP at all is tested over TLS beside it."""

import asyncio
import json
import socket
import ssl
from pathlib import Path

import pytest

from fuseline.serve.http.call_of_scope import call_of_scope
from tests.serve.certificates import Authority
from tests.serve.http.apps import Held, answer, echo
from tests.serve.http.http_process import GET, Http, Tls, serving, until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


async def told_client(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """Answer with the client's name, and the scheme."""
    await receive()
    await answer(send, json.dumps([call_of_scope(scope).caller.client, scope["scheme"]]).encode())


async def raw(http: Http) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, http.address)
    return client


async def test_a_client_that_trusts_the_authority_is_answered(authority: Authority) -> None:
    async with serving(told_client, Tls(authority)) as http:
        assert json.loads((await http.ask(GET)).body) == ["127.0.0.1", "https"]


async def test_a_client_that_trusts_another_authority_refuses(authority: Authority, tmp_path: Path) -> None:
    other = Tls(Authority(tmp_path / "other"))
    async with serving(echo, Tls(authority)) as http:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with http.connection(context=other.client()):
                pass
        assert (await http.ask(GET)).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_present_versions_of_tls_and_http_1_1_are_spoken(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    tls = Tls(authority)
    context = tls.client()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(echo, tls) as http, http.connection(context=context) as connection:
        assert (await connection.ask(GET)).status == 200
        its: ssl.SSLObject = connection.writer.get_extra_info("ssl_object")
        assert its.selected_alpn_protocol() == "http/1.1"


@pytest.mark.filterwarnings("ignore:.*TLSv1.* is deprecated")
async def test_older_versions_of_tls_are_refused(authority: Authority) -> None:
    tls = Tls(authority)
    context = tls.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(echo, tls) as http:
        with pytest.raises(ssl.SSLError):
            async with http.connection(context=context):
                pass


@pytest.mark.parametrize("method", ["GET", "DELETE", "PRI"])
async def test_plain_http_on_a_tls_port_is_told_so(authority: Authority, method: str) -> None:
    async with serving(echo, Tls(authority)) as http:
        plain = Http(http.server, http.address)
        reply = await plain.ask(f"{method} / HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        assert reply.status == 400
        assert "this port speaks TLS only; call it by https://" in reply.error


async def test_what_is_neither_tls_nor_http_is_cut_without_an_answer(authority: Authority) -> None:
    async with serving(echo, Tls(authority), linger_s=0.01) as http:
        async with Http(http.server, http.address).connection() as connection:
            await connection.send(b"\x00\x01\x02")
            assert await connection.is_closed()
        await until(lambda: not http.server.connections)


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x00\xf4\x01"])
async def test_a_handshake_that_is_never_finished_is_a_connection_and_is_cut_in_time(
    authority: Authority, begun: bytes
) -> None:
    async with serving(echo, Tls(authority), head_s=0.1) as http:
        with await raw(http) as client:
            if begun:
                await asyncio.get_running_loop().sock_sendall(client, begun)
            await until(lambda: len(http.server.connections) == 1)
            assert await asyncio.get_running_loop().sock_recv(client, 10) == b""
        assert http.server.connections == []


async def test_handshakes_under_way_count_among_the_connections(authority: Authority) -> None:
    async with serving(echo, Tls(authority), max_connections=2) as http:
        silent = [await raw(http) for _ in range(2)]
        await until(lambda: len(http.server.connections) == 2)
        try:
            refused = await http.ask(GET)
            assert refused.status == 503
            assert "2 connections are open" in refused.error
        finally:
            for client in silent:
                client.close()
        await until(lambda: not http.server.connections)
        assert (await http.ask(GET)).status == 200


async def test_connections_that_are_open_go_on_and_new_ones_see_the_new_certificate(authority: Authority) -> None:
    tls, held = Tls(authority), Held()

    def shown(connection: object) -> bytes | None:
        its: ssl.SSLObject = connection.writer.get_extra_info("ssl_object")  # type: ignore[attr-defined]
        return its.getpeercert(binary_form=True)

    async with serving(held, tls) as http, http.connection() as old:
        first = shown(old)
        await old.send(GET)
        await held.came.acquire()
        renewed = authority.issue()
        tls.show(renewed)
        held.go.set()
        assert (await old.answer()).status == 200
        async with http.connection() as new:
            assert shown(new) == renewed.der != first
            assert (await new.ask(GET)).status == 200
        assert (await old.ask(GET)).status == 200


async def test_a_client_is_named_by_its_certificate(authority: Authority) -> None:
    tls = Tls(authority, wants_certificates=True)
    named = authority.issue("client", names=("pictures.example",))
    async with serving(told_client, tls) as http, http.connection(context=tls.client(named)) as connection:
        for _ in range(2):
            reply = await connection.ask(GET)
            assert json.loads(reply.body) == ["certificate:pictures.example", "https"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", ["none", "another authority's", "an expired one"])
async def test_a_client_without_a_certificate_of_the_authority_is_refused_and_told(
    authority: Authority, tmp_path: Path, shows: str, version: ssl.TLSVersion
) -> None:
    tls = Tls(authority, wants_certificates=True)
    pair = {
        "none": None,
        "another authority's": Authority(tmp_path / "other").issue("stranger"),
        "an expired one": authority.issue("late", expired=True),
    }[shows]
    context = tls.client(pair)
    context.minimum_version = context.maximum_version = version
    async with serving(told_client, tls, linger_s=0.05) as http:
        # In TLS 1.3 a client is told only after it has sent its request.
        with pytest.raises(ssl.SSLError, match="(?i)alert|handshake failure"):
            async with http.connection(context=context) as connection:
                await connection.ask(GET + bytes(100_000))
        await until(lambda: not http.server.connections)


async def test_a_clients_end_of_tls_ends_the_connection(authority: Authority) -> None:
    async with serving(echo, Tls(authority)) as http, http.connection() as connection:
        assert (await connection.ask(GET)).status == 200
        connection.writer.close()
        await until(lambda: not http.server.connections)


async def test_a_record_that_was_tampered_with_ends_the_connection(authority: Authority) -> None:
    async with serving(echo, Tls(authority)) as http:
        async with http.connection() as connection:
            assert (await connection.ask(GET)).status == 200
            its: socket.socket = connection.writer.get_extra_info("socket")
            with socket.socket(fileno=socket.dup(its.fileno())) as lower:
                lower.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            await until(lambda: not http.server.connections)
        assert (await http.ask(GET)).status == 200


async def test_a_handler_is_cancelled_when_a_client_over_tls_goes(authority: Authority) -> None:
    held = Held()
    async with serving(held, Tls(authority)) as http:
        async with http.connection() as connection:
            await connection.send(GET)
            await held.came.acquire()
        await held.ended.acquire()
        assert held.cancelled == 1
