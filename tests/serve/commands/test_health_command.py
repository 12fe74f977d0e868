"""`fuseline health` against a real server, as a container's health check runs it."""

import socket

import pytest

from tests.commands import exit_code


def test_a_server_that_serves_is_0(live_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("fuseline", "health", "--address", live_address) == 0
    assert exit_code("fuseline", "health", "--address", live_address, "--service", "fuseline.v1.Classifier") == 0
    assert capsys.readouterr().out == "SERVING\nSERVING\n"


def test_the_port_is_that_of_the_servers_own_variable(live_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_PORT", live_address.rpartition(":")[2])
    assert exit_code("fuseline", "health") == 0


def test_a_service_that_is_not_served_is_1(live_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("fuseline", "health", "--address", live_address, "--service", "nobody") == 1
    assert "NOT_FOUND" in capsys.readouterr().out


def test_no_server_is_1_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert exit_code("fuseline", "health", "--address", address) == 1
    assert capsys.readouterr().out.startswith(f"no answer from {address}: UNAVAILABLE")


def test_a_server_is_asked_over_http_too(live_http_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("fuseline", "health", "--address", live_http_address) == 0
    assert capsys.readouterr().out == "SERVING\n"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert exit_code("fuseline", "health", "--address", address) == 1
    assert address in capsys.readouterr().out
    assert exit_code("fuseline", "health", "--address", live_http_address, "--service", "any") == 1
