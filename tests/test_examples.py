"""The training recipe: what it writes, that it resumes exactly, and that a failure leaves the old checkpoint."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
_MODULES = ("checkpoints", "data", "models", "timing", "train")


class _Silent:
    def batches_done(self, done, total):
        pass

    def say(self, line):
        pass


class _Interrupting(_Silent):
    """Stops a training, as Ctrl-C does, in the middle of epoch 2."""

    def batches_done(self, done, total):
        if done > total / 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def train() -> Iterator[ModuleType]:
    """examples/train.py, imported as Python imports it when it runs: with its own folder first on the path."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train as module

        yield module
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in _MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def _few_images(train: ModuleType) -> Iterator[None]:
    """Real digits, but so few that an epoch takes a fraction of a second."""
    full = train.load_data

    def few(name: str):
        data = full(name)
        return type(data)(
            labels=data.labels,
            train_images=data.train_images[:200],
            train_classes=data.train_classes[:200],
            held_out_images=data.held_out_images[:40],
            held_out_classes=data.held_out_classes[:40],
            flip=data.flip,
        )

    train.load_data = few
    yield
    train.load_data = full


@pytest.fixture(scope="module")
def recipe(train: ModuleType):
    return train.Recipe(model="resnet18-cifar", data="digits", width=2, epochs=2)


@pytest.fixture(scope="module")
def finished(train: ModuleType, recipe, tmp_path_factory) -> Path:
    """The checkpoint of an uninterrupted training of two epochs."""
    path = tmp_path_factory.mktemp("finished") / "digits.pt"
    train.train(recipe, path, _Silent())
    return path


def test_checkpoint_carries_all_that_export_and_resuming_need(finished):
    checkpoint = torch.load(finished, weights_only=True)
    assert set(checkpoint) == {
        "state_dict", "labels", "mean", "std", "input_size", "epoch", "accuracy", "optimizer", "scheduler", "recipe",
    }  # fmt: skip
    assert checkpoint["labels"] == list("0123456789")
    assert checkpoint["input_size"] == 32
    assert len(checkpoint["mean"]) == len(checkpoint["std"]) == 3
    assert checkpoint["epoch"] == 2
    assert 0 <= checkpoint["accuracy"] <= 1
    assert {"conv1.weight", "bn1.running_var", "layer2.0.shortcut.1.weight", "linear.bias"} <= set(
        checkpoint["state_dict"]
    )


def test_training_that_was_interrupted_ends_at_the_same_weights(train, recipe, finished, tmp_path):
    path = tmp_path / "digits.pt"
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, path, _Interrupting())
    assert torch.load(path, weights_only=True)["epoch"] == 1
    train.train(recipe, path, _Silent())
    _assert_equal(torch.load(path, weights_only=True), torch.load(finished, weights_only=True))


def test_finished_training_is_left_as_it_is(train, recipe, finished):
    before = finished.read_bytes()
    checkpoint = train.train(recipe, finished, _Silent())
    assert checkpoint["epoch"] == 2
    assert finished.read_bytes() == before


def test_another_recipe_is_refused_and_restart_replaces(train, recipe, finished, tmp_path):
    path = tmp_path / "digits.pt"
    path.write_bytes(finished.read_bytes())
    other = train.Recipe(model="resnet18-cifar", data="digits", width=3, epochs=1)
    with pytest.raises(ValueError, match="trained with width 2, not 3; epochs 2, not 1; --restart replaces it"):
        train.train(other, path, _Silent())
    assert path.read_bytes() == finished.read_bytes()
    train.train(other, path, _Silent(), restart=True)
    assert torch.load(path, weights_only=True)["recipe"]["width"] == 3


def test_file_that_is_no_checkpoint_is_refused_and_kept(train, recipe, tmp_path):
    path = tmp_path / "digits.pt"
    path.write_text("dear diary")
    with pytest.raises(ValueError, match="is no checkpoint that can be read"):
        train.train(recipe, path, _Silent())
    assert path.read_text() == "dear diary"


def test_foreign_checkpoint_is_refused_and_kept(train, recipe, tmp_path):
    path = tmp_path / "digits.pt"
    torch.save({"state_dict": {}}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"was not written by train\.py: it has no accuracy"):
        train.train(recipe, path, _Silent())
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


def test_loss_that_diverges_is_an_error_and_writes_nothing(train, tmp_path):
    recipe = train.Recipe(model="resnet18-cifar", data="digits", width=2, epochs=1, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        train.train(recipe, tmp_path / "digits.pt", _Silent())
    assert list(tmp_path.iterdir()) == []


def test_resnet18_of_width_64_has_the_published_parameter_count(train):
    model = train.build_model("resnet18-cifar", width=64, classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert model.conv1.weight.numel() == 1_728


def test_crops_are_shifts_by_up_to_four_pixels_with_black_coming_in(train):
    pixels = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    crops = train.random_crops(pixels, torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    shifts = []
    for crop, source in zip(crops, padded, strict=True):
        fits = [(y, x) for y in range(9) for x in range(9) if torch.equal(crop, source[:, y : y + 32, x : x + 32])]
        assert len(fits) == 1
        shifts += fits
    assert len(set(shifts)) > 30
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))


def test_flips_mirror_some_images_and_leave_the_others(train):
    pixels = torch.arange(40 * 3 * 2 * 5, dtype=torch.int32).reshape(40, 3, 2, 5)
    flipped = train.random_flips(pixels, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(out, image.flip(2)) for out, image in zip(flipped, pixels, strict=True)]
    kept = [torch.equal(out, image) for out, image in zip(flipped, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 5 < sum(mirrored) < 35


def test_digits_are_split_once_and_for_all(train):
    from data import load_data

    data = load_data("digits")
    assert (len(data.train_images), len(data.held_out_images)) == (1437, 360)
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert not data.flip, "a mirrored digit is another sign"
    counts = np.bincount(data.held_out_classes)
    assert counts.min() >= 35, "each class has its fifth"
    assert torch.equal(data.held_out_images, load_data("digits").held_out_images)


def test_enlarged_digits_span_black_to_white():
    from data import rgb_from_grey16

    grey = np.zeros((2, 8, 8))
    grey[1] = 16
    assert rgb_from_grey16(grey).reshape(2, -1).tolist() == [[0] * 3072, [255] * 3072]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16"):
        rgb_from_grey16(grey * 2)


def test_timing_checks_the_answers_that_it_times(train):
    from timing import Contender, time_in_turns

    expected = np.array([3, 1, 4])
    right = Contender("right", lambda positions: expected[list(positions)], lambda p: expected[list(p)], many=2)
    time_in_turns([right], expected, rounds=2, stretch_s=0.001, on_stretch_done=lambda: None)
    assert len(right.latencies_ms) == len(right.images_per_s) == 2
    throughput_only = Contender("throughput only", None, lambda p: expected[list(p)], many=2)
    time_in_turns([throughput_only], expected, rounds=1, stretch_s=0.001, on_stretch_done=lambda: None)
    assert (throughput_only.latencies_ms, len(throughput_only.images_per_s)) == ([], 1)
    wrong = Contender("wrong", lambda positions: expected[list(positions)], lambda p: expected[list(p)] + 1, many=2)
    with pytest.raises(RuntimeError, match="wrong answered"):
        time_in_turns([wrong], expected, rounds=1, stretch_s=0.001, on_stretch_done=lambda: None)


def test_command_trains_and_wrong_input_exits_with_2(tmp_path):
    out = tmp_path / "new" / "digits.pt"
    done = _run("--width", "1", "--epochs", "1", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "epoch   1 of 1" in done.stdout
    assert torch.load(out, weights_only=True)["epoch"] == 1
    refused = _run("--model", "vgg", "-o", str(tmp_path / "other.pt"))
    assert refused.returncode == 2
    assert "resnet18-cifar" in refused.stderr


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


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
