import json
from pathlib import Path

import pytest

from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import (
    MANIFEST_NAME,
    Manifest,
    file_facts,
    load_package,
    save_manifest,
)
from fuseline.serve.package_destination import check_destination, new_package_folder
from tests.fakes.colours import write_colours_package
from tests.refusals import refusal_of


def write_package(folder: Path) -> Manifest:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "reference.npz").write_bytes(b"answers")
    manifest = Manifest.model_validate(
        {
            "name": "tiny",
            "architecture": "test",
            "input": {"height": 8, "width": 8, "preprocessing": {"resize_shorter_side": 8}},
            "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
            "labels": ["a", "b"],
            "artifacts": [file_facts(folder, "model.onnx") | {"format": "onnx", "precision": "fp32"}],
            "reference": file_facts(folder, "reference.npz"),
            "provenance": {"checkpoint": "tiny.pt"},
        }
    )
    save_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_package(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    manifest = write_package(tmp_path / "tiny")
    package = load_package(tmp_path / "tiny")
    assert package.manifest == manifest
    assert package.read(manifest.artifacts[0]) == b"graph"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format_version": 2}, "format_version"),
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"labels": []}, "labels"),
        ({"artifacts": []}, "artifacts"),
        ({"reference": None}, "reference"),
        ({"surprise": 1}, "surprise"),
        ({"input": {"height": 0, "width": 8, "preprocessing": {"resize_shorter_side": 8}}}, "input.height"),
        ({"input": {"height": 8, "width": 8, "channels": 2, "preprocessing": {"resize_shorter_side": 8}}}, "channels"),
        (
            {"input": {"height": 8, "width": 8, "dtype": "float32", "preprocessing": {"resize_shorter_side": 8}}},
            "no graph takes float32 NHWC",
        ),
        ({"normalization": {"mean": [0.5], "std": [0.25]}}, "1 means for 3 channels"),
        ({"normalization": {"mean": [0.5] * 3, "std": [0.25, 0.25, 0]}}, "std must be above 0"),
        ({"normalization": {"mean": [0.5] * 3, "std": [0.25]}}, "3 means but 1"),
    ],
)
def test_each_broken_rule_is_named(folder: Path, change: dict[str, object], named: str) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PackageError, match="manifest") as caught:
        load_package(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"path": "../model.onnx"}, "stay inside"),
        ({"path": "/etc/passwd"}, "stay inside"),
        ({"path": "a/../model.onnx"}, "stay inside"),
        ({"path": ""}, "stay inside"),
        ({"sha256": "0"}, "sha256"),
        ({"bytes": 0}, "bytes"),
        ({"precision": "fp8"}, "precision"),
        ({"format": "pickle"}, "format"),
        ({"precision": "fp16"}, "no FP32 ONNX"),
    ],
)
def test_each_broken_rule_of_an_artifact_is_named(folder: Path, change: dict[str, object], named: str) -> None:
    path = folder / MANIFEST_NAME
    plain = json.loads(path.read_text())
    plain["artifacts"][0] |= change
    path.write_text(json.dumps(plain))
    assert named in refusal_of(PackageError, load_package, folder)


def test_an_artifact_listed_twice_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    plain = json.loads(path.read_text())
    plain["artifacts"] *= 2
    path.write_text(json.dumps(plain))
    with pytest.raises(PackageError, match="listed twice"):
        load_package(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(PackageError):
        load_package(folder)


def test_a_folder_that_is_no_package_is_told_how_to_become_one(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="fuseline export"):
        load_package(tmp_path / "nowhere")
    with pytest.raises(PackageError, match="has no manifest.json"):
        load_package(tmp_path)


def test_a_changed_artifact_is_refused_by_its_digest(folder: Path) -> None:
    package = load_package(folder)
    (folder / "model.onnx").write_bytes(b"grapf")
    with pytest.raises(PackageError, match="sha256"):
        package.read(package.manifest.artifacts[0])
    (folder / "model.onnx").unlink()
    with pytest.raises(PackageError, match="can't be read"):
        package.read(package.manifest.artifacts[0])


def test_a_link_out_of_the_package_is_refused(folder: Path, tmp_path: Path) -> None:
    package = load_package(folder)
    (tmp_path / "elsewhere").write_bytes(b"graph")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="outside the package"):
        package.read(package.manifest.artifacts[0])


def test_a_new_folder_appears_only_when_all_went_well(tmp_path: Path) -> None:
    destination = tmp_path / "sub" / "model"
    with new_package_folder(destination, replace=False) as staging:
        (staging / "file").write_text("x")
        assert not destination.exists()
    assert (destination / "file").read_text() == "x"
    assert [path.name for path in destination.parent.iterdir()] == ["model"]


def test_a_failure_leaves_nothing_new_and_keeps_the_old(folder: Path) -> None:
    before = (folder / MANIFEST_NAME).read_bytes()

    def fail() -> None:
        with new_package_folder(folder, replace=True) as staging:
            (staging / MANIFEST_NAME).write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert (folder / MANIFEST_NAME).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_existing_package_is_kept_unless_replace(folder: Path) -> None:
    with pytest.raises(PackageError, match="--force"), new_package_folder(folder, replace=False):
        pytest.fail("the block must not run")
    with new_package_folder(folder, replace=True) as staging:
        (staging / MANIFEST_NAME).write_text("new")
    assert (folder / MANIFEST_NAME).read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("manifest", ["", "[]", '{"manifest_version": 3}'])
def test_a_folder_that_is_no_package_is_never_replaced(tmp_path: Path, manifest: str) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1").write_text("words")
    (precious / MANIFEST_NAME).write_text(manifest)
    with pytest.raises(PackageError, match="no model package"), new_package_folder(precious, replace=True):
        pytest.fail("the block must not run")
    assert (precious / "chapter1").exists()


@pytest.mark.parametrize("which", [1, 2])
def test_an_interrupted_replacement_brings_the_old_package_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Ctrl-C during the first rename, then during the second."""
    before = (folder / MANIFEST_NAME).read_bytes()
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == which:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_package_folder(folder, replace=True) as staging:
        (staging / MANIFEST_NAME).write_text("new")
    assert (folder / MANIFEST_NAME).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_path_that_cannot_be_looked_at_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="File name too long"):
        load_package(tmp_path / ("x" * 300))
    with pytest.raises(PackageError, match="File name too long"):
        check_destination(tmp_path / ("x" * 300), replace=False)


def test_names_that_every_package_once_had_are_not_written_for_the_sake_of_earlier_servers(tmp_path: Path) -> None:
    written = json.loads((write_colours_package(tmp_path / "usual") / "manifest.json").read_text())
    assert "name" not in written["input"]
    assert "output_name" not in written
    chosen = write_colours_package(tmp_path / "chosen", input_name="pixels", output_name="scores")
    written = json.loads((chosen / "manifest.json").read_text())
    assert (written["input"]["name"], written["output_name"]) == ("pixels", "scores")
    manifest = load_package(chosen).manifest
    assert (manifest.input.name, manifest.output_name) == ("pixels", "scores")
