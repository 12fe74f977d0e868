"""How calls over gRPC fail."""

from collections.abc import Awaitable

import grpc
import pytest


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """Return the error that `call` ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """Return the status code and the details that `call` ends with."""
    error = await failure(call)
    return error.code(), error.details() or ""
