"""How a worker's connection to the backend process begins.

The backend announces what it serves, in a line of JSON, every model under its number. The worker answers with those
numbers and, for each, a descriptor of the memory that it made for the model. Then both write records, which name a
model by its number. Each new connection begins with what is served at that time.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from struct import pack

from pydantic import BaseModel, ConfigDict

from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.lane_choice import LaneChoice
from fuseline.serve.model import Model
from fuseline.serve.model_package import Manifest
from fuseline.serve.workers.arena import ArenaShape

_MAX_LINE_BYTES = 64 * 2**20


class ServedModel(BaseModel):
    """Everything that a worker has to know about a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    manifest: Manifest
    backend: BackendFacts
    backend_reason: str
    lanes: LaneChoice
    policy: BatchPolicy
    """Policy of the backend's batcher."""

    @property
    def name(self) -> str:
        """Name under which requests find the model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version under which requests find the model."""
        return self.manifest.version

    @property
    def arena_shape(self) -> ArenaShape:
        """Shape that suffices if all rows that wait, run, or are being answered come from one worker."""
        return ArenaShape(
            row_shape=self.manifest.input.row_shape,
            row_dtype=self.manifest.input.row_dtype,
            classes=self.manifest.classes,
            slots=self.policy.max_queue_rows + (1 + self.policy.lanes) * self.policy.buckets[-1],
        )


class Announcement(BaseModel):
    """The models that the backend process serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[int, ServedModel]
    """Models by number. The backend process numbers each model that it loads, and never uses a number again, so that a
    record that is under way while models come and go can't be taken for another model's. A new backend process may give
    the same models other numbers."""


def served_model(model: Model, batcher: Batcher) -> ServedModel:
    """Return what workers have to know about `model` and its batcher."""
    return ServedModel(
        folder=model.package.folder,
        manifest=model.manifest,
        backend=model.backend,
        backend_reason=model.backend_reason,
        lanes=model.lanes,
        policy=batcher.policy,
    )


async def receive_announcement(connection: socket.socket) -> Announcement:
    """Return the backend's announcement. Raises `ConnectionError` when the backend ends before it is complete."""
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, 2**16)
        if not data or len(line) > _MAX_LINE_BYTES:
            raise ConnectionResetError("the backend process ended before it had said what it serves")
        line += data
    return Announcement.model_validate_json(line)


def send_memory(connection: socket.socket, files: Mapping[int, int]) -> None:
    """Answer an announcement with the descriptors of the worker's memory by model number; they stay the caller's."""
    socket.send_fds(connection, [pack(f"={len(files)}I", *files)], list(files.values()))


async def announce(connection: socket.socket, announcement: Announcement) -> dict[int, int]:
    """Send a worker the announcement; return the descriptors of its memory by model number, the caller's to close.

    Raises:
        ConnectionError: the worker has gone.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, announcement.model_dump_json().encode() + b"\n")
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    count = len(announcement.models)
    data, files, _, _ = socket.recv_fds(connection, 4 * count, count)
    numbers = memoryview(data).cast("I").tolist()
    if len(files) != len(numbers) or set(numbers) != announcement.models.keys():
        for file in files:
            os.close(file)
        raise ConnectionResetError("the worker ended before it had sent its memory")
    return dict(zip(numbers, files, strict=True))
