"""What lies in a repository and can't be served is told, never passed over in silence."""

import logging
from pathlib import Path

import pytest

from fuseline.serve.model_control.model_folders import ModelFolders
from tests.serve.model_control.repositories import put


def test_a_link_that_leads_nowhere_is_a_model_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "cats").symlink_to(tmp_path / "unmounted/cats")
    assert str(tmp_path / "cats") in ModelFolders([tmp_path]).read_all()["cats"].problem
    assert str(tmp_path / "cats") in ModelFolders([tmp_path]).read("cats").problem


def test_a_version_that_is_a_link_to_nothing_is_a_version_that_can_not_be_read(tmp_path: Path) -> None:
    put(tmp_path, "cats", 1)
    (tmp_path / "cats/2").symlink_to(tmp_path / "unmounted/2")
    sound, broken = ModelFolders([tmp_path]).read_all()["cats"].packages
    assert (sound.version, sound.problem) == ("1", "")
    assert broken.version == "2"
    assert broken.manifest is None
    assert str(tmp_path / "unmounted/2") in broken.problem


@pytest.mark.parametrize("name", ["02", "v2", "latest", "0", "1.0"])
def test_a_package_in_a_folder_that_is_no_version_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    put(tmp_path, "cats", 1)
    put(tmp_path, "other", content=2).rename(tmp_path / "cats" / name)
    (tmp_path / "cats/notes").mkdir()
    folders = ModelFolders([tmp_path])
    for _ in range(3):
        assert [package.version for package in folders.read_all()["cats"].packages] == ["1"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "cats" / name) in record.getMessage()


def test_a_package_whose_folder_can_be_no_models_name_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "cats")
    put(tmp_path, "other", 1).parent.rename(tmp_path / "my cats")
    put(tmp_path, "other").rename(tmp_path / "dogs!")
    (tmp_path / "lost+found").mkdir()
    folders = ModelFolders([tmp_path])
    for _ in range(3):
        assert folders.read_all().keys() == {"cats"}
    told = " ".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2
    assert str(tmp_path / "my cats") in told
    assert str(tmp_path / "dogs!") in told


def test_hidden_folders_and_files_are_nobodys_business(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "cats", 1)
    put(tmp_path, "other", 1).parent.rename(tmp_path / ".staging")
    (tmp_path / "README.md").write_text("models")
    (tmp_path / "cats/config.pbtxt").write_text("")
    assert ModelFolders([tmp_path]).read_all().keys() == {"cats"}
    assert not caplog.records
