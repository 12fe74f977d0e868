from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.backends import open_backend
from fuseline.serve.errors import PackageError, VerificationError
from fuseline.serve.model_package import MANIFEST_NAME, Manifest, file_facts, load_package, save_manifest
from fuseline.serve.reference import REFERENCE_NAME, check_reference, write_reference
from tests.fakes.backends import SteeredBackend
from tests.fakes.colours import expected_logits, noise, write_colours_package


def with_reference(folder: Path, pixels: np.ndarray, logits: np.ndarray) -> None:
    """Give the package another, correctly listed, reference."""
    np.savez_compressed(folder / REFERENCE_NAME, pixels=pixels, logits=logits.astype(np.float32))
    relist(folder)


def relist(folder: Path) -> None:
    manifest = load_package(folder).manifest.model_dump(mode="json")
    manifest["reference"] = file_facts(folder, REFERENCE_NAME)
    (folder / MANIFEST_NAME).unlink()
    save_manifest(folder, Manifest.model_validate(manifest))


def check(folder: Path, bucket: int = 4) -> float:
    package = load_package(folder)
    backend, _ = open_backend(package, backend="onnxruntime", buckets=(bucket,), threads=1)
    try:
        return check_reference(backend, package)
    finally:
        backend.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_colours_package(tmp_path / "colours")


@pytest.mark.parametrize("bucket", [1, 3, 32])
def test_a_true_model_passes_in_any_bucket(folder: Path, bucket: int) -> None:
    assert check(folder, bucket) < 1e-6


def test_a_model_that_answers_otherwise_is_not_served(folder: Path) -> None:
    pixels = noise(4)
    with_reference(folder, pixels, expected_logits(pixels)[:, ::-1])
    with pytest.raises(VerificationError, match=r"fp32 on onnxruntime .* is not served.*--backend"):
        check(folder)


def test_a_model_that_answers_otherwise_in_its_smallest_bucket_alone_is_not_served(folder: Path) -> None:
    package = load_package(folder)
    real, _ = open_backend(package, backend="onnxruntime", buckets=(1, 4), threads=1)
    backend = SteeredBackend(real)
    assert check_reference(backend, package) < 1e-6
    backend.replacement = lambda pixels: real.infer(pixels)[:, ::-1] if len(pixels) == 1 else real.infer(pixels)
    with pytest.raises(VerificationError, match="is not served"):
        check_reference(backend, package)


def test_where_bf16_answers_otherwise_fp32_is_what_to_serve(folder: Path) -> None:
    package = load_package(folder)
    real, _ = open_backend(package, backend="onnxruntime", buckets=(4,), threads=1)
    backend = SteeredBackend(real)
    backend.precision = "bf16"
    backend.replacement = lambda pixels: 1.04 * real.infer(pixels)
    assert check_reference(backend, package) > 0.01
    backend.replacement = lambda pixels: 1.2 * real.infer(pixels)
    with pytest.raises(VerificationError, match=r"in bf16 .* is not served: .*serve it with --precision fp32"):
        check_reference(backend, package)


@pytest.mark.parametrize(
    ("rows", "classes"),
    [(slice(None), slice(3)), (slice(2), slice(None))],
)
def test_a_reference_that_does_not_fit_is_refused(folder: Path, rows: slice, classes: slice) -> None:
    pixels = noise(4)
    with_reference(folder, pixels, expected_logits(pixels)[rows, classes])
    with pytest.raises(PackageError, match="don't fit the manifest"):
        check(folder)


def test_a_changed_or_foreign_reference_is_refused(folder: Path) -> None:
    (folder / REFERENCE_NAME).write_bytes(b"no numpy archive")
    with pytest.raises(PackageError, match="sha256"):
        check(folder)
    relist(folder)
    with pytest.raises(PackageError, match="no reference"):
        check(folder)


def test_a_reference_is_never_unpickled(folder: Path) -> None:
    np.savez(folder / REFERENCE_NAME, pixels=np.array([{"a": 1}], dtype=object), logits=np.zeros((1, 4), np.float32))
    relist(folder)
    with pytest.raises(PackageError, match="no reference"):
        check(folder)


@pytest.mark.parametrize(
    ("images", "kept"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (8, list(range(8))),
        (9, [0, 1, 2, 3, 5, 6, 7, 8]),
        (800, [0, 114, 228, 342, 457, 571, 685, 799]),
    ],
)
def test_images_that_come_class_by_class_are_all_represented(tmp_path: Path, images: int, kept: list[int]) -> None:
    pixels = np.zeros((images, 2, 2, 3), np.uint8)
    logits = np.arange(images, dtype=np.float32)[:, np.newaxis]
    write_reference(tmp_path, pixels, logits)
    with np.load(tmp_path / REFERENCE_NAME) as arrays:
        assert arrays["logits"][:, 0].tolist() == kept
        assert len(arrays["pixels"]) == len(kept)
