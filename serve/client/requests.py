"""Images become requests, the same for both clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.serve.errors import ImageError, RequestError
from fuseline.serve.model_description import ModelDescription

ImageLike = str | Path | bytes | NDArray[np.uint8]
"""A path of a JPEG, PNG or WebP file; the bytes of one; or raw uint8 pixels (height, width, channels), RGB."""

_SMALLEST_LIMIT_BYTES = 2**20
"""A server's message limit is 1 MiB or more, so smaller messages are sent without asking for it."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A request that may have to be held against the model's description before it is sent."""

    message: ClassifyRequest
    pixels: tuple[NDArray[np.uint8], ...]
    """The raw images among its images, in their order."""

    @property
    def needs_check(self) -> bool:
        """Whether `check` can find anything wrong; else the description need not be known."""
        return bool(self.pixels) or self.message.ByteSize() > _SMALLEST_LIMIT_BYTES

    def fits(self, description: ModelDescription, address: str) -> bool:
        """Return whether `check` finds nothing wrong."""
        try:
            self.check(description, address)
        except RequestError:
            return False
        return True

    def check(self, description: ModelDescription, address: str) -> None:
        """Raise `RequestError` when pixels or the message's size are not what the server at `address` takes."""
        shape = description.height, description.width, description.channels
        for pixels in self.pixels:
            if pixels.dtype != np.uint8 or pixels.shape != shape:
                raise RequestError(
                    f"raw pixels came as {pixels.dtype} {pixels.shape}; {description.name} takes uint8 {shape} "
                    "(height, width, channels). A path or encoded bytes would be resized and cropped by the server"
                )
        size = self.message.ByteSize()
        if size > description.max_message_bytes:
            raise RequestError(
                f"the message has {size} bytes, the server at {address} takes at most "
                f"{description.max_message_bytes}; send fewer or smaller images at a time, or start the server with a "
                "larger --max-message-mb"
            )


def listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return one image or several as a list."""
    return [images] if isinstance(images, str | Path | bytes | np.ndarray) else list(images)


def no_image(position: int) -> ClassifyRequest:
    """Return what a stream sends in place of an image that is refused before it is sent.

    The server's answer, an error, wakes whoever waits for answers, also where no other image comes before this one's.
    """
    return ClassifyRequest(id=str(position))


def draft_request(
    images: Sequence[ImageLike],
    *,
    top_k: int,
    model: str,
    version: str = "",
    return_logits: bool = False,
    id: str = "",
    priority: str = "",
) -> DraftRequest:
    """Return the request to classify `images`, whose files are read here.

    Raises:
        ImageError: a file can't be read.
        RequestError: `top_k` can't be sent.
        UnicodeEncodeError: `model`, `version` or `priority` can't be sent.
    """
    message = ClassifyRequest(
        model=model,
        model_version=version,
        id=id,
        images=[_message_of(image) for image in images],
        return_logits=return_logits,
        priority=priority,
    )
    try:
        message.top_k = top_k
    except ValueError as error:
        raise RequestError(f"top_k is {top_k}; it must be from 1 to the number of the model's classes") from error
    return DraftRequest(message, tuple(image for image in images if isinstance(image, np.ndarray)))


def _message_of(image: ImageLike) -> Image:
    if isinstance(image, np.ndarray):
        return Image(raw=image.tobytes())
    if isinstance(image, bytes):
        return Image(encoded=image)
    try:
        return Image(encoded=Path(image).read_bytes())
    except OSError as error:
        raise ImageError(f"{image} can't be read: {error.strerror}") from error
