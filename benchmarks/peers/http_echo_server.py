"""The floor of a Python HTTP server: a bare uvicorn that answers 40 bytes to any body, without a framework or a model.

`python -m fuseline.benchmarks.peers.http_echo_server` takes a free loopback port and says which. It has httptools and
uvloop, as uvicorn chooses them where they are installed, and as Fuseline's own HTTP port has them.
"""

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

HTTP_ECHO = "/"
_REPLY = bytes(40)
_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(_REPLY))],
}
_BODY = {"type": "http.response.body", "body": _REPLY}

Message = MutableMapping[str, Any]


async def _echo(
    _: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    while (await receive()).get("more_body"):
        pass
    await send(_HEAD)
    await send(_BODY)


def _main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print("{}:{}".format(*listener.getsockname()), flush=True)
    config = uvicorn.Config(_echo, lifespan="off", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _main()
