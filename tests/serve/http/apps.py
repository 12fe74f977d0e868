"""Applications that tests serve."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    length = b"%d" % len(body)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the method, the target, and the body's length and first bytes."""
    message = await receive()
    assert not message["more_body"]
    query = scope["query_string"].decode()
    told = f"{scope['method']} {scope['path']}?{query} {len(message['body'])} ".encode()
    await answer(send, told + bytes(message["body"][:20]))


class Held:
    """Holds each request until `go` is set. `begun` counts those that have come, `cancelled` those that were ended."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.came = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.came.release()
        try:
            await self.go.wait()
            await echo(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended.release()


class Long:
    """Answers every request with `size` bytes."""

    def __init__(self, size: int) -> None:
        self.body = bytes(size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, self.body)


async def failing(scope: Scope, receive: Receive, send: Send) -> Any:
    raise ZeroDivisionError("secret")
