"""Run by the Python of .venv-tritonclient: system shared memory both ways, by tritonclient's own utilities."""

import base64
import os
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from triton_common import MODEL, elements_of, logits_of, outcome, run
from tritonclient.utils import serialize_byte_tensor

SIZE = 16384
"""Bytes of each region; more than a page, so that one that shrinks has pages that are gone."""


def main(grpc_address: str, http_address: str, pixels: Any, files: list[bytes]) -> dict[str, Any]:
    seen = {}
    for name, client, kind in (
        ("gRPC", triton_grpc.InferenceServerClient(grpc_address), triton_grpc),
        ("HTTP", triton_http.InferenceServerClient(http_address), triton_http),
    ):
        seen[name] = _Protocol(name, client, kind).seen(pixels, files)
        client.close()
    return seen


class _Protocol:
    """One of the two protocols, with regions of its own."""

    def __init__(self, name: str, client: Any, kind: Any) -> None:
        self._client, self._kind = client, kind
        self._prefix = f"fuseline-test-{os.getpid()}-{name}"

    def seen(self, pixels: Any, files: list[bytes]) -> dict[str, Any]:
        source, sink, gone = (
            shm.create_shared_memory_region(name, f"/{self._prefix}-{name}", SIZE)
            for name in ("source", "sink", "gone")
        )
        try:
            self._register("source", "source")
            self._register("sink", "sink")
            found = {
                "status": self._status(),
                "status of one": outcome(lambda: self._names(self._client.get_system_shared_memory_status("source"))),
                "twice": outcome(lambda: self._register("source", "sink")),
                "logits": self._logits(source, sink, pixels),
                "files": self._files(source, sink, files),
                "refused": self._refused(pixels),
                "a region that shrank": self._shrunk(gone, pixels),
            }
            self._client.unregister_system_shared_memory("source")
            found |= {
                "unregistered": outcome(lambda: self._ask(pixels, region="source")),
                "status after": self._status(),
            }
            self._client.unregister_system_shared_memory()
            found |= {
                "all unregistered": self._status(),
                "next": logits_of(self._client.infer(MODEL, self._plain(pixels))),
            }
            return found
        finally:
            for handle in (source, sink, gone):
                shm.destroy_shared_memory_region(handle)

    def _register(self, name: str, of: str, byte_size: int = SIZE, offset: int = 0) -> None:
        self._client.register_system_shared_memory(name, f"/{self._prefix}-{of}", byte_size, offset=offset)

    def _status(self) -> Any:
        return outcome(lambda: self._names(self._client.get_system_shared_memory_status()))

    def _names(self, status: Any) -> Any:
        """Name to [key without this run's own prefix, offset, byte size]."""
        regions = status if isinstance(status, list) else status.regions.values()
        of = (lambda region, field: region[field]) if isinstance(status, list) else getattr
        return {
            of(each, "name"): [
                of(each, "key").replace(self._prefix, "PREFIX"),
                int(of(each, "offset")),
                int(of(each, "byte_size")),
            ]
            for each in regions
        }

    def _plain(self, pixels: Any) -> list[Any]:
        tensor = self._kind.InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        return [tensor]

    def _ask(
        self,
        pixels: Any,
        *,
        region: str | None = None,
        offset: int = 0,
        byte_size: int | None = None,
        into: tuple[str, int, int] | None = None,
        shape: list[int] | None = None,
        datatype: str = "UINT8",
    ) -> Any:
        if region is None:
            inputs = self._plain(pixels)
        else:
            (tensor,) = inputs = [self._kind.InferInput("image", shape or list(pixels.shape), datatype)]
            tensor.set_shared_memory(region, pixels.nbytes if byte_size is None else byte_size, offset)
        output = self._kind.InferRequestedOutput("logits")
        if into is not None:
            name, size, begins = into
            output.set_shared_memory(name, size, begins)
        return self._client.infer(MODEL, inputs, outputs=[output])

    def _read(self, result: Any, handle: Any, offset: int) -> list[list[float]]:
        """Logits from the region that `result` says that they are in."""
        output = result.get_output("logits")
        datatype, shape = (
            (output["datatype"], output["shape"]) if isinstance(output, dict) else (output.datatype, output.shape)
        )
        assert datatype == "FP32"
        response = result.get_response()
        # The answer itself has none; Triton's C++ client takes parameters of this output for a binary tensor's.
        sent = [*output] if isinstance(output, dict) else [*filter(None, response.raw_output_contents)]
        assert sent in ([], ["name", "datatype", "shape"]), sent
        return shm.get_contents_as_numpy(handle, np.float32, list(shape), offset).tolist()

    def _logits(self, source: Any, sink: Any, pixels: Any) -> dict[str, Any]:
        shm.set_shared_memory_region(source, [pixels])
        answer = len(pixels) * 4 * 4

        def both(offset: int, begins: int) -> list[list[float]]:
            shm.set_shared_memory_region(source, [pixels], offset)
            result = self._ask(pixels, region="source", offset=offset, into=("sink", answer, begins))
            return self._read(result, sink, begins)

        def in_place() -> list[list[float]]:
            shm.set_shared_memory_region(source, [pixels])
            result = self._ask(pixels, region="source", into=("source", answer, 0))
            return self._read(result, source, 0)

        def roomier() -> list[list[float]]:
            return self._read(self._ask(pixels, into=("sink", SIZE, 0)), sink, 0)

        return {
            "in": outcome(lambda: logits_of(self._ask(pixels, region="source"))),
            "out": outcome(lambda: self._read(self._ask(pixels, into=("sink", answer, 0)), sink, 0)),
            "out with room": outcome(roomier),
            "both": outcome(lambda: both(0, 0)),
            "both at an odd offset": outcome(lambda: both(4097, 129)),
            "in place": outcome(in_place),
        }

    def _files(self, source: Any, sink: Any, files: list[bytes]) -> dict[str, Any]:
        elements = serialize_byte_tensor(elements_of(files, len(files)))
        answer = len(files) * 4 * 4

        def ask() -> list[list[float]]:
            shm.set_shared_memory_region(source, [elements])
            result = self._ask(
                elements,
                region="source",
                byte_size=len(elements.item()),
                into=("sink", answer, 0),
                shape=[len(files), 1],
                datatype="BYTES",
            )
            return self._read(result, sink, 0)

        return {"both": outcome(ask)}

    def _refused(self, pixels: Any) -> dict[str, Any]:
        client, size = self._client, pixels.nbytes
        handle = base64.b64encode(bytes(64))
        mistakes = {
            "region": lambda: self._ask(pixels, region="nowhere"),
            "output region": lambda: self._ask(pixels, into=("nowhere", 80, 0)),
            "beyond the end": lambda: self._ask(pixels, region="source", offset=SIZE - size + 1),
            "offset beyond": lambda: self._ask(pixels, region="source", offset=SIZE),
            "negative offset": lambda: self._ask(pixels, region="source", offset=-1),
            "size is not the shape's": lambda: self._ask(pixels, region="source", byte_size=size - 1),
            "no size": lambda: self._ask(pixels, region="source", byte_size=0),
            "output too small": lambda: self._ask(pixels, into=("sink", 79, 0)),
            "output beyond the end": lambda: self._ask(pixels, into=("sink", 80, SIZE - 79)),
            "no such segment": lambda: self._register("other", "nowhere"),
            "larger than the segment": lambda: self._register("other", "source", SIZE + 1),
            "beyond the segment": lambda: self._register("other", "source", 1, SIZE),
            "not in shared memory": lambda: client.register_system_shared_memory("other", "/../../etc/passwd", 10),
            "GPU memory": lambda: client.register_cuda_shared_memory("other", handle, 0, 10),
        }
        return {name: outcome(make) for name, make in mistakes.items()}

    def _shrunk(self, handle: Any, pixels: Any) -> Any:
        """The answer to a request whose region was cut after it was registered."""
        shm.set_shared_memory_region(handle, [pixels])
        self._register("gone", "gone")
        before = outcome(lambda: logits_of(self._ask(pixels, region="gone", offset=0)))
        os.truncate(f"/dev/shm/{self._prefix}-gone", 100)
        return {
            "before": before,
            "read": outcome(lambda: logits_of(self._ask(pixels, region="gone"))),
            "written": outcome(lambda: logits_of(self._ask(pixels, into=("gone", 80, 4096)))),
        }


if __name__ == "__main__":
    run(main)
