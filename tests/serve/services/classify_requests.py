"""Requests of fuseline.v1.Classifier, and what their answers hold."""

import numpy as np
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image


def raw_request(pixels: NDArray[np.uint8], **fields: object) -> ClassifyRequest:
    """Ask for the classes of `pixels` (rows, height, width, channels), as raw bytes."""
    return ClassifyRequest(images=[Image(raw=row.tobytes()) for row in pixels], **fields)


def logits_of(response: ClassifyResponse) -> NDArray[np.float32]:
    """The logits (rows, classes) of an answer."""
    return np.stack([np.frombuffer(result.logits, "<f4") for result in response.results])
