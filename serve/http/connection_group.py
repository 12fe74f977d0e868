"""What the connections of one HTTP server share."""

from dataclasses import dataclass, field

import uvicorn
from uvicorn.server import ServerState

from fuseline.serve.access.gate import Gate
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.refusal import Refusal


@dataclass(slots=True)
class ConnectionGroup:
    """State of one server's connections, on its event loop."""

    config: uvicorn.Config
    state: ServerState
    """uvicorn's: connections, tasks of requests, and the header fields of every answer."""
    limits: HttpLimits
    gate: Gate | None = None
    """Knows the tokens; None: none is asked for."""
    now: float = 0.0
    """Time of the last sweep, on the event loop's clock: reading it costs a request nothing."""
    draining: bool = False
    """Whether each connection closes after its present answer."""
    held_bytes: int = field(default=0, init=False)
    """Bytes of bodies that are not answered, and of answers that are not sent."""

    def charge(self, size: int) -> None:
        """Count `size` more bytes. Raises `Refusal` when all connections together hold too many."""
        if self.held_bytes + size > self.limits.max_total_bytes:
            raise Refusal(
                503,
                f"the requests under way have {self.limits.max_total_bytes} bytes, the most that is held at a time; "
                "send this again later",
                ((b"retry-after", b"1"),),
            )
        self.held_bytes += size

    def release(self, size: int) -> None:
        """Count `size` bytes less."""
        self.held_bytes -= size
