"""A server over TLS, by its clients: whom each side trusts, and what is told where it doesn't."""

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.batching.requests import Caller
from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.errors import InputError
from fuseline.serve.server import Server
from fuseline.serve.settings import Settings
from fuseline.serve.tls.certificate import CertificateFiles
from fuseline.serve.tls.certificates import Certificates
from tests.fakes.colours import noise, plain
from tests.serve.certificates import Authority, replace, shown_at
from tests.serve.conftest import Served, StartServer, settings
from tests.serve.processes import free_port
from tests.serve.services.classify_requests import raw_request


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


Ask = Callable[[Served], Any]


def by_client(scheme: str = "", **tls: object) -> Ask:
    """Classify by `Client` over gRPC, or over HTTP by `scheme`; the answer's label."""

    async def ask(served: Served) -> str:
        port = served.server.http_port if scheme else served.server.port

        def classified() -> str:
            with Client(f"{scheme}localhost:{port}", **tls) as client:  # type: ignore[arg-type]
                return client.classify(plain("green"), timeout_s=20).results[0].predictions[0].label

        return await asyncio.to_thread(classified)

    return ask


def by_async_client(**tls: object) -> Ask:
    async def ask(served: Served) -> str:
        async with AsyncClient(f"localhost:{served.server.port}", **tls) as client:  # type: ignore[arg-type]
            return (await client.classify(plain("green"), timeout_s=20)).results[0].predictions[0].label

    return ask


def every_way(**tls: object) -> dict[str, Ask]:
    return {"Client": by_client(**tls), "https": by_client("https://", **tls), "AsyncClient": by_async_client(**tls)}


async def failures(served: Served, **tls: object) -> dict[str, str]:
    """What each client raises."""
    told = {}
    for way, ask in every_way(**tls).items():
        with pytest.raises(InputError) as caught:
            await ask(served)
        told[way] = str(caught.value)
        assert len(told[way]) < 500
    return told


@pytest.fixture
def start_tls(start_server: StartServer, authority: Authority) -> StartServer:
    """Start servers whose certificate `authority` has signed."""

    async def start(**changes: object) -> Served:
        return await start_server(http_port=free_port(), **(authority.issue().settings | changes))

    return start


async def test_every_client_that_trusts_the_authority_is_answered(start_tls: StartServer, authority: Authority) -> None:
    served = await start_tls()
    for way, ask in every_way(ca=authority.ca).items():
        assert await ask(served) == "green", way


async def test_a_client_trusts_what_this_machine_trusts_unless_told_otherwise(
    start_tls: StartServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_tls()
    for told in (await failures(served, tls=True)).values():
        assert "the server's certificate is not trusted" in told
        assert "--tls-ca" in told
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    for way, ask in every_way(tls=True).items():
        assert await ask(served) == "green", way


async def test_a_certificate_of_another_authority_is_told(start_tls: StartServer, tmp_path: Path) -> None:
    served = await start_tls()
    for told in (await failures(served, ca=Authority(tmp_path / "other").ca)).values():
        assert "the server's certificate is not trusted" in told


async def test_a_certificate_for_another_name_is_told_and_its_name_may_be_given(
    start_tls: StartServer, authority: Authority
) -> None:
    served = await start_tls(**authority.issue("elsewhere", names=("elsewhere.example",)).settings)
    for told in (await failures(served, ca=authority.ca)).values():
        assert "certificate is for another name" in told
        assert "server_name (--tls-server-name)" in told
    for way, ask in every_way(ca=authority.ca, server_name="elsewhere.example").items():
        assert await ask(served) == "green", way


async def test_an_expired_certificate_is_told(start_tls: StartServer, authority: Authority) -> None:
    served = await start_tls(**authority.issue("late", expired=True).settings)
    for told in (await failures(served, ca=authority.ca)).values():
        assert "the server's certificate has expired" in told


async def test_a_plain_server_is_told(start_server: StartServer, authority: Authority) -> None:
    served = await start_server(http_port=free_port())
    for told in (await failures(served, ca=authority.ca)).values():
        assert "the server speaks no TLS there" in told


async def test_a_plain_client_of_a_tls_server_is_told(start_tls: StartServer) -> None:
    served = await start_tls()
    for way in (by_client(), by_async_client()):
        with pytest.raises(InputError, match="the server speaks TLS there; give tls=True"):
            await way(served)
    with pytest.raises(InputError, match="this port speaks TLS only; call it by https://"):
        await by_client("http://")(served)


async def test_a_server_that_wants_certificates_answers_who_has_one(
    start_tls: StartServer, authority: Authority
) -> None:
    served = await start_tls(tls_client_ca=authority.ca)
    pair = authority.issue("client", names=("pictures.example",))
    for way, ask in every_way(ca=authority.ca, **pair.client).items():
        assert await ask(served) == "green", way


async def test_a_client_without_a_certificate_or_with_a_strangers_is_told(
    start_tls: StartServer, authority: Authority, tmp_path: Path
) -> None:
    served = await start_tls(tls_client_ca=authority.ca)
    for told in (await failures(served, ca=authority.ca)).values():
        assert "the server wants a certificate of its clients; give cert and key" in told
    stranger = Authority(tmp_path / "other").issue("stranger")
    for told in (await failures(served, ca=authority.ca, **stranger.client)).values():
        assert "the server refuses the client's certificate" in told
    late = authority.issue("late", expired=True)
    for told in (await failures(served, ca=authority.ca, **late.client)).values():
        assert "the server refuses the client's certificate" in told


async def test_no_server_at_all_is_told_as_such(authority: Authority) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for at in (address, f"https://{address}"):
            with Client(at, ca=authority.ca) as client, pytest.raises(InputError, match="no server answers at"):
                client.model()


@pytest.mark.parametrize(
    ("names", "common_name", "client"),
    [
        (("pictures.example", "b.example"), None, "pictures.example"),
        (("10.0.0.7",), None, "10.0.0.7"),
        (("2001:db8::7",), None, "2001:db8::7"),
        (("someone@pictures.example",), None, "someone@pictures.example"),
        (("10.0.0.7", "pictures.example"), "Someone", "pictures.example"),
        (("*.pictures.example",), "Someone", "*.pictures.example"),
    ],
)
async def test_a_certificate_names_its_client_the_same_over_grpc_and_http(
    start_tls: StartServer,
    authority: Authority,
    names: tuple[str, ...],
    common_name: str | None,
    client: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = await start_tls(tls_client_ca=authority.ca)
    batcher = next(iter(served.server.repository)).batcher
    callers: list[Caller] = []
    submit = batcher.submit

    async def noted(*arguments: Any, **options: Any) -> Any:
        callers.append(options["caller"])
        return await submit(*arguments, **options)

    monkeypatch.setattr(batcher, "submit", noted)
    pair = authority.issue("client", names=names, common_name=common_name)
    for ask in every_way(ca=authority.ca, **pair.client).values():
        await ask(served)
    assert [caller.client for caller in callers] == [f"certificate:{client}"] * 3


async def test_calls_go_on_over_a_reload_and_new_connections_see_the_new_certificate(
    start_tls: StartServer, authority: Authority
) -> None:
    served = await start_tls()
    server = served.server
    assert server.http_port is not None
    certificates = server._certificates
    assert certificates is not None
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{server.port}", credentials) as channel:
        stub = ClassifierStub(channel)
        first = await asyncio.to_thread(shown_at, server.port, authority.ca)
        held = await served.busy_with(stub.Classify(raw_request(noise(1))))
        renewed = authority.issue()
        for _ in range(2):
            await asyncio.to_thread(certificates.check)
        assert certificates.reloads == 1
        for port in (server.port, server.http_port):
            assert await asyncio.to_thread(shown_at, port, authority.ca) == renewed.der != first
        served.backend.release()
        assert (await held).model == "colours"
        assert (await stub.Classify(raw_request(noise(1)))).model == "colours"
        assert channel.get_state() is grpc.ChannelConnectivity.READY
    for way, ask in every_way(ca=authority.ca).items():
        assert await ask(served) == "green", way


async def test_each_tcp_address_shows_the_new_certificate_and_unix_sockets_stay_plain(
    start_tls: StartServer, authority: Authority, folder: Path
) -> None:
    ports = [free_port(), free_port()]
    unix = f"unix:{folder}/its.sock"
    served = await start_tls(listen=(*(f"127.0.0.1:{port}" for port in ports), unix), tls_client_ca=authority.ca)
    certificates = served.server._certificates
    assert certificates is not None
    for _ in range(3):
        renewed = authority.issue()
        for _ in range(2):
            await asyncio.to_thread(certificates.check)
        for port in ports:
            assert await asyncio.to_thread(shown_at, port, authority.ca) == renewed.der
    async with AsyncClient(unix) as client:
        assert (await client.classify(plain("green"))).results[0].predictions[0].label == "green"


async def test_a_broken_pair_keeps_the_old_one_and_metrics_say_so(start_tls: StartServer, authority: Authority) -> None:
    served = await start_tls()
    server = served.server
    assert server.http_port is not None
    certificates = server._certificates
    assert certificates is not None
    first = await asyncio.to_thread(shown_at, server.port, authority.ca)
    replace(authority.folder / "server.pem", authority.issue("other").cert.read_bytes())
    for _ in range(3):
        await asyncio.to_thread(certificates.check)
    for port in (server.port, server.http_port):
        assert await asyncio.to_thread(shown_at, port, authority.ca) == first
    text = (await server._source.metrics()).decode()
    assert 'fuseline_tls_reloads_total{result="failed"} 1.0' in text
    assert 'fuseline_tls_reloads_total{result="ok"} 0.0' in text
    assert "fuseline_tls_certificate_expiry_timestamp_seconds 3" in text


async def test_the_server_watches_its_files_by_itself(
    start_tls: StartServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("fuseline.serve.tls.certificates._LOOK_S", 0.0)
    monkeypatch.setattr(Certificates, "check", lambda self: loop.call_soon_threadsafe(looked.set))
    await start_tls()
    async with asyncio.timeout(20):
        await looked.wait()


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01"])
async def test_a_handshake_of_grpc_that_is_never_finished_is_cut(
    start_tls: StartServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("fuseline.serve.grpc_options.HANDSHAKE_TIMEOUT_MS", 200)
    served = await start_tls()

    def ended() -> bytes:
        with socket.create_connection(("127.0.0.1", served.server.port), timeout=30) as client:
            client.sendall(begun)
            return client.recv(1)

    assert await asyncio.to_thread(ended) == b""


async def test_probes_that_verify_nobody_are_answered_as_the_kubelets_are(start_tls: StartServer) -> None:
    served = await start_tls()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def probe() -> int:
        url = f"https://127.0.0.1:{served.server.http_port}/readyz"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            return answer.status

    assert await asyncio.to_thread(probe) == 200


def test_files_that_can_not_be_used_end_the_start(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tls-cert .*no.pem: there is no such file"):
        Server.for_packages([package], settings(tls_cert=tmp_path / "no.pem", tls_key=tmp_path / "no.key"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"tls_cert": "a.pem"}, "--tls-cert was given without --tls-key"),
        ({"tls_key": "a.key"}, "--tls-key was given without --tls-cert"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca was given without --tls-cert"),
    ],
)
def test_the_flags_of_tls_need_each_other(flags: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Settings.model_validate(flags)
    assert Settings().certificate_files is None
    whole = Settings(tls_cert=Path("a"), tls_key=Path("b"), tls_client_ca=Path("c"))
    assert whole.certificate_files == CertificateFiles(Path("a"), Path("b"), Path("c"))


@pytest.mark.parametrize(
    ("address", "options", "told"),
    [
        ("http://host:1", {"tls": True}, "is an address of plain HTTP"),
        ("unix:/x.sock", {"tls": True}, "is a Unix socket, which has no TLS"),
        ("host:1", {"ca": "absent.pem"}, "absent.pem can't be read"),
        ("host:1", {"ca": __file__}, "holds no certificate in PEM to trust"),
        ("host:1", {"cert": "a.pem"}, "give cert and key both"),
        ("host:1", {"key": "a.key"}, "give cert and key both"),
        ("host:1", {"cert": __file__, "key": __file__}, "no certificate and its key in PEM"),
    ],
)
def test_what_can_not_be_used_for_a_client_is_told_before_any_call(
    address: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        Client(address, **options)


def test_an_encrypted_key_of_a_client_asks_nobody(authority: Authority) -> None:
    pair = authority.issue()
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(InputError, match="nobody is asked for its passphrase"):
        Client("host:1", ca=authority.ca, cert=pair.cert, key=pair.key)
