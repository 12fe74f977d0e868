"""Every recipe's checkpoint goes through `export` as it is, and the package answers as the trained network does."""

import importlib

import numpy as np
import onnxruntime
import pytest
import torch

from fuseline.export.commands.export_command import app as export_app
from fuseline.serve.model_package import load_package
from tests.examples.conftest import Silent, invoke
from tests.examples.pictures import write_pictures


@pytest.mark.parametrize("model", ["resnet18-cifar", "resnet34", "resnet20", "plain18"])
def test_checkpoint_is_exported_without_a_flag_and_answers_alike(train, model, tmp_path):
    recipe = train.Recipe(model=model, data="digits", width=2, epochs=1)
    checkpoint = train.train(recipe, tmp_path / "x.pt", Silent())
    package = _exported(tmp_path)
    assert list(package.manifest.labels) == list("0123456789")
    assert list(package.manifest.normalization.mean) == pytest.approx(checkpoint["mean"])
    assert list(package.manifest.normalization.std) == pytest.approx(checkpoint["std"])
    assert (package.manifest.input.height, package.manifest.input.width) == (32, 32)

    data = train.load_data("digits")
    network = train.build_model(model, width=2, classes=10)
    network.load_state_dict(checkpoint["state_dict"])
    with torch.inference_mode():
        expected = network.eval()(train.normalise(data.held_out_images, data.mean, data.std)).numpy()
    session = onnxruntime.InferenceSession(
        package.read(package.find("onnx", "fp32")), providers=["CPUExecutionProvider"]
    )
    pixels = data.held_out_images.permute(0, 2, 3, 1).contiguous().numpy()
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_package_resizes_and_crops_as_the_training_did(train, tmp_path):
    photos = write_pictures(tmp_path / "photos", {"cat": 3, "dog": 3})
    recipe = train.Recipe(model="resnet34", data=str(photos), width=1, epochs=1, input_size=72)
    train.train(recipe, tmp_path / "x.pt", Silent())
    manifest = _exported(tmp_path).manifest
    assert list(manifest.labels) == ["cat", "dog"]
    assert (manifest.input.height, manifest.input.width) == (72, 72)
    resized = importlib.import_module("image_folder").resized_shorter_side(72)
    assert manifest.input.preprocessing.resize_shorter_side == resized == 82
    assert manifest.input.preprocessing.interpolation == "bilinear"


def _exported(folder):
    """By the command as a user types it: the checkpoint's name and not one flag about what is inside."""
    result = invoke(export_app, str(folder / "x.pt"), "--out", str(folder / "package"))
    assert result.exit_code == 0, result.exception
    return load_package(folder / "package")
