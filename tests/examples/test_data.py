"""What the examples train on by name, and what they do to its pixels."""

import hashlib
import importlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from tests.examples.conftest import command, invoke


@pytest.fixture(scope="module")
def data():
    return importlib.import_module("data")


@pytest.fixture(scope="module")
def pixels():
    return importlib.import_module("pixels")


def test_digits_are_split_once_and_for_all(data):
    digits = data.load_data("digits")
    assert (len(digits.train_images), len(digits.held_out_images)) == (1437, 360)
    assert digits.train_images.shape[1:] == (3, 32, 32)
    assert digits.train_images.dtype == torch.uint8
    assert not digits.flip, "a mirrored digit is another sign"
    counts = np.bincount(digits.held_out_classes)
    assert counts.min() >= 35, "each class has its fifth"
    assert torch.equal(digits.held_out_images, data.load_data("digits").held_out_images)


def test_enlarged_digits_span_black_to_white(data):
    grey = np.zeros((2, 8, 8))
    grey[1] = 16
    assert data.rgb_from_grey16(grey).reshape(2, -1).tolist() == [[0] * 3072, [255] * 3072]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16"):
        data.rgb_from_grey16(grey * 2)


def test_crops_are_shifts_by_up_to_four_pixels_with_black_coming_in(pixels):
    images = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    crops = pixels.random_crops(images, torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    shifts = []
    for crop, source in zip(crops, padded, strict=True):
        fits = [(y, x) for y in range(9) for x in range(9) if torch.equal(crop, source[:, y : y + 32, x : x + 32])]
        assert len(fits) == 1
        shifts += fits
    assert len(set(shifts)) > 30
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))


def test_flips_mirror_some_images_and_leave_the_others(pixels):
    images = torch.arange(40 * 3 * 2 * 5, dtype=torch.int32).reshape(40, 3, 2, 5)
    flipped = pixels.random_flips(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(out, image.flip(2)) for out, image in zip(flipped, images, strict=True)]
    kept = [torch.equal(out, image) for out, image in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 5 < sum(mirrored) < 35


@pytest.mark.parametrize(
    ("allowed", "same_class", "flips"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_images_are_mirrored_only_where_that_is_the_same_class(
    train, monkeypatch, tmp_path, silent, allowed, same_class, flips
):
    from dataclasses import replace

    few = train.load_data
    monkeypatch.setattr(train, "load_data", lambda *name, **settings: replace(few(*name, **settings), flip=same_class))
    calls = []
    monkeypatch.setattr(train, "random_flips", lambda images, generator: calls.append(1) or images)
    recipe = train.Recipe(model="resnet20", data="digits", width=1, epochs=1, flip=allowed)
    train.train(recipe, tmp_path / "x.pt", silent)
    assert bool(calls) == flips


def test_mean_and_std_are_those_of_all_training_pixels(pixels):
    images = torch.randint(0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images[:, 1] //= 2
    histogram = pixels.PixelHistogram()
    for part in images.split(16):
        histogram.add(part)
    mean, std = histogram.mean_and_std()
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std(dim=(0, 2, 3)).tolist(), rel=1e-12)
    normalised = pixels.normalise(images, mean, std)
    assert normalised.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (normalised.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-5


def test_images_of_one_level_are_refused(pixels):
    histogram = pixels.PixelHistogram()
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = 7
    histogram.add(images)
    with pytest.raises(ValueError, match="one and the same green everywhere"):
        histogram.mean_and_std()


@pytest.fixture
def cifar10_archive(tmp_path: Path, monkeypatch) -> Path:
    """An archive laid out as CIFAR-10's, of a few digits; torchvision is told its MD5s, and no server is there."""
    digits = importlib.import_module("data").load_digits()
    batches = tmp_path / "made" / "cifar-10-batches-py"
    batches.mkdir(parents=True)

    def write(name: str, content) -> str:
        raw = pickle.dumps(content, protocol=2)
        (batches / name).write_bytes(raw)
        return hashlib.md5(raw, usedforsecurity=False).hexdigest()

    def batch(start: int) -> dict:
        rows = slice(start, start + 20)
        images = digits.train_images[rows].reshape(20, -1).numpy()
        return {"data": images, "labels": digits.train_classes[rows].tolist()}

    train = [[f"data_batch_{k}", write(f"data_batch_{k}", batch(20 * k))] for k in range(1, 6)]
    test = [["test_batch", write("test_batch", batch(200))]]
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": labels})}
    archive = tmp_path / "made" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, arcname=batches.name)
    for name, value in {
        "train_list": train,
        "test_list": test,
        "meta": meta,
        "tgz_md5": hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest(),
        "url": "http://127.0.0.1:9/cifar-10-python.tar.gz",
    }.items():
        monkeypatch.setattr(CIFAR10, name, value)
    return archive


def test_cifar10_is_read_from_the_archive_put_where_the_message_says(data, cifar10_archive, tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match=r"CIFAR-10 is not in .* and can't be downloaded") as missing:
        data.load_data("cifar10", data_dir=folder)
    for part in (str(folder.resolve()), "cifar-10-python.tar.gz", CIFAR10.tgz_md5, "--data-dir", "refused"):
        assert part in str(missing.value)
    folder.mkdir(exist_ok=True)
    (folder / "cifar-10-python.tar.gz").write_bytes(cifar10_archive.read_bytes())
    images = data.load_data("cifar10", data_dir=folder)
    assert (len(images.train_images), len(images.held_out_images)) == (100, 20)
    assert images.labels[:2] == ["airplane", "automobile"]
    assert images.flip
    digits = data.load_digits()
    assert torch.equal(images.train_images, digits.train_images[20:120])
    assert torch.equal(images.held_out_classes, digits.train_classes[200:220])
    (folder / "cifar-10-python.tar.gz").unlink()
    assert torch.equal(data.load_data("cifar10", data_dir=folder).train_images, images.train_images)


def test_damaged_cifar10_is_never_unpickled(data, cifar10_archive, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / CIFAR10.filename).write_bytes(cifar10_archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match="can't be downloaded"):
        data.load_data("cifar10", data_dir=folder)


def test_missing_cifar10_exits_with_2(train, cifar10_archive, tmp_path):
    result = invoke(
        command(train.main), "--data", "cifar10", "--data-dir", str(tmp_path / "none"), "-o", str(tmp_path / "x.pt")
    )
    assert result.exit_code == 2
    assert "cifar-10-python.tar.gz" in result.output
    assert "Traceback" not in result.output


def test_published_md5_is_the_one_that_the_message_gives():
    assert CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert CIFAR10.filename == "cifar-10-python.tar.gz"
