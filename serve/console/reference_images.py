"""A model's reference images, and what PyTorch answers for them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.model import Model
from fuseline.serve.reference import read_reference
from fuseline.serve.services.top_k import top_k_from_logits

_TOP_K = 5
_KEPT = 4
"""Models whose images are kept: of eight pictures of 224x224 pixels, 1.2 MB."""


@dataclass(frozen=True, slots=True)
class ReferenceImages:
    """The reference images of one model."""

    pixels: NDArray[np.uint8]
    """(images, height, width, channels)."""
    best: tuple[int, ...]
    """Class that PyTorch finds most probable for each."""
    answers: list[list[dict[str, Any]]]
    """The classes that PyTorch finds most probable for each, with their labels and probabilities."""


class ReferenceShelf:
    """Reads the reference images of models, and keeps the latest. Any thread may call it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, ReferenceImages] = OrderedDict()

    def of(self, model: Model) -> ReferenceImages:
        """Return the reference images of `model`, from its package. Raises `PackageError`."""
        key = model.manifest.reference.sha256 + model.manifest.model_dump_json(include={"labels", "task"})
        if (found := self._kept.get(key)) is None:
            found = self._kept[key] = _read(model)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _read(model: Model) -> ReferenceImages:
    pixels, logits = read_reference(model.package)
    labels, task = model.manifest.labels, model.manifest.task
    indices, probabilities = top_k_from_logits(logits, min(_TOP_K, logits.shape[1]), task)
    answers = [
        [
            {"index": index, "label": labels[index], "probability": round(probability, 6)}
            for index, probability in zip(*row, strict=True)
        ]
        for row in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
    return ReferenceImages(pixels, tuple(indices[:, 0].tolist()), answers)
