"""How the demo serves, and serves on when it is told to."""

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.fakes.colours import write_colours_package
from tests.serve.processes import ROOT, free_port


@pytest.fixture(scope="module")
def demo():
    return importlib.import_module("demo")


@pytest.fixture(scope="module")
def server_process():
    return importlib.import_module("server_process")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    package = write_colours_package(tmp_path_factory.mktemp("packages") / "colours")
    return [sys.executable, "-m", "serve", str(package), "--backend", "onnxruntime", "--port", "0", "--http-port"]


def test_a_server_tells_both_addresses_and_drains_at_the_end(server_process, command, tmp_path: Path) -> None:
    port = free_port()
    with server_process.running_server([*command, str(port)], ROOT, tmp_path / "log") as server:
        assert server.http_address == f"127.0.0.1:{port}"
        assert server.address != server.http_address
        assert server.page() == f"http://127.0.0.1:{port}/"
        # Ctrl-C goes to the group of whoever started it.
        assert os.getpgid(server.process.pid) == server.process.pid
    assert server.process.returncode == 0
    assert "drained" in (tmp_path / "log").read_text()


def test_a_server_that_shows_no_page_has_none(server_process, command, tmp_path: Path) -> None:
    arguments = [*command, str(free_port()), "--no-console"]
    with server_process.running_server(arguments, ROOT, tmp_path / "log") as server:
        assert server.http_address is not None
        assert server.page() is None


def test_a_server_without_http_has_no_page(server_process, command, tmp_path: Path) -> None:
    with server_process.running_server([*command, "0"], ROOT, tmp_path / "log") as server:
        assert server.http_address is None
        assert server.page() is None


class _Kept:
    """A server that is told to end as soon as someone waits for it."""

    address = "127.0.0.1:8001"

    def __init__(self, number: int) -> None:
        self._number = number

    def page(self) -> str:
        return "http://127.0.0.1:8002/"

    def wait(self) -> None:
        signal.raise_signal(self._number)
        raise AssertionError("the signal was not heeded")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_kept_says_where_until_it_is_told_to_end(demo, capsys, number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    demo.keep_serving(_Kept(number))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().out == ("serving on 127.0.0.1:8001 until Ctrl-C\nwatch it: http://127.0.0.1:8002/\n")
