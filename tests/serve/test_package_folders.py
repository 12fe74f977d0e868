"""Packages, and folders of them."""

import logging
import os
from pathlib import Path

import pytest

from fuseline.serve.errors import PackageError
from fuseline.serve.package_folders import package_folders


def packages_in(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    return [folder / name for name in names]


def test_a_folder_of_packages_stands_for_them_by_name(tmp_path: Path) -> None:
    first, second = packages_in(tmp_path / "models", "a", "b")
    other = packages_in(tmp_path, "other")[0]
    assert package_folders([other, tmp_path / "models"]) == [other, first, second]


def test_what_is_no_folder_is_left_to_the_loader(tmp_path: Path) -> None:
    assert package_folders([tmp_path / "nowhere"]) == [tmp_path / "nowhere"]


def test_what_is_no_package_is_named_and_what_export_still_writes_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package,) = packages_in(tmp_path, "a")
    packages_in(tmp_path, ".b.1.partial")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        assert package_folders([tmp_path]) == [package]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/lost+found has no manifest.json and is passed over"
    ]


def test_a_folder_with_no_package_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"holds none; put one there \(in a container: -v .*:.*/resnet18\)"):
        package_folders([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder; the container test has another user")
def test_a_folder_that_cant_be_entered_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (package,) = packages_in(tmp_path, "a")
    package.chmod(0)
    try:
        with pytest.raises(PackageError, match=r"Permission denied; `chmod -R a\+rX`"):
            package_folders([tmp_path])
    finally:
        package.chmod(0o755)
