"""Mosec, a Rust HTTP front end with a Python worker: `python mosec_server.py --address 127.0.0.1 --port PORT …`.

POST /model with the raw pixels of one or more pictures answers the raw float32 logits of each; with PEER_RESIZE above 0
a request is one JPEG file, which is decoded, its shorter side resized to that, and cropped. Mosec forms batches of
up to 32 requests and waits for them for up to 1 ms. It reads the command line itself, so the graph and the number of
threads come in the environment: PEER_GRAPH, PEER_THREADS. Ends on SIGINT or SIGTERM.
"""

import os
from typing import Any

import numpy as np
from jpeg_decoder import open_decoder  # type: ignore[import-not-found]
from mosec import Runtime, Server, Worker  # type: ignore[import-not-found]
from onnx_engine import Array, open_engine  # type: ignore[import-not-found]

_MAX_BATCH = 32
_MAX_DELAY_MS = 1
_TIMEOUT_S = 30


class Classify(Worker):  # type: ignore[misc]
    """The one worker: it owns the engine."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = open_engine(os.environ["PEER_GRAPH"], int(os.environ["PEER_THREADS"]))
        resize = int(os.environ["PEER_RESIZE"])
        self._decode = open_decoder(self._engine.row_shape[0], resize) if resize else None

    def deserialize(self, data: bytes) -> Any:
        """Pixels (rows, *row_shape), viewed and not copied; of a file the file."""
        return data if self._decode else np.frombuffer(data, np.uint8).reshape(-1, *self._engine.row_shape)

    def forward(self, data: list[Any]) -> list[Array]:
        """Logits of each request."""
        if self._decode:
            return np.split(self._engine.infer(self._decode(data)), len(data))
        logits = self._engine.infer(np.concatenate(data))
        return np.split(logits, np.cumsum([len(pixels) for pixels in data])[:-1])

    def serialize(self, data: Array) -> bytes:
        """float32, little-endian."""
        logits: bytes = data.tobytes()
        return logits


if __name__ == "__main__":
    server = Server()
    worker = Runtime(Classify, num=1, max_batch_size=_MAX_BATCH, max_wait_time=_MAX_DELAY_MS, timeout=_TIMEOUT_S)
    server.register_runtime({"/model": [worker]})
    server.run()
