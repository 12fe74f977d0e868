from pathlib import Path

import pytest
from PIL import Image

from fuseline.export.class_folders import ClassFolders, class_folders
from fuseline.export.sample import image_folder


def told(folder: Path, names: list[str], labels: list[str] | None, classes: int) -> tuple[ClassFolders | None, str]:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "x.png")
    return class_folders(image_folder(folder, 100), labels, classes)


def test_sorted_names_are_the_classes_and_the_labels(tmp_path: Path) -> None:
    found, _ = told(tmp_path, ["dog", "cat", "Ant"], None, 3)
    assert found is not None
    assert (found.labels, found.truth.tolist(), found.doubts) == (("Ant", "cat", "dog"), [0, 1, 2], ())


def test_labels_that_name_the_folders_say_the_classes(tmp_path: Path) -> None:
    """Also where there are fewer folders than classes, and in another order."""
    found, _ = told(tmp_path, ["tabby_cat", "dog"], ["Dog", "fox", "tabby cat"], 3)
    assert found is not None
    assert (found.labels, found.truth.tolist(), found.doubts) == (None, [0, 2], ())


def test_names_that_do_not_fit_the_labels_are_said(tmp_path: Path) -> None:
    found, _ = told(tmp_path, ["n01", "n02"], ["cat", "dog"], 2)
    assert found is not None
    assert found.truth.tolist() == [0, 1]
    assert "(n01, n02) don't fit the labels (cat, dog)" in found.doubts[0]


def test_numbers_that_sort_otherwise_as_texts_are_said(tmp_path: Path) -> None:
    found, _ = told(tmp_path, [str(number) for number in range(11)], None, 11)
    assert found is not None
    assert found.labels is not None
    assert found.labels[2] == "10"
    assert "--labels FILE" in found.doubts[0]


@pytest.mark.parametrize(
    ("names", "classes", "why"),
    [
        (["a", "b"], 10, "there are 2 folders (a, b) for 10 classes"),
        (["train", "val"], 2, "/val names one"),
        (["deeper"], 10, ""),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, names: list[str], classes: int, why: str) -> None:
    found, said = told(tmp_path, names, None, classes)
    assert found is None
    assert why in said
    assert bool(why) == bool(said)


def test_images_beside_the_folders_have_no_class(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    found, said = told(tmp_path, ["a", "b"], None, 2)
    assert found is None
    assert "beside the folders" in said


def test_what_tools_leave_beside_the_images_is_no_class(tmp_path: Path) -> None:
    for place in (".thumbnails", "__MACOSX/cat", "cat/.ipynb_checkpoints"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "x.png")
    (tmp_path / "cat" / "._x.png").write_bytes(b"\0\5\x16\7")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "x.png")
    found, _ = told(tmp_path, ["dog", "fox"], None, 3)
    assert found is not None
    assert (found.labels, found.truth.tolist()) == (("cat", "dog", "fox"), [0, 1, 2])


def test_folders_may_be_links_and_none_is_taken_twice(tmp_path: Path) -> None:
    told(tmp_path / "all", ["cat", "dog"], None, 2)
    (tmp_path / "val").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).symlink_to(tmp_path / "all" / name)
    (tmp_path / "all" / "cat" / "loop").symlink_to(tmp_path / "val")
    images = image_folder(tmp_path / "val", 100)
    assert sorted(path.name for path in images.files) == ["x.png", "x.png"]
    found, _ = class_folders(images, None, 2)
    assert found is not None
    assert found.truth.tolist() == [0, 1]
