"""The package's reference: a few images and eager PyTorch's logits for them.

The export verifies on the machine that it runs on. Another machine has another CPU or GPU, another runtime build,
perhaps an engine that no one could run before. So a server compares its backend with the reference before it is ready.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Instance
from fuseline.serve.backends.padded import infer_in_bucket, infer_in_largest_bucket
from fuseline.serve.errors import PackageError, VerificationError
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.precision import PRECISIONS

REFERENCE_NAME = "reference.npz"
REFERENCE_ROWS = 8


def write_reference(folder: Path, pixels: NDArray[np.uint8], logits: NDArray[np.float32]) -> None:
    """Write some rows of `pixels` (n, h, w, c) and eager FP32 `logits` (n, classes) to `folder`.

    They are spread evenly: images often come class by class, and of one class they would prove less.
    """
    rows = np.linspace(0, len(pixels) - 1, min(REFERENCE_ROWS, len(pixels))).round().astype(int)
    np.savez_compressed(folder / REFERENCE_NAME, pixels=pixels[rows], logits=logits[rows])


def check_reference(backend: Instance, package: ModelPackage) -> float:
    """Run `backend` on the reference; return its largest logit difference as a share of the logits' range.

    All images run in the largest bucket, and the first again in the smallest: a runtime may compute the two
    differently.

    Raises:
        PackageError: the reference is damaged or doesn't fit the manifest.
        VerificationError: the backend's logits differ beyond its precision's `max_difference`.
        BackendError: the runtime failed.
    """
    pixels, expected = read_reference(package)
    to_rows = row_maker(package.manifest)
    given = infer_in_largest_bucket(backend, pixels, to_rows=to_rows)
    if given.shape != expected.shape:
        raise PackageError(
            f"{package.folder}: the model answers {len(pixels)} images with logits of shape {given.shape}, the "
            f"reference has {expected.shape}; export it again"
        )
    spread = float(expected.max() - expected.min())
    first = infer_in_bucket(backend, pixels[:1], backend.buckets[0], to_rows=to_rows)
    difference = float(max(np.abs(given - expected).max(), np.abs(first - expected[:1]).max()))
    row = PRECISIONS[backend.precision]
    allowed = row.max_difference
    # `not (a <= b)` rather than `a > b`: NaN must fail too.
    if not difference <= allowed * spread:
        is_rounded = row.graph != row.name
        cure = f"serve it with --precision {row.graph}" if is_rounded else "try another --backend or --precision"
        raise VerificationError(
            f"{package.manifest.name} in {backend.precision} on {backend.name} ({backend.device}) is not served: on "
            f"the package's reference images its logits differ from PyTorch's by {difference:.3g} of a range of "
            f"{spread:.3g}, of which at most {allowed:g} is allowed; {cure}, or export it again on this machine"
        )
    return difference / spread if spread else 0.0


def read_reference(package: ModelPackage) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the reference's pixels (n, h, w, c) uint8 and eager FP32 logits (n, classes) float32, n at least 1.

    Raises:
        PackageError: the reference is damaged or doesn't fit the manifest.
    """
    file = package.manifest.reference
    try:
        with np.load(io.BytesIO(package.read(file)), allow_pickle=False) as arrays:
            pixels, logits = arrays["pixels"], arrays["logits"]
    except (ValueError, KeyError, OSError) as error:
        raise PackageError(f"{package.folder / file.path} is no reference: {error}; export the model again") from error
    shapes = (pixels.shape[1:], logits.shape[1:], len(pixels))
    expected = (package.manifest.input.pixel_shape, (package.manifest.classes,), len(logits))
    if shapes != expected or pixels.dtype != np.uint8 or logits.dtype != np.float32 or not len(pixels):
        raise PackageError(
            f"{package.folder / file.path} holds {pixels.dtype} pixels {pixels.shape} and {logits.dtype} logits "
            f"{logits.shape}, which don't fit the manifest; export the model again"
        )
    return pixels, logits
