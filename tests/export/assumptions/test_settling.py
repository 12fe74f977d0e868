"""What images tell of what tensors don't: networks trained on digits, exported as their users would."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fuseline.export.facts.normalizations import normalization_named
from fuseline.serve.model_package import load_package
from tests.commands import Outcome, Run
from tests.export.digits import HELD_OUT, held_out_folder, trained_on_digits
from tests.export.small_resnets import SmallResNet

SIDE = 16


def trained(folder: Path, network: SmallResNet, normalization: str, *, side: int = SIDE, channels: int = 3) -> float:
    """Write `net.pt` and the held-out digits of class folders `val`; what the network gets right of them."""
    right = trained_on_digits(network, normalization_named(normalization, channels), side=side, channels=channels)
    torch.save(network.state_dict(), folder / "net.pt")
    held_out_folder(folder / "val", side=side, channels=channels)
    return right


def export(run_export: Run, folder: Path, *arguments: object, images: str = "val") -> Outcome:
    return run_export(folder / "net.pt", "--out", folder / "m", "--images", folder / images, *arguments)


def accuracy(folder: Path) -> float:
    (found,) = {check.accuracy for check in load_package(folder / "m").manifest.verification}
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("shortcut", "normalization", "taken"),
    [
        ("zeros-after", "imagenet", "shortcut=zeros-after"),
        ("zeros-around", "half", "normalization=half"),
        ("zeros-after", "0..255", "normalization=0..255,shortcut=zeros-after"),
    ],
)
def test_what_fits_clearly_better_stops_the_export_and_its_command_is_right(
    run_export: Run, tmp_path: Path, shortcut: str, normalization: str, taken: str
) -> None:
    right = trained(tmp_path, SmallResNet(shortcut), normalization)
    stopped = export(run_export, tmp_path)
    assert stopped.exit_code == 1
    assert not (tmp_path / "m").exists()
    assert f"the images fit {taken} clearly better (misfit 0." in stopped.stderr
    command = next(line.strip() for line in stopped.stderr.splitlines() if line.startswith("    fuseline export"))
    assert command.endswith(f"--assume {taken}")
    taken_up = run_export(*command.split()[2:])
    assert taken_up.exit_code == 0, taken_up.stderr
    assert accuracy(tmp_path) == pytest.approx(right, abs=0.5 / HELD_OUT)


def test_without_class_folders_the_batchnorms_tell_alone(run_export: Run, tmp_path: Path) -> None:
    trained(tmp_path, SmallResNet("zeros-after"), "imagenet")
    (tmp_path / "all").mkdir()
    for picture in (tmp_path / "val").rglob("*.png"):
        picture.rename(tmp_path / "all" / picture.name)
    stopped = export(run_export, tmp_path, images="all")
    assert stopped.exit_code == 1
    assert "the images fit shortcut=zeros-after clearly better (misfit 0." in stopped.stderr
    assert " right" not in stopped.stderr


def test_a_flag_holds_against_the_images_and_its_doubt_is_said(run_export: Run, tmp_path: Path) -> None:
    trained(tmp_path, SmallResNet(), "half")
    result = export(run_export, tmp_path, "--assume", "normalization=imagenet")
    assert result.exit_code == 0, result.stderr
    assert load_package(tmp_path / "m").manifest.normalization.mean == (0.485, 0.456, 0.406)
    assert "the images fit normalization=half clearly better" in result.stderr
    assert "than what a flag says, normalization=imagenet" in result.stderr


def test_what_was_assumed_rightly_passes_and_is_settled_by_the_images(run_export: Run, tmp_path: Path) -> None:
    right = trained(tmp_path, SmallResNet(), "imagenet")
    result = export(run_export, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert accuracy(tmp_path) == pytest.approx(right, abs=0.5 / HELD_OUT)
    manifest = load_package(tmp_path / "m").manifest
    assert manifest.labels == tuple("0123456789")
    assert manifest.input.row_shape == (SIDE, SIDE, 3)
    settled = {assumption.key: assumption.settled_by for assumption in manifest.assumptions}
    assert settled["size"] == "images: all of them have this size"
    assert settled["folders"].startswith("images: ")
    assert settled["stem-stride"].startswith("images: misfit")
    for assumption in manifest.assumptions:
        assert (f"warning: {assumption.line}" in result.stderr) == assumption.is_open
    assert f"{round(right * HELD_OUT)} of {HELD_OUT} right (eager {round(right * HELD_OUT)})" in result.stderr


def test_grey_pictures_of_28_pixels_tell_their_size_and_nothing_guesses_it(run_export: Run, tmp_path: Path) -> None:
    right = trained(tmp_path, SmallResNet(channels=1, pool=7), "half", side=28, channels=1)
    asked = run_export(tmp_path / "net.pt", "--out", tmp_path / "m")
    assert asked.exit_code == 2
    assert "--input-size 28" in asked.stderr
    result = export(run_export, tmp_path, "--mean", "0.5", "--std", "0.5")
    assert result.exit_code == 0, result.stderr
    assert load_package(tmp_path / "m").manifest.input.row_shape == (28, 28, 1)
    assert accuracy(tmp_path) == pytest.approx(right, abs=0.5 / HELD_OUT)


def test_pictures_that_are_all_enlarged_are_said(run_export: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(4):
        picture = Image.fromarray(random.integers(0, 256, (20 + number, 24, 3), np.uint8))
        picture.save(tmp_path / f"{number}.png")
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--images", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "4 of 4 images are smaller than the input, 32 x 32 RGB, and were enlarged" in result.stderr


def test_an_accuracy_near_chance_stops_the_export(run_export: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Ten folders for ten classes, and a network that never saw digits."""
    folder = held_out_folder(tmp_path / "val", side=32)
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--images", folder)
    assert result.exit_code == 1
    assert "and guessing gets" in result.stderr
    other = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--images", folder, "--assume", "folders=other")
    assert other.exit_code == 0, other.stderr
    assert load_package(tmp_path / "m").manifest.labels == tuple("0123456789")
    assert load_package(tmp_path / "m").manifest.verification[0].accuracy is None


def test_strict_refuses_while_anything_is_open_and_flags_settle_it(
    run_export: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    refused = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--strict")
    assert refused.exit_code == 2
    assert not (tmp_path / "m").exists()
    lines = [line.strip() for line in refused.stderr.splitlines() if line.startswith("  assumed ")]
    assert {"size", "normalization", "pool", "activation"} <= {line.split()[1].partition("=")[0] for line in lines}
    settling = refused.stderr.splitlines()[-1].removeprefix("Where all of it is so: --assume ")
    assert settling.split(",") == [line.split()[1].rstrip(":") for line in lines]
    passed = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--strict", "--assume", settling)
    assert passed.exit_code == 0, passed.stderr
    assumptions = load_package(tmp_path / "m").manifest.assumptions
    assert len(assumptions) >= len(lines)
    assert not any(assumption.is_open for assumption in assumptions)
    assert json.loads((tmp_path / "m" / "manifest.json").read_text())["assumptions"][0]["settled_by"]


@pytest.mark.parametrize(
    ("assume", "named"),
    [
        ("shortcut", "KEY=VALUE was expected"),
        ("nothing=1", "nothing of this network is called nothing; it has: size, normalization"),
        ("activation=swosh", "one of relu, relu6"),
        ("eps=big", "above 0 and below 1"),
        ("normalization=imagnet", "one of imagenet, cifar10"),
        ("size=huge", "--input-size 'huge'"),
        ("folders=classes", "--images DIR"),
        ("pool=max3,pool=none", "came twice"),
    ],
)
def test_assumptions_that_make_no_sense_are_refused(
    run_export: Run, tmp_path: Path, tiny_checkpoint: Path, assume: str, named: str
) -> None:
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--assume", assume)
    assert result.exit_code == 2
    assert named in result.stderr
