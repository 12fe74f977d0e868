"""Addresses that a server listens on."""

import pytest

from fuseline.serve.listening.addresses import host_to_call, is_local


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.0.0.1:8001",
        "127.8.9.1:0",
        "localhost",
        "LocalHost:8001",
        "::1",
        "[::1]:8001",
        "::ffff:127.0.0.1",
        "unix:/run/fuseline.sock",
        "unix:relative.sock",
        "unix:///run/fuseline.sock",
        "unix-abstract:fuseline",
    ],
)
def test_loopback_and_unix_addresses_are_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.0.0.0:8001",
        "::",
        "[::]:8001",
        "10.0.0.1:8001",
        "[fe80::1%eth0]:8001",
        "example.com:8001",
        "localhost.example.com:8001",
        "",
    ],
)
def test_addresses_that_others_can_reach_and_names_not_looked_up_are_not_local(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize(
    ("host", "called"),
    [
        ("0.0.0.0", "localhost"),
        ("::", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fuseline.example", "fuseline.example"),
    ],
)
def test_a_server_on_every_address_is_called_by_localhost(host: str, called: str) -> None:
    assert host_to_call(host) == called
