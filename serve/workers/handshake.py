"""How a worker's connection to the backend process begins.

The backend says what it serves, in a line of JSON; the worker answers with descriptors of the memory that it made for
each model; then both write records.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.model import Model
from fuseline.serve.model_package import Manifest
from fuseline.serve.workers.arena import ArenaShape

_MAX_LINE_BYTES = 64 * 2**20


class ServedModel(BaseModel):
    """What a worker has to know of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    manifest: Manifest
    backend: BackendFacts
    backend_reason: str
    unsaturated_rows: int
    """See `fuseline.serve.batching.batcher.Batcher`."""

    @property
    def name(self) -> str:
        """The name under which requests find it."""
        return self.manifest.name

    def arena_shape(self, max_queue_rows: int) -> ArenaShape:
        """For a worker that all the rows may come from: those that wait, that run, and whose answers are on the way."""
        return ArenaShape(
            row_shape=self.manifest.input.row_shape,
            classes=self.manifest.classes,
            slots=max_queue_rows + 2 * self.backend.buckets[-1],
        )


class Welcome(BaseModel):
    """What the backend process serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ServedModel, ...]


def welcome_to(models: Sequence[Model], batchers: Sequence[Batcher]) -> Welcome:
    """What workers are told of `models` and the batchers before them."""
    return Welcome(
        models=tuple(
            ServedModel(
                folder=model.package.folder,
                manifest=model.manifest,
                backend=model.backend,
                backend_reason=model.backend_reason,
                unsaturated_rows=batcher.unsaturated_rows,
            )
            for model, batcher in zip(models, batchers, strict=True)
        )
    )


async def receive_welcome(connection: socket.socket) -> Welcome:
    """Read what the backend says. Raises `ConnectionError` when it ends before."""
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, 2**16)
        if not data or len(line) > _MAX_LINE_BYTES:
            raise ConnectionResetError("the backend process ended before it had said what it serves")
        line += data
    return Welcome.model_validate_json(line)


async def welcome_worker(connection: socket.socket, welcome: Welcome) -> list[int]:
    """Say what is served; return the descriptors of the worker's memory, one for each model, the caller's to close.

    Raises:
        ConnectionError: the worker has gone.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, welcome.model_dump_json().encode() + b"\n")
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    _, files, _, _ = socket.recv_fds(connection, 1, len(welcome.models))
    if len(files) != len(welcome.models):
        for file in files:
            os.close(file)
        raise ConnectionResetError("the worker ended before it had sent its memory")
    return files


def answer_welcome(connection: socket.socket, files: list[int]) -> None:
    """Send the descriptors of the worker's memory, which stay the caller's."""
    socket.send_fds(connection, [b"\0"], files)
