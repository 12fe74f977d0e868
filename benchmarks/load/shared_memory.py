"""Pictures that a server reads from system shared memory instead of from its requests, by Triton's extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.load.calls import CHANNEL_OPTIONS
from fuseline.benchmarks.load.protocols import OpenInference, Pictures
from fuseline.protos.open_inference_pb2 import (
    ModelInferRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.errors import BackendError

_FOLDER = "/dev/shm"  # noqa: S108 where shm_open puts segments, under the names that the protocol has as keys
_TIMEOUT_S = 10.0


class SharedRegion:
    """A segment of shared memory that grows by what is placed in it and is gone when this object is."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="fuseline-bench-", dir=_FOLDER, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._offsets: dict[bytes, int] = {}
        self._size = 0

    @property
    def name(self) -> str:
        """Name of the region and, after a slash, its key."""
        return Path(self._file.name).name

    def place(self, content: bytes) -> int:
        """Return the offset of `content`, which is written behind the rest unless it is there."""
        if content not in self._offsets:
            self._file.write(content)
            self._offsets[content] = self._size
            self._size += len(content)
        return self._offsets[content]

    @contextmanager
    def registered(self, address: str) -> Iterator[None]:
        """Have the server at `address`, HOST:PORT of gRPC, know what has been placed so far.

        Raises:
            BackendError: it won't.
        """
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            asked = SystemSharedMemoryRegisterRequest(name=self.name, key=f"/{self.name}", byte_size=self._size)
            try:
                stub.SystemSharedMemoryRegister(asked, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                said = f"{error.code().name}: {error.details()}"
                raise BackendError(f"{address} takes no shared memory: {said}") from error
            try:
                yield
            finally:
                stub.SystemSharedMemoryUnregister(
                    SystemSharedMemoryUnregisterRequest(name=self.name), timeout=_TIMEOUT_S
                )


@dataclass(frozen=True, slots=True)
class SharedMemoryInference:
    """`ModelInfer` whose pixels lie in `region`; its answers are those of `plain`, which asks for the same in messages.

    Requests hold while the region is registered with the server.
    """

    plain: OpenInference
    region: SharedRegion = field(default_factory=SharedRegion)
    name = "shared-memory"
    is_stream = False

    @property
    def method(self) -> str:
        return self.plain.method

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        request = ModelInferRequest.FromString(self.plain.request(pictures, with_logits=with_logits))
        (content,), (tensor,) = request.raw_input_contents, request.inputs
        tensor.parameters["shared_memory_region"].string_param = self.region.name
        tensor.parameters["shared_memory_offset"].int64_param = self.region.place(content)
        tensor.parameters["shared_memory_byte_size"].int64_param = len(content)
        del request.raw_input_contents[:]
        return request.SerializeToString()

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        return self.plain.logits(answer)

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        self.plain.check(who, precision, answer, expected)
