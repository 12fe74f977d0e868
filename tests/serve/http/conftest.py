"""A real server whose HTTP port is open."""

import pytest

from tests.serve.conftest import Served, StartServer
from tests.serve.processes import free_port


@pytest.fixture
def start_http(start_server: StartServer) -> StartServer:
    """Start servers: `served = await start_http(max_batch=4)`."""

    async def start(**changes: object) -> Served:
        return await start_server(http_port=free_port(), **changes)

    return start
