"""The servers that served targets call, started when the first of them needs one."""

import asyncio
import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import grpc

from fuseline.serve.access.token_file import add_line, token_line
from fuseline.serve.server import Server
from fuseline.serve.settings import Settings
from tests.fakes.colours import write_colours_package
from tests.serve.processes import FAST, free_port, server_process

TOKENS = {role: f"fuseline_{role:_>43}" for role in ("infer", "admin")}
"""What `Servers.guarded` knows: the same in every run, so that an input means the same."""


@dataclass(frozen=True)
class Address:
    """Where a server is called."""

    channel: grpc.Channel
    http: str
    """`host:port` of HTTP."""


class Servers:
    """The servers of one run, of which `stack` ends those that were started.

    They are processes of their own, whose log is looked at, or, `in_thread`, of this one, whose coverage is seen.
    """

    def __init__(self, stack: ExitStack, *, in_thread: bool = False) -> None:
        self._stack = stack
        self._in_thread = in_thread
        self._log: deque[str] = deque()
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    @cached_property
    def open(self) -> Address:
        """One that asks nobody for a token: `colours` is always served, and `tints` may be loaded."""
        write_colours_package(self._folder / "models/tints", name="tints")
        return self._started(model_repository=self._folder / "models", model_control_mode="explicit", load_model="*")

    @cached_property
    def guarded(self) -> Address:
        """One that asks for tokens, and traces requests."""
        hashes = self._folder / "hashes"
        for role, token in TOKENS.items():
            add_line(hashes, token_line(token, name=f"its-{role}", role=role))
        collector = self._stack.enter_context(_collector())
        return self._started({"OTEL_EXPORTER_OTLP_ENDPOINT": collector}, token_hashes=hashes)

    def complaints(self) -> list[str]:
        """Return what processes have logged since this was asked last, but for what they do as they are told."""
        lines = [self._log.popleft() for _ in range(len(self._log))]
        return [line for line in lines if not re.search(r" (INFO|DEBUG) fuseline\.", line)]

    def _started(self, environment: Mapping[str, str] | None = None, **flags: object) -> Address:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        package = write_colours_package(folder / "colours")
        start = _threaded if self._in_thread else _process
        address, http = self._stack.enter_context(start(package, environment or {}, flags, self._log))
        return Address(self._stack.enter_context(grpc.insecure_channel(address)), http)


@contextmanager
def _process(
    package: Path, environment: Mapping[str, str], flags: Mapping[str, object], log: deque[str]
) -> Iterator[tuple[str, str]]:
    texts = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", value)]
    with server_process(
        package, *FAST, "--http-port", free_port(), *texts, env=os.environ | dict(environment)
    ) as server:
        assert server.process.stderr is not None
        threading.Thread(target=_read, args=(server.process.stderr, log), daemon=True).start()
        yield server.address, str(server.http_address)


def _read(stream: TextIO, log: deque[str]) -> None:
    # It is closed once its process has been ended.
    with suppress(ValueError):
        log.extend(stream)


@contextmanager
def _collector() -> Iterator[str]:
    """The address of what takes spans, and forgets them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _threaded(
    package: Path, environment: Mapping[str, str], flags: Mapping[str, object], _log: deque[str]
) -> Iterator[tuple[str, str]]:
    many = {name: (value,) if name in {"model_repository", "load_model"} else value for name, value in flags.items()}
    http_port = free_port()
    settings = Settings(port=0, http_port=http_port, backend="onnxruntime", threads=1, **many)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def started() -> Server:
        server = Server.for_packages([package], settings)
        await server.start()
        return server

    with patch.dict(os.environ, environment):
        server = asyncio.run_coroutine_threadsafe(started(), loop).result(60)
    try:
        yield f"127.0.0.1:{server.port}", f"127.0.0.1:{http_port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.drain(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
