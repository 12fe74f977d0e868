"""The networks of the examples against the papers' numbers and against independent implementations."""

import importlib

import pytest
import torch
import torchvision


@pytest.fixture(scope="module")
def models():
    return importlib.import_module("models")


def _parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet18_has_the_published_parameter_count_and_names(models):
    model = models.build_model("resnet18-cifar", width=64, classes=10)
    assert _parameters(model) == 11_173_962
    assert model.conv1.weight.numel() == 1_728
    assert {"conv1.weight", "bn1.running_var", "layer2.0.shortcut.1.weight", "linear.bias"} <= set(model.state_dict())


def test_resnet34_is_torchvisions_to_the_last_bit_under_the_same_names(models):
    ours = models.build_model("resnet34", width=64, classes=1000)
    theirs = torchvision.models.resnet34()
    assert _parameters(ours) == 21_797_672
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_resnet20_is_the_one_of_the_real_checkpoint(models, shared_data):
    """github.com/akamaster/pytorch_resnet_cifar10's weights, on real pictures: 832 of 1000 are known to be right."""
    weights = torch.load(shared_data / "checkpoints" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    model = models.build_model("resnet20", width=16, classes=10)
    assert _parameters(model) == 269_722
    model.load_state_dict({name.removeprefix("module."): value for name, value in weights["state_dict"].items()})
    data = importlib.import_module("image_folder").load_image_folder(shared_data / "cifar10-test", side=32)
    normalise = importlib.import_module("pixels").normalise
    right = 0
    model.eval()
    with torch.inference_mode():
        for images, classes in (
            (data.train_images, data.train_classes),
            (data.held_out_images, data.held_out_classes),
        ):
            for rows in torch.arange(len(images)).split(200):
                logits = model(normalise(images[rows], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
                right += int((logits.argmax(dim=1) == classes[rows]).sum())
    assert right == 832


def test_plain18_is_one_line_of_17_convolutions_that_strides_where_the_width_doubles(models):
    model = models.build_model("plain18", width=64, classes=10)
    children = list(model.features)
    assert [type(child) for child in children] == [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU] * 17
    convolutions = children[::3]
    assert [c.out_channels for c in convolutions] == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    strided = [c.stride == (2, 2) for c in convolutions]
    assert strided == [c.out_channels == 2 * c.in_channels for c in convolutions]
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)
    tensors = set(model.state_dict())
    assert {"features.0.weight", "features.1.running_mean", "features.48.weight", "fc.weight", "fc.bias"} <= tensors
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    # He et al. 2015: the ResNet has the same layers, and the plain network nothing else.
    resnet = models.build_model("resnet18-cifar", width=64, classes=10)
    projections = sum(p.numel() for name, p in resnet.named_parameters() if "shortcut" in name)
    assert _parameters(model) == _parameters(resnet) - projections


@pytest.mark.parametrize("name", ["plain18", "resnet18-cifar", "resnet20", "resnet34"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("side", [8, 33])
def test_every_model_takes_any_width_and_input_size(models, name, width, side):
    model = models.build_model(name, width=width, classes=3)
    assert next(iter(model.parameters())).shape[0] == width
    assert model(torch.randn(2, 3, side, side)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "width", "classes", "message"),
    [
        ("vgg", 64, 10, "no model is called 'vgg'"),
        ("resnet34", 0, 10, "width and classes must be at least 1, got width 0"),
        ("resnet34", 64, 0, "and 0 classes"),
    ],
)
def test_what_no_model_can_be_is_refused(models, name, width, classes, message):
    with pytest.raises(ValueError, match=message):
        models.build_model(name, width=width, classes=classes)
