"""Every test of this folder runs on both event loops: that of the processes that serve, and that of the supervisor."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from fuseline.serve.event_loop import loop_factory
from tests.serve.conftest import Served, StartServer
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
