"""What reads bytes that others made, each as a function of bytes that may raise only what the tree of errors has.

Each target holds its own bound of time, and of memory: whatever the input, it takes about as much as a sound one.
"""

import json
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from starlette.exceptions import HTTPException

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError, FuselineError, ImageError, PackageError, RequestError
from fuseline.serve.http.infer_request import infer_request_from_body
from fuseline.serve.images import decode_image
from fuseline.serve.model_package import load_package
from tests.fakes.colours import encoded, noise, write_colours_package

MAX_PIXELS = 1_000_000
MOST_SECONDS = 5.0
"""Time of one input, on a machine that does other things as well; the readers' own bounds are far below."""
MOST_BYTES = 128 * 2**20
"""Memory that Python allocates for one input. A sound one takes a few MB."""


@dataclass(frozen=True)
class Target:
    """One reader of bytes."""

    run: Callable[[bytes], None]
    """Reads `data`; raises what is no error of the tree, or not one that this reader may raise."""
    seeds: Callable[[], list[bytes]]
    """Returns sound inputs, from which broken ones are made."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fail when what is done here takes too long or too much memory."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    took = time.monotonic() - begun
    assert took < MOST_SECONDS, f"took {took:.1f} s"
    assert peak < MOST_BYTES, f"took {peak / 2**20:.0f} MiB"


def _picture(data: bytes) -> None:
    try:
        pixels = decode_image(
            data, height=32, width=32, resize_shorter_side=36, max_pixels=MAX_PIXELS, timeout_s=MOST_SECONDS / 2
        )
    except ImageError as error:
        _check_message(error)
    else:
        assert pixels.shape == (32, 32, 3)


@cache
def _pictures() -> list[bytes]:
    pixels = np.kron(noise(1)[0], np.ones((6, 6, 1), np.uint8))
    files = [encoded(pixels, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")]
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        file = BytesIO()
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels)
        picture = picture if mode == "I;16" else picture.convert(mode)
        picture.save(file, "JPEG" if mode == "CMYK" else "PNG")
        files.append(file.getvalue())
    progressive = BytesIO()
    Image.fromarray(pixels).save(progressive, "JPEG", progressive=True)
    return [*files, progressive.getvalue()]


def _manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(data)
        try:
            package = load_package(Path(folder))
            for artifact in package.manifest.artifacts:
                package.read(artifact)
        except PackageError as error:
            _check_message(error, most=12_000)


@cache
def _a_manifest() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        package = write_colours_package(Path(folder) / "package")
        return (package / "manifest.json").read_bytes()


@cache
def _manifests() -> list[bytes]:
    sound = json.loads(_a_manifest())
    outside = sound | {"reference": sound["reference"] | {"path": "../../etc/passwd"}}
    return [_a_manifest(), json.dumps(outside).encode(), b"[" * 5000]


def _checkpoint(data: bytes, name: str = "checkpoint.pt") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            _check_message(error, most=100_000)


def _safetensors(data: bytes) -> None:
    _checkpoint(data, "model.safetensors")


def _state() -> dict[str, torch.Tensor]:
    return {
        "conv1.weight": torch.ones(4, 3, 3, 3),
        "bn1.running_var": torch.ones(4),
        "bn1.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.ones(2, 4),
    }


@cache
def _torch_files() -> list[bytes]:
    files = []
    for contents, zipped in ((_state(), True), ({"model": _state(), "epoch": 3}, True), (_state(), False)):
        file = BytesIO()
        torch.save(contents, file, _use_new_zipfile_serialization=zipped)
        files.append(file.getvalue())
    return [*files, zip_bomb(), deep_pickle(100_000), b"\x80\x02" + b"(" * 100_000 + b"."]


def zip_bomb(size: int = 2**30) -> bytes:
    """An archive that looks as torch's, whose pickle is `size` zeros deflated."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as part:
        for _ in range(size // 2**20):
            part.write(bytes(2**20))
    return file.getvalue()


def deep_pickle(depth: int) -> bytes:
    """A pickle of lists within lists."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


@cache
def _safetensors_files() -> list[bytes]:
    sound = save_safetensors(_state(), {"epoch": "3"})
    deep = b'{"a":' * 20_000
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}).encode()
    return [
        sound,
        struct.pack("<Q", len(deep)) + deep,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", len(huge)) + huge + bytes(16),
    ]


def _json_tensor(data: bytes) -> None:
    """A REST body of the Open Inference Protocol, JSON or with binary tensors after it."""
    for length in (None, len(data) // 2):
        try:
            infer_request_from_body(data, length, model="colours", version="")
        except RequestError as error:
            _check_message(error)
        except HTTPException as error:
            if error.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise


def _json_tensors() -> list[bytes]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [[[[1, 2, 3]] * 2] * 2]}
    binary = tensor | {"parameters": {"binary_data_size": 12}, "data": []}
    outputs = [{"name": "logits", "parameters": {"binary_data": True, "classification": 2}}]
    return [
        json.dumps({"id": "1", "inputs": [tensor], "outputs": outputs, "parameters": {"priority": 2}}).encode(),
        json.dumps({"inputs": [{key: value for key, value in binary.items() if key != "data"}]}).encode() + bytes(200),
        b'{"inputs":' + b"[" * 50_000,
        b'{"inputs":[{"name":"image","shape":[' + b"9" * 5000 + b'],"datatype":"UINT8","data":[1e999]}]}',
    ]


def _check_message(error: FuselineError, most: int = 5000) -> None:
    """Fail unless the message is text of bounded length."""
    assert 0 < len(str(error)) <= most, len(str(error))


TARGETS: dict[str, Target] = {
    "pictures": Target(_picture, _pictures),
    "manifests": Target(_manifest, _manifests),
    "torch files": Target(_checkpoint, _torch_files),
    "safetensors": Target(_safetensors, _safetensors_files),
    "REST tensors": Target(_json_tensor, _json_tensors),
}
"""Readers that need no server."""
