"""`grpc.health.v1`: whether the server and each of its services is ready, and apart from that whether it is live."""

import asyncio
from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

LIVENESS = "liveness"
"""Service under which health tells what `/livez` does. A server that drains, or that replaces a lane, is not ready and
is live: who restarts a server by its readiness restarts one that would have been well by itself. It is the name that
https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes gives as example.
"""

_LOOK_S = 0.5
"""Seconds between two looks for those who watch `LIVENESS`."""


class HealthService(health_aio.HealthServicer):
    """The health of services that are set, and `LIVENESS`, which is asked for whenever somebody wants to know."""

    def __init__(self, is_live: Callable[[], bool]) -> None:
        super().__init__()
        self._is_live = is_live

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802
        """Return the status of one service; NOT_FOUND for one that there is not."""
        if request.service == LIVENESS:
            return self._liveness()
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Send the status of one service now, and whenever it changes, until the call ends."""
        if request.service != LIVENESS:
            await super().Watch(request, context)
            return
        last = None
        while True:
            if (status := self._liveness()) != last:
                await context.write(status)
                last = status
            await asyncio.sleep(_LOOK_S)

    def _liveness(self) -> health_pb2.HealthCheckResponse:
        is_live = self._is_live()
        return health_pb2.HealthCheckResponse(
            status=health_pb2.HealthCheckResponse.SERVING if is_live else health_pb2.HealthCheckResponse.NOT_SERVING
        )
