"""The user's own network, by `--factory`: real modules in real files, good and bad."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.folding.fold import fold_network
from fuseline.export.loading.factory import network_from_factory
from fuseline.serve.errors import ArchitectureError, InputError

SOURCE = """
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, classes=4, channels=3):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        return self.out(F.relu(self.bn(self.conv(x))).mean((2, 3)))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, x):
        return {"logits": self.model(x), "other": x}


@dataclass
class Output:
    logits: torch.Tensor


class AsObject(Net):
    def forward(self, x):
        return Output(super().forward(x))


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


class MixesRows(Net):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0)


class Maps(Net):
    def forward(self, x):
        return self.conv(x)


class Boxes(Net):
    def forward(self, x):
        return {"boxes": x}


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.mul_(2.0))


class Extra(Net):
    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        assert state == {"version": 2}


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(8, 3, padding=1)


class Picky(Net):
    def forward(self, x):
        return super().forward(x.reshape(-1, 3, 17, 17))


def fails():
    return {}["nowhere"]


def gives_a_dict():
    return {"weight": 1}


NUMBER = 3
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's in the current folder; its functions by name."""
    (tmp_path / "own_network.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    namespace: dict[str, Any] = {"__name__": "elsewhere"}
    sys.modules["elsewhere"] = type(sys)("elsewhere")
    exec(SOURCE, namespace)
    yield namespace
    assert sys.path == before
    for name in ("own_network", "own_broken", "elsewhere"):
        sys.modules.pop(name, None)


def checkpoint_of(module: torch.nn.Module, **metadata: Any) -> Checkpoint:
    tensors = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
    return Checkpoint(path=Path("own.pt"), sha256="0" * 64, tensors=tensors, notes=(), metadata=metadata)


def reference(own_code: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    module = own_code["Net"]()
    module.bn.running_mean.uniform_(-0.5, 0.5)
    module.bn.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("factory", ["Net", "Wrapped", "AsObject"])
def test_the_users_network_gives_its_logits_and_folds(own_code: Any, factory: str) -> None:
    module = reference(own_code)
    network = network_from_factory(f"own_network:{factory}", {}, checkpoint_of(module), (16, 16))
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images))
    assert (network.classes, network.in_channels) == (4, 3)
    assert network.architecture == f"{factory} of own_network:{factory}"
    folded = fold_network(network.module, mean=(0.5,) * 3, std=(0.2,) * 3, probe=images)
    assert [network.layer_names[fold.convolution] for fold in folded.folds] == ["conv"]
    assert [network.layer_names[fold.batchnorm] for fold in folded.folds] == ["bn"]


def test_a_network_that_works_in_place_on_its_input_is_no_network_that_mixes_rows(own_code: Any) -> None:
    module = reference(own_code)
    network = network_from_factory("own_network:InPlace", {}, checkpoint_of(module), (16, 16))
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images.clone()), module(2 * images))


def test_state_that_is_no_tensor_is_no_trouble(own_code: Any) -> None:
    assert network_from_factory("own_network:Extra", {}, checkpoint_of(reference(own_code)), (16, 16)).classes == 4


def test_a_module_that_asks_for_the_version_of_its_state_is_no_trouble() -> None:
    import torchvision

    module = torchvision.models.mnasnet0_5(num_classes=3).eval()
    assert (
        network_from_factory(
            "torchvision.models:mnasnet0_5", {"num_classes": 3}, checkpoint_of(module), (64, 64)
        ).classes
        == 3
    )


def test_arguments_are_given_by_keyword(own_code: Any) -> None:
    module = own_code["Net"](classes=7, channels=1)
    network = network_from_factory("own_network:Net", {"classes": 7, "channels": 1}, checkpoint_of(module), (16, 16))
    assert (network.classes, network.in_channels) == (7, 1)


def test_a_library_of_networks_is_reached_too() -> None:
    import torchvision

    module = torchvision.models.resnet18(num_classes=5).eval()
    network = network_from_factory("torchvision.models:resnet18", {"num_classes": 5}, checkpoint_of(module), (64, 64))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images))


@pytest.mark.parametrize(
    ("factory", "arguments", "named"),
    [
        ("own_network", {}, "expected package.module:function"),
        ("own network:Net", {}, "expected package.module:function"),
        ("nowhere_at_all:Net", {}, "No module named 'nowhere_at_all'"),
        ("own_broken:Net", {}, r"No module named 'nowhere_to_be_found' \(own_broken.py, line 1\)"),
        ("own_network:Nett", {}, "own_network has no 'Nett'"),
        ("own_network:NUMBER", {}, "is a int"),
        ("own_network:fails", {}, r"raised KeyError: 'nowhere' \(own_network.py, line \d+\)"),
        ("own_network:Net", {"size": 3}, "unexpected keyword argument 'size'.*--factory-arg"),
        ("own_network:gives_a_dict", {}, "returned a dict; expected a torch.nn.Module"),
        ("own_network:Picky", {}, "raised RuntimeError.*3 x 16 x 16.*--input-size"),
    ],
)
def test_a_factory_that_fails_is_one_clear_error(
    own_code: Any, factory: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){named}"):
        network_from_factory(factory, arguments, checkpoint_of(reference(own_code)), (16, 16))


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        ("Probabilities", "returns probabilities"),
        ("MixesRows", "depend on its neighbours"),
        ("Maps", r"a tensor \(2, 8, 16, 16\) for 2 images"),
        ("Boxes", "returned a dict"),
        ("Lazy", "conv.weight of --factory own_network:Lazy has no shape yet"),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(own_code: Any, factory: str, named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        network_from_factory(f"own_network:{factory}", {}, checkpoint_of(reference(own_code)), (16, 16))


def test_weights_load_strictly(own_code: Any) -> None:
    checkpoint = checkpoint_of(reference(own_code))
    checkpoint.tensors["extra.weight"] = torch.zeros(3)
    del checkpoint.tensors["out.bias"]
    checkpoint.tensors["conv.bias"] = torch.zeros(9)
    with pytest.raises(ArchitectureError) as refused:
        network_from_factory("own_network:Net", {}, checkpoint, (16, 16))
    for text in ("missing: out.bias (4,)", "left over: extra.weight (3,)", "conv.bias is (9,), expected (8,)"):
        assert text in str(refused.value)
