"""The training recipe: what it writes, that it resumes exactly, and that a failure leaves the old checkpoint."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.examples.conftest import EXAMPLES, Silent, command, invoke
from tests.examples.pictures import write_pictures

MODELS = ("plain18", "resnet18-cifar", "resnet20", "resnet34")


class _Interrupting(Silent):
    """Stops a training, as Ctrl-C does, in the middle of epoch 2."""

    def progress(self, what, done, total):
        if what == "training" and done > total / 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def recipe(train: ModuleType):
    return train.Recipe(model="resnet18-cifar", data="digits", width=2, epochs=2)


@pytest.fixture(scope="module")
def finished(train: ModuleType, recipe, tmp_path_factory) -> Path:
    """The checkpoint of an uninterrupted training of two epochs."""
    path = tmp_path_factory.mktemp("finished") / "digits.pt"
    train.train(recipe, path, Silent())
    return path


def test_checkpoint_carries_all_that_export_and_resuming_need(recipe, finished):
    checkpoint = torch.load(finished, weights_only=True)
    assert set(checkpoint) == {
        "state_dict", "labels", "mean", "std", "input_size", "epoch", "accuracy", "optimizer", "scheduler", "recipe",
        "images",
    }  # fmt: skip
    assert checkpoint["labels"] == list("0123456789")
    assert checkpoint["input_size"] == 32
    assert len(checkpoint["mean"]) == len(checkpoint["std"]) == 3
    assert checkpoint["epoch"] == 2
    assert checkpoint["recipe"] == asdict(recipe)
    assert 0 <= checkpoint["accuracy"] <= 1


def test_recipe_is_the_published_one(train, finished):
    recipe = train.Recipe(model="resnet18-cifar", data="digits", width=2, epochs=2)
    assert (recipe.batch_rows, recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (128, 0.1, 0.9, 5e-4)
    checkpoint = torch.load(finished, weights_only=True)
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)
    assert group["lr"] == pytest.approx(0, abs=1e-12), "the cosine ends at 0"
    assert checkpoint["scheduler"]["T_max"] == 2


@pytest.mark.parametrize("model", MODELS)
def test_training_that_was_interrupted_ends_at_the_same_weights(train, model, tmp_path, silent):
    recipe = train.Recipe(model=model, data="digits", width=2, epochs=2)
    straight, path = tmp_path / "straight.pt", tmp_path / "interrupted.pt"
    train.train(recipe, straight, silent)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, path, _Interrupting())
    assert torch.load(path, weights_only=True)["epoch"] == 1
    train.train(recipe, path, silent)
    _assert_equal(torch.load(path, weights_only=True), torch.load(straight, weights_only=True))


def test_accuracy_is_that_of_the_last_epoch(train, recipe, finished):
    checkpoint = torch.load(finished, weights_only=True)
    model = train.build_model(recipe.model, width=recipe.width, classes=10)
    model.load_state_dict(checkpoint["state_dict"])
    assert checkpoint["accuracy"] == train.held_out_accuracy(model, train.load_data("digits"))


def test_finished_training_is_left_as_it_is(train, recipe, finished, silent):
    before = finished.read_bytes()
    checkpoint = train.train(recipe, finished, silent)
    assert checkpoint["epoch"] == 2
    assert finished.read_bytes() == before


def test_another_recipe_is_refused_and_restart_replaces(train, finished, tmp_path, silent):
    path = tmp_path / "digits.pt"
    path.write_bytes(finished.read_bytes())
    other = train.Recipe(model="resnet18-cifar", data="digits", width=3, epochs=1)
    with pytest.raises(ValueError, match="trained with width 2, not 3; epochs 2, not 1; --restart replaces it"):
        train.train(other, path, silent)
    assert path.read_bytes() == finished.read_bytes()
    train.train(other, path, silent, restart=True)
    assert torch.load(path, weights_only=True)["recipe"]["width"] == 3


def test_file_that_is_no_checkpoint_is_refused_and_kept(train, recipe, tmp_path, silent):
    path = tmp_path / "digits.pt"
    path.write_text("dear diary")
    with pytest.raises(ValueError, match="is no checkpoint that can be read"):
        train.train(recipe, path, silent)
    assert path.read_text() == "dear diary"


def test_foreign_checkpoint_is_refused_and_kept(train, recipe, tmp_path, silent):
    path = tmp_path / "digits.pt"
    torch.save({"state_dict": {}}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"was not written by train\.py: it has no accuracy"):
        train.train(recipe, path, silent)
    assert path.read_bytes() == before


def test_disk_that_fills_up_leaves_the_old_checkpoint_and_no_litter(train, finished, tmp_path, monkeypatch):
    path = tmp_path / "digits.pt"
    path.write_bytes(finished.read_bytes())

    def full_disk(checkpoint, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train.save_checkpoint({}, path)
    assert path.read_bytes() == finished.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_loss_that_diverges_is_an_error_and_writes_nothing(train, tmp_path, silent):
    recipe = train.Recipe(model="resnet18-cifar", data="digits", width=2, epochs=1, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        train.train(recipe, tmp_path / "digits.pt", silent)
    assert list(tmp_path.iterdir()) == []


def test_a_rest_of_one_image_joins_the_batch_before(train, tmp_path, silent):
    # At 32 x 32 pixels resnet34 ends in 1 x 1: BatchNorm refuses to train on one row of it.
    recipe = train.Recipe(model="resnet34", data="digits", width=1, epochs=1, batch_rows=199)
    assert train.train(recipe, tmp_path / "digits.pt", silent)["epoch"] == 1
    parts = [len(part) for part in train._batches(torch.arange(10), 3)]
    assert parts == [3, 3, 4]


def test_command_trains_and_the_same_command_again_has_nothing_to_do(train, tmp_path):
    out = tmp_path / "new" / "pictures.pt"
    pictures = write_pictures(tmp_path / "pictures", {"cat": 5, "dog": 5})
    arguments = ("--model", "resnet20", "--width", "1", "--input-size", "8", "--epochs", "1", "--data", str(pictures))
    done = _run(*arguments, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "8 images of 2 classes to train on, 2 held out" in done.stdout
    assert "epoch   1 of 1" in done.stdout
    assert torch.load(out, weights_only=True)["epoch"] == 1
    again = invoke(command(train.main), *arguments, "-o", str(out))
    assert again.exit_code == 0
    assert "nothing is left to do" in again.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "vgg"], "no model is called 'vgg'; the models are plain18, resnet18-cifar, resnet20, resnet34"),
        (["--data", "no/such/folder"], "there is no folder no/such/folder"),
        (["--input-size", "64"], "digits has images of 32 x 32 pixels, --input-size 64 is for a folder"),
        (["--width", "0"], "--width"),
        (["--input-size", "7"], "--input-size"),
        (["--epochs", "0"], "--epochs"),
    ],
)
def test_wrong_input_exits_with_2_and_says_why(train, arguments, expected, tmp_path):
    out = tmp_path / "other.pt"
    result = invoke(command(train.main), *arguments, "-o", str(out))
    assert result.exit_code == 2
    assert expected in result.output
    assert not out.exists()


def test_interruption_exits_with_130_and_says_what_is_kept(train, monkeypatch, tmp_path):
    out = tmp_path / "x.pt"
    arguments = ("--model", "resnet20", "--width", "1", "--epochs", "2", "-o", str(out))
    full_epoch = train._train_epoch

    def interrupt_epoch(number):
        def epoch(*parts, **more):
            if more["epoch"] == number:
                raise KeyboardInterrupt
            return full_epoch(*parts, **more)

        monkeypatch.setattr(train, "_train_epoch", epoch)

    for number, kept in ((1, "no epoch was finished"), (2, f"{out} has the last finished epoch")):
        interrupt_epoch(number)
        result = invoke(command(train.main), *arguments)
        assert result.exit_code == 130
        assert f"interrupted: {kept}; the same command goes on" in result.output


@pytest.mark.parametrize(
    ("model", "width", "first_widths"),
    [("resnet18-cifar", 64, 64), ("resnet34", 64, 64), ("resnet20", 16, 16), ("plain18", 64, 64)],
)
def test_width_not_given_is_that_of_the_paper(train, model, width, first_widths, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda recipe, *rest, **more: seen.append(recipe) or {"accuracy": 0.0})
    assert invoke(command(train.main), "--model", model, "-o", str(tmp_path / "x.pt")).exit_code == 0
    (recipe,) = seen
    assert recipe.width == width
    first = next(iter(train.build_model(model, width=recipe.width, classes=10).parameters()))
    assert len(first) == first_widths


@pytest.mark.parametrize(("data", "expected"), [("digits", 32), ("cifar10", 32), ("photos", 224)])
def test_input_size_not_given_is_the_models_for_a_folder_and_32_otherwise(train, data, expected, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda recipe, *rest, **more: seen.append(recipe) or {"accuracy": 0.0})
    invoke(command(train.main), "--model", "resnet34", "--data", data, "-o", str(tmp_path / "x.pt"))
    assert seen[0].input_size == expected


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(EXAMPLES / "train.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)


def _assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
