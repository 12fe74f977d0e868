"""A browser, real servers, and pages that tell of everything that must not happen in them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import running_chromium
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import write_colours_package
from tests.serve.processes import ROOT, ServerProcess, free_port, server_process

PICTURES = ROOT / "build" / "browser"
"""Where screenshots are left, to be looked at."""
FAST = ("--backend", "onnxruntime", "--threads", 1)

OpenPage = Callable[..., WatchedPage]
StartServer = Callable[..., ServerProcess]

expect.set_options(timeout=10_000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each has a context of its own."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Open the page of a server: `page = open_page(server, width=400, color_scheme="dark")`; watched to the end.

    `script` runs before those of the page; `scheme` is what the server speaks.
    """
    with ExitStack() as stack:
        pages = []

        def open(
            server: ServerProcess,
            *,
            width: int = 1200,
            height: int = 900,
            script: str = "",
            scheme: str = "http",
            **context: Any,
        ) -> WatchedPage:
            its = chromium.new_context(viewport={"width": width, "height": height}, **context)
            stack.callback(its.close)
            its.add_init_script(script)
            pages.append(WatchedPage(its.new_page(), f"{scheme}://{server.http_address}"))
            return pages[-1].open()

        yield open
        for page in pages:
            page.check()


@pytest.fixture(scope="session")
def resnet20_package(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the trained CIFAR ResNet-20, with what its export found out."""
    out = tmp_path_factory.mktemp("packages") / "resnet20"
    arguments = (
        *(shared_data / "checkpoints" / "resnet20-12fca82f.th", "--out", out),
        *("--images", shared_data / "cifar10-test", "--max-images", 64),
        *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
    )
    run("export", *arguments)
    return out


@pytest.fixture(scope="session")
def colours_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, where no trained one is needed."""
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


@pytest.fixture(scope="session")
def start_session_server() -> Iterator[StartServer]:
    yield from _starting()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers that last as long as the test: `server = start_server(package, "--workers", 2)`."""
    yield from _starting()


def _starting() -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(*arguments: object, port: int = 0, http_port: int | None = None) -> ServerProcess:
            ports = ("--port", port, "--http-port", http_port or free_port())
            return stack.enter_context(server_process(*arguments, *ports, *FAST))

        yield start


@pytest.fixture(scope="session")
def resnet20(resnet20_package: Path, start_session_server: StartServer) -> ServerProcess:
    """A server of it."""
    return start_session_server(resnet20_package)


@pytest.fixture(scope="session")
def colours(colours_package: Path, start_session_server: StartServer) -> ServerProcess:
    """A server of the tiny model."""
    return start_session_server(colours_package)


@pytest.fixture(scope="session")
def cifar_pictures(shared_data: Path) -> list[Path]:
    """One JPEG of each class."""
    return [min(folder.glob("*.jpg")) for folder in sorted((shared_data / "cifar10-test").iterdir())]


def run(*arguments: object, timeout_s: float = 120) -> str:
    """Run `fuseline ARGUMENTS`; return what it printed."""
    command = [sys.executable, "-m", "fuseline", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def classified(server: ServerProcess, *paths: Path) -> list[str]:
    """The first label that `fuseline classify` prints for each file."""
    lines = run("classify", *paths, "--address", server.address, "--json").splitlines()
    return [json.loads(line)["predictions"][0]["label"] for line in lines]
