"""What BatchNorms remember of the training tells wrong inputs from right ones: on a real network and real pictures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fuseline.export.assumptions.training_statistics import MIN_IMAGES, TrainingStatistics, training_statistics
from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.eager import normalised
from fuseline.export.facts.normalizations import customary
from fuseline.export.recognition.architectures import Recognised, recognise, with_values
from fuseline.export.sample import image_folder
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing

RIGHT = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def recognised(shared_data: Path) -> Recognised:
    return recognise(read_checkpoint(shared_data / "checkpoints" / "resnet20-12fca82f.th").tensors)


@pytest.fixture(scope="module")
def network(recognised: Recognised) -> nn.Module:
    return recognised.module


@pytest.fixture(scope="module")
def pictures(shared_data: Path):
    """uint8 NHWC pictures of the size and kind that it was trained on."""

    def load(side: int = 32, count: int = 64):
        spec = InputSpec(height=side, width=side, preprocessing=Preprocessing(resize_shorter_side=side))
        return image_folder(shared_data / "cifar10-test", count).sample(spec).pixels

    return load


def found(network: nn.Module, images: Tensor) -> TrainingStatistics:
    statistics = training_statistics(network, images)
    assert statistics is not None
    return statistics


@pytest.mark.parametrize("count", [MIN_IMAGES, 64])
def test_right_inputs_are_as_in_training(network: nn.Module, pictures, count: int) -> None:
    statistics = found(network, normalised(pictures(count=count), RIGHT))
    assert statistics.as_in_training, statistics.described
    assert (statistics.images, statistics.batchnorms) == (count, 19)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3)],
    ids=["half", "0..1", "0..255"],
)
def test_another_normalisation_is_found_out(network: nn.Module, pictures, mean, std) -> None:
    statistics = found(network, normalised(pictures(), Normalization(mean=mean, std=std)))
    assert not statistics.as_in_training, statistics.described
    assert "--mean, --std" in statistics.doubt


def test_the_misfit_of_what_is_in_use(recognised: Recognised, pictures) -> None:
    """The figures of docs/checkpoints.md."""

    def misfit(normalization: Normalization = RIGHT, side: int = 32, **values: str) -> float:
        module = with_values(recognised, values)
        return round(found(module, normalised(pictures(side), normalization)).misfit, 2)

    assert misfit() == pytest.approx(0.13, abs=0.01)
    assert misfit(customary(3)["cifar10"]) == pytest.approx(0.15, abs=0.01)
    assert misfit(customary(3)["half"]) == pytest.approx(0.40, abs=0.01)
    assert misfit(shortcut="zeros-after") == pytest.approx(0.46, abs=0.01)
    assert misfit(pool="max3") == pytest.approx(0.57, abs=0.01)
    assert misfit(side=64) == pytest.approx(0.59, abs=0.01)


def test_another_input_size_is_found_out(network: nn.Module, pictures) -> None:
    assert not found(network, normalised(pictures(side=64), RIGHT)).as_in_training


def test_a_max_pool_that_it_was_not_trained_with_is_found_out(network: nn.Module, pictures) -> None:
    pool = network.layer1[0].register_forward_pre_hook(lambda _, taken: (nn.functional.max_pool2d(taken[0], 3, 1, 1),))
    try:
        assert not found(network, normalised(pictures(), RIGHT)).as_in_training
    finally:
        pool.remove()


def test_too_few_images_and_a_network_without_batchnorm_say_nothing() -> None:
    batchnorm = nn.Sequential(nn.BatchNorm2d(3)).eval()
    assert training_statistics(batchnorm, torch.randn(MIN_IMAGES - 1, 3, 8, 8)) is None
    assert training_statistics(nn.Conv2d(3, 3, 1), torch.randn(MIN_IMAGES, 3, 8, 8)) is None


def test_figures_are_the_factor_and_the_shift() -> None:
    batchnorm = nn.BatchNorm2d(2).eval()
    batchnorm.running_mean.copy_(torch.tensor([1.0, 1.0]))
    batchnorm.running_var.copy_(torch.tensor([4.0, 1e-6]))
    images = torch.randn(64, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    statistics = found(nn.Sequential(batchnorm), images)
    assert statistics.variance_factor == pytest.approx(4, rel=0.05)
    assert statistics.mean_shift == pytest.approx(0.5, abs=0.02)
