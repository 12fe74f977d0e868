"""Small real gRPC servers whose behaviour a test chooses, in threads of the test's process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

METHOD = "/little.Little/Ask"
STREAM = "/little.Little/Stream"


@contextmanager
def little_server(
    ask: Callable[[bytes], bytes] | None = None,
    stream: Callable[[Iterator[bytes]], Iterator[bytes]] | None = None,
    servicer: Callable[[grpc.Server], None] | None = None,
    threads: int = 64,
    stream_method: str = STREAM,
) -> Iterator[str]:
    """Answer `METHOD` by `ask` and `stream_method` by `stream`; or what `servicer` adds. Yields the address."""
    with ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool)
        handlers: dict[str, Any] = {}
        if ask is not None:
            handlers[METHOD] = grpc.unary_unary_rpc_method_handler(lambda request, _: ask(request))
        if stream is not None:
            handlers[stream_method] = grpc.stream_stream_rpc_method_handler(lambda requests, _: stream(requests))
        for path, handler in handlers.items():
            _, service, method = path.split("/")
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        if servicer is not None:
            servicer(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
