"""Turns the images of a classify request into rows for the batcher: checks all, then decodes off the event loop.

For a model that takes normalised floats, pixels are normalised off the event loop too, decoded ones and raw ones alike.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import Image
from fuseline.serve.batching.admission import Ready, Reservation
from fuseline.serve.batching.batcher import Row
from fuseline.serve.errors import ImageError, RequestError
from fuseline.serve.images import decode_for
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model import Model
from fuseline.serve.model_package import Manifest
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.decoding import DecodeThreads
from fuseline.serve.services.inference import Decode
from fuseline.serve.settings import Settings

DECODE_RATE = 0.05
"""Weight of the newest image in the average time of decoding one."""

Content = bytes | NDArray[np.uint8]
"""An encoded image; or the pixels (height, width, channels) of one for a model that takes normalised floats."""


class ImageRows:
    """Turns images into rows of what a model takes: its pixels, or floats that are normalised from them.

    Raw pixels are viewed in the bytes that protobuf hands out, not copied again. Encoded images are decoded in the
    pool, several at a time, once the model's batcher has reserved room for their rows. The time of decoding is measured
    to predict when rows will be ready.
    """

    def __init__(self, pool: Executor, settings: Settings) -> None:
        self._threads = DecodeThreads(pool, settings.decode_threads, settings.decode_timeout_s)
        self._max_images = settings.max_images_per_request
        self._max_pixels = settings.max_image_pixels
        self._decode_timeout_s = settings.decode_timeout_s
        self._fast_decode = settings.fast_decode
        self._decoding = 0
        # Average time of decoding one image.
        self._decode_seconds = 0.0

    def rows(self, images: Sequence[Image], model: Model) -> list[Row] | Decode:
        """Check `images`, and return the row of each, in order, or the call that decodes them if any is encoded.

        Raises:
            RequestError: no image, too many of them, one without content, or raw pixels of the wrong length.
        """
        count = len(images)
        if not count:
            raise RequestError("the request has no image; send at least one")
        if count > self._max_images:
            raise RequestError(
                f"the request has {count} images, at most {self._max_images} are taken; send several requests, "
                "or start the server with a larger --max-images-per-request"
            )
        shape = model.pixel_shape
        height, width, channels = shape
        size = height * width * channels
        rows: list[Row] = []
        encoded: dict[int, Content] = {}
        for position, image in enumerate(images):
            raw = image.raw
            if len(raw) == size:
                pixels = np.ndarray(shape, np.uint8, raw)
                if model.takes_pixels:
                    rows.append(pixels)
                else:
                    encoded[position] = pixels
            elif image.WhichOneof("content") == "encoded":
                encoded[position] = image.encoded
            else:
                raise _no_image(image, shape, _which(position, count))
        return self.decode(model, rows, encoded) if encoded else rows

    def decode(self, model: Model, rows: list[Row], encoded: Mapping[int, Content]) -> Decode:
        """Return the call that makes rows of images; the keys of `encoded` are their positions among all rows.

        `rows` has the rows of the others, in order; it becomes the result's.
        """
        return partial(self._decode_reserved, model, rows, encoded)

    async def _decode_reserved(
        self, model: Model, rows: list[Row], encoded: Mapping[int, Content], call: CallContext
    ) -> tuple[list[Row], Reservation]:
        """See `Decode` and `decode`."""
        reservation = model.batcher.reserve(
            len(rows) + len(encoded),
            deadline=call.deadline,
            ready=self._ready(len(encoded)),
            caller=call.caller,
        )
        self._decoding += len(encoded)
        try:
            return await self._decoded(model, rows, encoded), reservation
        except BaseException:
            reservation.release()
            raise
        finally:
            self._decoding -= len(encoded)

    def _ready(self, images: int) -> Ready:
        """Return when `images` more images will be decoded."""
        threads = self._threads.threads
        rounds = -(-images // threads)
        return Ready(
            self._decode_seconds * max((self._decoding + images) / threads, rounds), self._decode_seconds * rounds
        )

    async def _decoded(self, model: Model, rows: list[Row], encoded: Mapping[int, Content]) -> list[Row]:
        decode = partial(
            _row,
            model.manifest,
            fast=self._fast_decode,
            max_pixels=self._max_pixels,
            timeout_s=self._decode_timeout_s,
        )
        # All are awaited even when one fails, so that none is left running unattended.
        outcomes = await self._threads.rows(decode, list(encoded.values()))
        count = len(rows) + len(encoded)
        for (position, content), outcome in zip(encoded.items(), outcomes, strict=True):
            if isinstance(outcome, ImageError):
                raise ImageError(f"{_which(position, count)}: {outcome}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome
            row, seconds = outcome
            if isinstance(content, bytes):
                rate = DECODE_RATE if self._decode_seconds else 1.0
                self._decode_seconds += rate * (seconds - self._decode_seconds)
            rows.insert(position, row)
        return rows


def _row(manifest: Manifest, content: Content, *, fast: bool, max_pixels: int, timeout_s: float) -> Row:
    pixels = (
        decode_for(manifest.input, content, fast=fast, max_pixels=max_pixels, timeout_s=timeout_s)
        if isinstance(content, bytes)
        else content
    )
    row: Row = row_maker(manifest)(pixels[np.newaxis])[0]
    return row


def _no_image(image: Image, shape: tuple[int, int, int], which: str) -> RequestError:
    if image.WhichOneof("content") is None:
        return RequestError(f"{which} is empty; set `encoded` (a JPEG, PNG or WebP file) or `raw` (pixels)")
    height, width, channels = shape
    return RequestError(
        f"{which} has {len(image.raw)} raw bytes; the model takes {height} x {width} x {channels} "
        f"(height, width, channels) uint8, which is {height * width * channels}"
    )


def _which(position: int, count: int) -> str:
    return "the image" if count == 1 else f"image {position + 1} of {count}"
