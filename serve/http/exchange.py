"""One request, which is whole, and its answer."""

import asyncio
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from fuseline.serve.errors import log_once
from fuseline.serve.http.content_encoding import decompressed
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.refusal import Refusal


class Exchange(RequestResponseCycle):
    """Runs the application for one request. An error that the application doesn't answer becomes 500 with an id."""

    encoding: bytes = b""
    """Content encoding of the body; empty: it is sent as it is."""
    limits: HttpLimits
    charged_bytes: int = 0
    """Bytes that count in the total of all connections until the answer is sent."""
    charge: Any
    """Counts more bytes in that total; raises `Refusal`."""

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]
        """Answer the request by `app`. When the client has gone the task that runs this is cancelled."""
        try:
            if self.encoding:
                await self._decompress()
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
            if not (self.response_complete or self.disconnected):
                raise RuntimeError("the application returned without a whole answer")
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Refusal as refusal:
            await self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as 500
            error_id = log_once(error)
            if self.response_started:
                self.transport.abort()
            else:
                await self._refuse(
                    Refusal(
                        500,
                        "the server failed on this request; other requests are not affected; its log has more under "
                        f"error {error_id}",
                    )
                )
        finally:
            self.on_response = lambda: None

    async def receive(self) -> Any:
        """Return the whole body in one message; after that, once the client has gone or has its answer, its leaving."""
        if self.more_body:
            self.more_body = False
            body, self.body = self.body, bytearray()
            return {"type": "http.request", "body": body, "more_body": False}
        if not (self.disconnected or self.response_complete):
            await self.message_event.wait()
        return {"type": "http.disconnect"}

    async def _decompress(self) -> None:
        self.body = await decompressed(self.body, self.encoding, self.limits.max_body_bytes, self._charge_more)
        length = (b"content-length", b"%d" % len(self.body))
        dropped = (b"content-encoding", b"content-length", b"transfer-encoding")
        self.scope["headers"] = [*(pair for pair in self.scope["headers"] if pair[0] not in dropped), length]

    def _charge_more(self, size: int) -> None:
        self.charge(size)
        self.charged_bytes += size

    async def _refuse(self, refusal: Refusal) -> None:
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": list(refusal.headers)})
        await self.send({"type": "http.response.body", "body": refusal.body, "more_body": False})
