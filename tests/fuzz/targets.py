"""Pictures, manifests and tensors in JSON."""

import json
import tempfile
from functools import cache
from http import HTTPStatus
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from fuseline.serve.errors import ImageError, PackageError, RequestError
from fuseline.serve.http.infer_request import infer_request_from_body
from fuseline.serve.images import decode_image
from fuseline.serve.model_package import load_package
from tests.fakes.colours import encoded, noise, write_colours_package
from tests.fuzz.target import MOST_SECONDS, Target, check_message

MAX_PIXELS = 1_000_000


def _picture(data: bytes) -> None:
    try:
        pixels = decode_image(
            data, height=32, width=32, resize_shorter_side=36, max_pixels=MAX_PIXELS, timeout_s=MOST_SECONDS / 2
        )
    except ImageError as error:
        check_message(error)
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
            check_message(error, most=12_000)


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


def _json_tensor(data: bytes) -> None:
    """A REST body of the Open Inference Protocol, JSON or with binary tensors after it."""
    for length in (None, len(data) // 2):
        try:
            infer_request_from_body(data, length, model="colours", version="")
        except RequestError as error:
            check_message(error)
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


TARGETS: dict[str, Target] = {
    "pictures": Target(_picture, _pictures),
    "manifests": Target(_manifest, _manifests),
    "REST tensors": Target(_json_tensor, _json_tensors),
}
"""Readers of what clients send and of packages."""
