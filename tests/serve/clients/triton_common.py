"""What the scripts of .venv-tritonclient share: how a call's outcome is told, and what they are started with.

`python SCRIPT.py GRPC HTTP FOLDER`: two addresses, and a folder with `pixels.npy` (rows, height, width, channels) and
the encoded pictures `files/*`. Each script prints what it saw as one JSON object.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

MODEL = "colours"


def outcome(call: Callable[[], Any]) -> Any:
    """Return what `call` returns; if the server refuses it, the exception's status and message."""
    try:
        return call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}


async def awaited(coroutine: Any) -> Any:
    """As `outcome`, of a coroutine."""
    try:
        return await coroutine
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}


def elements_of(files: list[bytes], *shape: int) -> Any:
    """Encoded pictures as an array of bytes objects."""
    array = np.empty(len(files), np.object_)
    array[:] = files
    return array.reshape(shape)


def logits_of(result: Any) -> list[list[float]]:
    """Logits (rows, classes)."""
    logits = result.as_numpy("logits")
    assert logits.dtype == np.float32
    return logits.tolist()


def classes_of(result: Any) -> list[list[str]]:
    """Elements `score:index:label` of each row, which are text where they came as JSON."""
    return [
        [element.decode() if isinstance(element, bytes) else element for element in row]
        for row in result.as_numpy("logits")
    ]


def run(main: Callable[[str, str, Any, list[bytes]], dict[str, Any]]) -> None:
    """Call `main(grpc address, http address, pixels, files)` and print what it returns."""
    grpc_address, http_address, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    files = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    json.dump(main(grpc_address, http_address, np.load(folder / "pixels.npy"), files), sys.stdout)
