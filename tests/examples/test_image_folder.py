"""A folder of class folders as training data: what is read, what is held out, and what is refused."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fuseline.serve.images import decode_image
from tests.examples.conftest import Silent
from tests.examples.pictures import write_picture, write_pictures


@pytest.fixture(scope="module")
def image_folder():
    return importlib.import_module("image_folder")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", {"dog": 10, "cat": 5, "emu": 2})


def test_labels_are_the_folders_names_and_a_fifth_of_each_class_is_held_out(image_folder, photos):
    data = image_folder.load_image_folder(photos, side=16)
    assert data.labels == ["cat", "dog", "emu"]
    assert np.bincount(data.train_classes).tolist() == [4, 8, 1]
    assert np.bincount(data.held_out_classes).tolist() == [1, 2, 1]
    everything = torch.cat([data.train_images, data.held_out_images])
    assert everything.shape == (17, 3, 16, 16)
    assert len({image.numpy().tobytes() for image in everything}) == 17, "no image is in both parts"
    assert data.flip
    again = image_folder.load_image_folder(photos, side=16)
    assert torch.equal(again.held_out_images, data.held_out_images)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("side", [16, 64, 72])
def test_pixels_are_those_that_the_server_feeds_to_the_exported_network(image_folder, tmp_path, side):
    for k, (label, size) in enumerate([("a", (50, 90)), ("a", (90, 50)), ("b", (200, 100)), ("b", (30, 30))]):
        write_picture(tmp_path / label / f"{k}.jpg", seed=k, size=size)
    data = image_folder.load_image_folder(tmp_path, side=side)
    ours = {image.permute(1, 2, 0).numpy().tobytes() for image in (*data.train_images, *data.held_out_images)}
    shorter = image_folder.resized_shorter_side(side)
    served = {
        decode_image(path.read_bytes(), height=side, width=side, resize_shorter_side=shorter).tobytes()
        for path in tmp_path.rglob("*.jpg")
    }
    assert ours == served


def test_val_is_held_out_where_there_is_one(image_folder, tmp_path):
    write_pictures(tmp_path / "train", {"dog": 4, "cat": 3})
    write_pictures(tmp_path / "val", {"dog": 1, "cat": 2})
    data = image_folder.load_image_folder(tmp_path, side=8)
    assert np.bincount(data.train_classes).tolist() == [3, 4]
    assert np.bincount(data.held_out_classes).tolist() == [2, 1]


def test_train_without_val_is_split(image_folder, tmp_path):
    write_pictures(tmp_path / "train", {"dog": 10, "cat": 10})
    data = image_folder.load_image_folder(tmp_path, side=8)
    assert data.labels == ["cat", "dog"]
    assert (len(data.train_images), len(data.held_out_images)) == (16, 4)


def test_a_class_may_be_called_train(image_folder, tmp_path):
    write_pictures(tmp_path, {"bus": 2, "train": 2})
    assert image_folder.load_image_folder(tmp_path, side=8).labels == ["bus", "train"]


def test_more_images_than_the_memory_may_hold_give_the_same_training(
    train, image_folder, photos, tmp_path, monkeypatch
):
    recipe = train.Recipe(model="resnet20", data=str(photos), width=2, epochs=2, batch_rows=4, input_size=16)
    kept, lazy = tmp_path / "kept.pt", tmp_path / "lazy.pt"
    train.train(recipe, kept, Silent())
    monkeypatch.setattr(image_folder.load_image_folder, "__kwdefaults__", {"on_read": None, "max_bytes_in_memory": 0})
    data = train.load_data(str(photos), input_size=16)
    assert isinstance(data.train_images, image_folder.ImageFiles)
    train.train(recipe, lazy, Silent())
    one, other = (torch.load(path, weights_only=True) for path in (kept, lazy))
    assert (one["mean"], one["std"], one["accuracy"]) == (other["mean"], other["std"], other["accuracy"])
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])


def test_file_that_is_damaged_during_a_training_on_files_is_named(image_folder, photos):
    data = image_folder.load_image_folder(photos, side=16, max_bytes_in_memory=0)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"1 images can't be read: .*\.png"):
        data.train_images[torch.tensor([0])]


def test_reading_is_told(image_folder, photos):
    told = []
    image_folder.load_image_folder(photos, side=8, on_read=lambda done, total: told.append((done, total)))
    assert told[-1] == (17, 17)


def test_a_training_goes_on_only_with_the_same_images(train, photos, tmp_path, monkeypatch):
    out = tmp_path / "x.pt"

    def recipe(data: str, epochs: int = 1):
        return train.Recipe(model="plain18", data=data, width=1, epochs=epochs, batch_rows=4, input_size=8)

    train.train(recipe(str(photos)), out, Silent())
    monkeypatch.chdir(tmp_path)
    train.train(recipe("./photos"), out, Silent())  # the same folder under another name
    write_picture(photos / "cat" / "new.png", seed=7)
    with pytest.raises(ValueError, match=r"other images \(17 files, .*\), not \./photos \(18 files, .*--restart"):
        train.train(recipe("./photos"), out, Silent())


def test_training_on_real_pictures(train, shared_data, tmp_path):
    folder = tmp_path / "pictures"
    for label in ("cat", "ship"):
        (folder / label).mkdir(parents=True)
        for path in sorted((shared_data / "cifar10-test" / label).iterdir())[:20]:
            shutil.copy(path, folder / label)
    recipe = train.Recipe(model="resnet34", data=str(folder), width=1, epochs=1, input_size=72)
    checkpoint = train.train(recipe, tmp_path / "x.pt", Silent())
    assert checkpoint["labels"] == ["cat", "ship"]
    assert checkpoint["input_size"] == 72
    assert checkpoint["mean"] != [0.0] * 3


def test_all_of_the_real_pictures_are_read(image_folder, shared_data):
    data = image_folder.load_image_folder(shared_data / "cifar10-test", side=32)
    assert (len(data.train_images), len(data.held_out_images), len(data.labels)) == (800, 200, 10)


def _no_folders(folder):
    write_picture(folder / "1.png", seed=1)


def _one_class(folder):
    write_pictures(folder, {"cat": 3})


def _empty_class(folder):
    write_pictures(folder, {"cat": 3, "dog": 3})
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").write_text("no picture")


def _single_image(folder):
    write_pictures(folder, {"cat": 3, "dog": 1})


def _unreadable(folder):
    write_pictures(folder, {"cat": 3, "dog": 3})
    (folder / "cat" / "0.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:200])
    (folder / "dog" / "text.jpg").write_text("dear diary")


def _other_val(folder):
    write_pictures(folder / "train", {"cat": 3, "dog": 3})
    write_pictures(folder / "val", {"cat": 3, "emu": 3})


def _empty_val(folder):
    write_pictures(folder / "train", {"cat": 3, "dog": 3})
    (folder / "val").mkdir()


def _val_alone(folder):
    write_pictures(folder / "val", {"cat": 3, "dog": 3})


def _black(folder):
    for label in ("cat", "dog"):
        for k in range(2):
            (folder / label).mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(folder / label / f"{k}.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_no_folders, "has no folders; expected a folder of images for each class"),
        (_one_class, "has one class folder, cat; at least 2 classes are needed"),
        (_empty_class, r"has folders without an image \(jpg, .*\): emu; fill or remove them"),
        (_single_image, "has classes of fewer than 2 images: dog"),
        (_unreadable, r"2 images can't be read: .*0\.png \(.*\), .*text\.jpg \(.*\); mend or remove them"),
        (_other_val, "must have the same class folders; only one of them has dog, emu"),
        (_empty_val, "val has no folders"),
        (_val_alone, "has a folder val but none called train"),
        (_black, "one and the same red everywhere"),
    ],
)
def test_folder_that_can_not_be_trained_on_is_refused(image_folder, tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        image_folder.load_image_folder(tmp_path, side=8)


def test_folder_that_is_not_there_is_refused(image_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no folder .*nowhere, and no data set is called so; expected cifar10"
    ):
        image_folder.load_image_folder(tmp_path / "nowhere", side=8)
