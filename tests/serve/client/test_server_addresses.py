"""Which servers the addresses of a client are, and what is no address."""

import pytest

from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.client.client_token import TOKEN_VARIABLE
from fuseline.serve.client.name_lookup import resolved
from fuseline.serve.client.server_addresses import Target, targets_of
from fuseline.serve.errors import InputError


@pytest.mark.parametrize(
    "addresses", ["a:8001,[::1]:8002,unix:/s", " a:8001 , [::1]:8002,unix:/s", ["a:8001", "[::1]:8002", "unix:/s"]]
)
def test_several_addresses_are_one_string_or_a_sequence(addresses: str | list[str]) -> None:
    assert targets_of(addresses) == (Target("a:8001", None), Target("[::1]:8002", None), Target("unix:/s", None))


@pytest.mark.parametrize(
    "address", ["a:8001", "a", "ipv4:1.2.3.4:1", "dns://8.8.8.8/a:8001", "unix:/a,b", "http://a:8002", "xds:///a"]
)
def test_a_single_address_is_taken_as_it_is(address: str) -> None:
    assert targets_of(address) == targets_of([address]) == (Target(address, None),)


@pytest.mark.parametrize("address", ["dns:///pods.example:8001", "dns:pods.example:8001", "DNS:///pods.example:8001"])
def test_a_name_of_several_has_the_scheme_dns(address: str) -> None:
    assert targets_of(address) == (Target("dns:///pods.example:8001", ("pods.example", 8001)),)
    assert targets_of([address, "a:1"])[1] == Target("a:1", None)


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ("", "no address was given"),
        ([], "no address was given"),
        ("a:8001,", "'' is no address"),
        ("a:8001,b", "'b' is no address of a server; expected HOST:PORT"),
        ("a:8001,b:0", "'b:0' is no address"),
        ("a:8001,b:65536", "'b:65536' is no address"),
        ("a:8001,b c:1", "'b c:1' is no address"),
        (["a:8001", "::1:8001"], "'::1:8001' is no address"),
        (["a:8001", "dns://8.8.8.8/b:1"], "no address of a server"),
        (["a:8001", "a:1,b:2"], "'a:1,b:2' is no address"),
        (["a:8001", None], "None is no address"),
        ("dns:///pods.example", "'dns:///pods.example' is no address of a server; expected .*dns:///NAME:PORT"),
        ("dns:///", "no address of a server"),
        ("a:8001,a:8001", "a:8001 is given twice"),
        ("a:8001,http://b:8002", "are of gRPC and http; give those of one kind"),
        ("https://a:1,http://b:2", "are of http and https"),
    ],
)
@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_what_is_no_address_is_refused_in_one_line(client_class: type, addresses: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        client_class(addresses)
    assert "\n" not in str(refused.value)


def test_a_url_among_several_must_be_one() -> None:
    with pytest.raises(InputError, match="is no address of HTTP"):
        Client("http://a:1,http://b:2?x=1")


def test_a_token_may_travel_in_clear_to_all_of_the_servers_or_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    Client("127.0.0.1:1,localhost:2,unix:/s", token="t").close()
    for addresses in ("127.0.0.1:1,far.example:2", "far.example:2,127.0.0.1:1", "dns:///localhost.example:1"):
        for client_class in (Client, AsyncClient):
            with pytest.raises(InputError, match=r"would go to .*example.* unencrypted"):
                client_class(addresses, token="t")
            client_class(addresses, token="t", token_in_clear=True)
            client_class(addresses, token="t", tls=True)


def test_tls_is_of_all_servers_or_refused() -> None:
    with pytest.raises(InputError, match="a Unix socket, which has no TLS"):
        Client("a:1,unix:/s", tls=True)
    with pytest.raises(InputError, match="plain HTTP"):
        Client("http://a:1,http://b:2", tls=True)


@pytest.mark.parametrize("hedge_after_s", [0.0, -1.0, float("nan")])
def test_a_time_to_hedge_is_above_0(hedge_after_s: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        Client("a:1,b:2", hedge_after_s=hedge_after_s)


def test_hedging_needs_a_second_server_and_grpc() -> None:
    with pytest.raises(InputError, match="needs a second server"):
        AsyncClient("a:1", hedge_after_s=0.1)
    with pytest.raises(InputError, match="of gRPC"):
        Client("http://a:1,http://b:2", hedge_after_s=0.1)


def test_the_system_resolver_gives_addresses_of_one_family_each_once() -> None:
    found = resolved("localhost", 8001)
    assert found in (["127.0.0.1:8001"], ["[::1]:8001"])


async def test_a_name_that_is_not_known_is_one_line() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    said = "no server is known: pods.example can't be looked up .Name or service not known"
    with Client("dns:///pods.example:1", resolver=unknown) as client, pytest.raises(InputError, match=said):
        client.model()
    async with AsyncClient("dns:///pods.example:1", resolver=lambda *_: []) as client:
        with pytest.raises(InputError, match=r"no server is known: pods.example has no address"):
            await client.model()
