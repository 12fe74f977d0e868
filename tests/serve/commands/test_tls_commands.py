"""`fuseline serve`, `classify` and `health` over TLS, as processes and flags."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import Run
from tests.fakes.colours import encoded, plain
from tests.serve.certificates import Authority, Pair
from tests.serve.processes import FAST, ServerProcess, finished, free_port, server_process


@dataclass
class Offer:
    server: ServerProcess
    authority: Authority
    pair: Pair
    client: Pair


@pytest.fixture(scope="module")
def offer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offer]:
    """A server whose certificate names another host, and which wants certificates of its clients."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    pair, client = authority.issue(names=("pictures.example",)), authority.issue("client", names=("me.example",))
    flags = (*pair.flags, "--tls-client-ca", authority.ca)
    with server_process(package, *FAST, "--http-port", free_port(), *flags) as server:
        yield Offer(server, authority, pair, client)


def client_flags(offer: Offer) -> tuple[object, ...]:
    return *offer.client.flags, "--tls-ca", offer.authority.ca, "--tls-server-name", "pictures.example"


def test_classify_and_health_take_the_flags_of_tls(offer: Offer, run_fuseline: Run, tmp_path: Path) -> None:
    image = tmp_path / "green.png"
    image.write_bytes(encoded(plain("green"), "PNG"))
    for address in (offer.server.address, f"https://{offer.server.http_address}"):
        code, out, err = run_fuseline("classify", image, "--address", address, "--json", *client_flags(offer))
        assert (code, err) == (0, "")
        assert json.loads(out)["predictions"][0]["label"] == "green"
        assert run_fuseline("health", "--address", address, *client_flags(offer))[:2] == (0, "SERVING\n")


def test_the_flags_have_variables_of_their_own(
    offer: Offer, run_fuseline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_CA", str(offer.authority.ca))
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_CERT", str(offer.client.cert))
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_KEY", str(offer.client.key))
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_SERVER_NAME", "pictures.example")
    assert run_fuseline("health", "--address", offer.server.address)[:2] == (0, "SERVING\n")


def test_health_says_why_it_gets_no_answer(offer: Offer, run_fuseline: Run) -> None:
    address = offer.server.address
    code, out, _ = run_fuseline("health", "--address", address)
    assert (code, out) == (1, out)
    assert "the server speaks TLS there" in out
    for at in (address, f"https://{offer.server.http_address}"):
        trusted = ("--tls-ca", offer.authority.ca, "--tls-server-name", "pictures.example")
        code, out, _ = run_fuseline("health", "--address", at, *trusted)
        assert code == 1
        assert "the server wants a certificate of its clients" in out


def test_health_in_the_servers_own_environment_asks_by_the_servers_own_certificate(
    offer: Offer, run_fuseline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSELINE_PORT", offer.server.address.rpartition(":")[2])
    monkeypatch.setenv("FUSELINE_TLS_CERT", str(offer.pair.cert))
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_CERT", str(offer.client.cert))
    monkeypatch.setenv("FUSELINE_CLIENT_TLS_KEY", str(offer.client.key))
    assert run_fuseline("health")[:2] == (0, "SERVING\n")
    # Another server than its own is not taken for it.
    monkeypatch.setenv("FUSELINE_TLS_CERT", str(offer.client.cert))
    code, out, _ = run_fuseline("health")
    assert code == 1
    assert "not trusted" in out


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_can_not_use_its_certificate_does_not_start(package: Path, tmp_path: Path, workers: int) -> None:
    pair = Authority(tmp_path / "tls").issue()
    pair.key.write_text("nothing")
    code, out, err = finished(package, *FAST, *pair.flags, "--workers", workers)
    assert (code, out) == (2, "")
    assert f"--tls-key {pair.key} holds no private key in PEM" in err
    assert "Traceback" not in err
