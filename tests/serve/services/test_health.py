"""Ready and live are two questions, which health answers under two names."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from fuseline.serve.services.health import LIVENESS, HealthService

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Watcher:
    """The context of a call that collects what is written."""

    def __init__(self) -> None:
        self.written: asyncio.Queue[Any] = asyncio.Queue()

    async def write(self, message: HealthCheckResponse) -> None:
        await self.written.put(message.status)


async def status(health: HealthService, service: str) -> int:
    return (await health.Check(HealthCheckRequest(service=service), None)).status


async def test_a_server_that_drains_is_not_ready_and_is_live() -> None:
    health = HealthService(lambda: True)
    assert [await status(health, name) for name in ("", LIVENESS)] == [SERVING, SERVING]
    await health.enter_graceful_shutdown()
    assert [await status(health, name) for name in ("", LIVENESS)] == [NOT_SERVING, SERVING]


async def test_a_server_that_replaces_a_lane_is_not_ready_and_is_live() -> None:
    health = HealthService(lambda: True)
    await health.set("", NOT_SERVING)
    assert [await status(health, name) for name in ("", LIVENESS)] == [NOT_SERVING, SERVING]


async def test_who_watches_liveness_is_told_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.serve.services.health._LOOK_S", 0)
    is_live = True
    health = HealthService(lambda: is_live)
    watcher = Watcher()
    watching = asyncio.create_task(health.Watch(HealthCheckRequest(service=LIVENESS), watcher))
    assert await watcher.written.get() == SERVING
    is_live = False
    assert await watcher.written.get() == NOT_SERVING
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert watcher.written.empty()
