"""Every test of this folder runs on both event loops: that of the processes that serve, and that of the supervisor."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fuseline.serve.process.event_loop import loop_factory
from tests.serve.certificates import Authority
from tests.serve.conftest import Served, StartServer
from tests.serve.http import http_process
from tests.serve.http.http_process import Tls
from tests.serve.processes import free_port


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"serving": loop_factory() or asyncio.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
def start_http(start_server: StartServer) -> StartServer:
    """Start servers whose HTTP port is open: `served = await start_http(max_batch=4)`."""

    async def start(**changes: object) -> Served:
        return await start_server(http_port=free_port(), **changes)

    return start


@pytest.fixture(params=["plain", pytest.param("tls", marks=pytest.mark.slow)])
def plain_or_tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `serving` serve plainly, and once more over TLS: what holds for HTTP holds there too."""
    if request.param == "tls":
        monkeypatch.setattr(http_process, "default_tls", [Tls(Authority(tmp_path / "tls"))])
