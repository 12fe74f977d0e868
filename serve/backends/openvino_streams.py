"""A batch in pieces, which OpenVINO's streams compute side by side.

When all cores compute one batch together they meet at the end of every layer, and one that reads a request for a moment
keeps all others waiting, in each of a ResNet's dozens of layers. A stream has cores of its own; streams meet once, at
the end of the batch, and whichever is free takes the next piece.
"""

import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECES_PER_STREAM = 4
"""The more there are, the less a stream idles at the end of a batch."""
_LEAST_ROWS = 2
"""Of a piece. One row alone is computed at nine tenths of the speed of two."""
_LEAST_PIECE_S = 0.002
"""To wake a stream for a piece, and to hear that it is done, takes some tenths of a millisecond."""
_SURELY_S = 50 * _LEAST_PIECE_S
"""A first call, which also prepares the graph for its size of batch, that takes so long needs no second."""


class OpenVinoStreams:
    """A compiled model of several streams."""

    def __init__(self, compiled: Any, row_shape: tuple[int, ...], largest_batch: int) -> None:
        """`compiled` is OpenVINO's, for batches of any size. Runs a few rows, to find how many make a piece."""
        self._streams: int = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests = [compiled.create_infer_request() for _ in range(_PIECES_PER_STREAM * self._streams)]
        self._rows_of_piece = _LEAST_ROWS
        while self._rows_of_piece < largest_batch and self._seconds(self._rows_of_piece, row_shape) < _LEAST_PIECE_S:
            self._rows_of_piece *= 2

    def pieces(self, rows: int) -> int:
        """Into how many pieces a batch of `rows` goes; 0 if it is too small to keep every stream busy."""
        pieces = min(len(self._requests), rows // self._rows_of_piece)
        return pieces if pieces >= self._streams > 1 else 0

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (rows, classes) of `pixels` (rows, height, width, channels), of which there are `pieces` to be made.

        Raises `RuntimeError` if OpenVINO fails.
        """
        requests = self._requests[: self.pieces(len(pixels))]
        edges = np.linspace(0, len(pixels), len(requests) + 1).astype(int).tolist()
        started = []
        try:
            for request, (start, end) in zip(requests, pairwise(edges), strict=True):
                request.start_async([pixels[start:end]], share_inputs=True)
                started.append(request)
        finally:
            # Also of a batch that fails: the pixels are the caller's again only when nobody reads them.
            failures = [error for request in started if (error := _failure(request)) is not None]
        if failures:
            raise failures[0]
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    def _seconds(self, rows: int, row_shape: tuple[int, ...]) -> float:
        """What one stream takes for `rows`."""
        pixels = np.zeros((rows, *row_shape), np.uint8)
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            self._requests[0].infer([pixels], share_inputs=True)
            seconds.append(time.perf_counter() - started)
            if seconds[0] >= _SURELY_S:
                break
        return min(seconds)


def _failure(request: Any) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None
