"""The images of a classify request become rows for the batcher: checked completely, then decoded off the event loop."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from protos.classify_pb2 import Image
from serve.errors import ImageError, OverloadedError, RequestError
from serve.images import decode_image
from serve.model import Model
from serve.settings import Settings

Row = NDArray[np.uint8]


class ImageRows:
    """Turns images into uint8 rows of a model's (height, width, channels).

    Raw pixels are viewed in the bytes that protobuf hands out, not copied again. Encoded images are decoded in `pool`,
    several at a time; images that wait for it count against `max_queue_rows` as rows in the batcher's queue do.
    """

    def __init__(self, pool: Executor, settings: Settings) -> None:
        self._pool = pool
        self._max_images = settings.max_images_per_request
        self._max_rows = settings.max_queue_rows
        self._fast_decode = settings.fast_decode
        self._decoding_rows = 0

    def checked(self, images: Sequence[Image], model: Model) -> list[Row | bytes]:
        """Return what `images` hold, in order: a row for each raw image, the bytes of each that is to be decoded.

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
        shape = model.row_shape
        height, width, channels = shape
        size = height * width * channels
        contents: list[Row | bytes] = []
        for position, image in enumerate(images):
            raw = image.raw
            if len(raw) == size:
                contents.append(np.ndarray(shape, np.uint8, raw))
            elif image.WhichOneof("content") == "encoded":
                contents.append(image.encoded)
            else:
                raise _no_image(image, shape, _which(position, count))
        return contents

    async def decoded(self, contents: Sequence[Row | bytes], model: Model) -> tuple[list[Row], float]:
        """Return a row for each of what `checked` returned, in order, and the seconds that decoding took.

        Raises:
            ImageError: bytes that are no image, or one beyond the bounds.
            OverloadedError: the queue has no room for images that have to be decoded first.
        """
        started = time.monotonic()
        return await self._decoded(contents, model), time.monotonic() - started

    async def _decoded(self, contents: Sequence[Row | bytes], model: Model) -> list[Row]:
        waiting = model.batcher.queued_rows + self._decoding_rows
        if waiting + len(contents) > self._max_rows:
            raise OverloadedError(
                f"{waiting} images wait already and {len(contents)} more would pass the queue's {self._max_rows}; "
                "send again later"
            )
        spec = model.manifest.input
        decode = partial(
            decode_image,
            height=spec.height,
            width=spec.width,
            channels=spec.channels,
            resize_shorter_side=spec.preprocessing.resize_shorter_side,
            interpolation=spec.preprocessing.interpolation,
            fast=self._fast_decode,
        )
        loop = asyncio.get_running_loop()
        self._decoding_rows += len(contents)
        try:
            decoding = [loop.run_in_executor(self._pool, decode, data) for data in contents if isinstance(data, bytes)]
            # All are awaited even when one fails: what is left running would be no one's.
            outcomes = iter(await asyncio.gather(*decoding, return_exceptions=True))
        finally:
            self._decoding_rows -= len(contents)
        rows = []
        for position, content in enumerate(contents):
            row = next(outcomes) if isinstance(content, bytes) else content
            if isinstance(row, ImageError):
                raise ImageError(f"{_which(position, len(contents))}: {row}") from row
            if isinstance(row, BaseException):
                raise row
            rows.append(row)
        return rows


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
