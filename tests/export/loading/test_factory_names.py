"""Under which names a file's tensors are loaded into a module of --factory: its own first."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.loading.factory import network_from_factory
from fuseline.export.network import TrainedNetwork
from fuseline.serve.errors import ArchitectureError, InputError


class Backbone(nn.Module):
    def __init__(self, head: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn1(self.conv1(x))).mean((2, 3)))


class WithHead(nn.Module):
    """A backbone without its classifier, and another beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Normalises(nn.Module):
    """It holds what else is taken for no part of the network: pixel statistics, a scale, a loss's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("std", torch.rand(3, 1, 1))
        self.model, self.scale = Backbone(head=True), nn.Parameter(torch.tensor(2.5))
        self.criterion = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.criterion(self.scale * self.model((x - self.mean) / self.std))


class Averaged(nn.Module):
    """It has both the plain and the averaged network in it, and gives the averaged one's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.ema_model = Backbone(head=True), Backbone(head=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.ema_model(x)


class Within(nn.Module):
    """Another network in a wrapper of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.network = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainedNetwork]:
    networks = ModuleType("users_networks")
    monkeypatch.setitem(sys.modules, "users_networks", networks)

    def load_into(build: Callable[[], nn.Module], tensors: dict[str, Tensor], ema: bool = False) -> TrainedNetwork:
        networks.build = build  # type: ignore[attr-defined]
        torch.save(tensors, tmp_path / "own.pt")
        checkpoint = read_checkpoint(tmp_path / "own.pt", prefer_ema=ema)
        return network_from_factory("users_networks:build", {}, checkpoint, (8, 8))

    return load_into


def trained(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = build().eval()
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in name or "std" in name else buffer.normal_(std=0.2)
    return module


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_same_logits(network: TrainedNetwork, module: nn.Module) -> None:
    images = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images))


@pytest.mark.parametrize("build", [WithHead, Normalises, Averaged, lambda: Within(WithHead())])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module.", "model."])
def test_the_very_class_that_was_saved_loads_its_own_names(load, build, wrapper):
    module = trained(build)
    network = load(build, under(wrapper, module.state_dict()))
    assert_same_logits(network, module)
    own = [sentence for sentence in network.evidence if "loaded strictly, by the file's" in sentence]
    assert len(own) == 1
    if not wrapper:
        assert own[0].endswith("the file's own names")
        assert set(network.layer_names.values()) <= {name for name, _ in module.named_modules()}


@pytest.mark.parametrize(
    ("build", "prefix"),
    [(lambda: Backbone(head=True), "model."), (lambda: Within(Backbone(head=True)), "model.module.")],
)
def test_a_module_without_the_files_wrapper_or_with_another_loads_what_it_holds(load, build, prefix):
    module = trained(build)
    inner = module.network if isinstance(module, Within) else module
    beside = {"criterion.weight": torch.ones(2)}
    assert_same_logits(load(build, under(prefix, inner.state_dict()) | beside), module)


@pytest.mark.parametrize("wrapper", ["", "module.", "net."])
def test_what_training_needed_beside_a_backbone_and_its_head_is_left_out(load, wrapper):
    module = trained(WithHead)
    content = under(wrapper, module.state_dict() | {"criterion.weight": torch.ones(2)})
    assert_same_logits(load(WithHead, content), module)


def test_averaged_weights_that_were_asked_for_are_loaded(load):
    both = trained(Averaged)
    network = load(lambda: Backbone(head=True), both.state_dict(), ema=True)
    assert_same_logits(network, both.ema_model)
    assert_same_logits(load(lambda: Backbone(head=True), both.state_dict()), both.model)


def test_half_precision_under_the_files_own_names_becomes_float32(load):
    module = trained(WithHead)
    half = {name: value.half() if value.is_floating_point() else value for name, value in module.state_dict().items()}
    network = load(WithHead, half)
    assert all(parameter.dtype == torch.float32 for parameter in network.module.parameters())


def test_one_value_in_a_dimension_of_its_own_fits_a_scalar_as_in_torch_and_not_the_reverse(load):
    module = trained(Normalises)
    state = dict(module.state_dict())
    assert_same_logits(load(Normalises, state | {"scale": state["scale"].reshape(1)}), module)

    class Reverse(Normalises):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(RuntimeError, match="size mismatch"):
        Reverse().load_state_dict(state)
    with pytest.raises(ArchitectureError, match=r"scale is \(\), expected \(1,\)"):
        load(Reverse, state)
    with pytest.raises(ArchitectureError, match=r"scale is \(2,\), expected \(\)"):
        load(Normalises, state | {"scale": torch.ones(2)})


def test_a_refusal_tells_of_the_nearest_names(load):
    state = dict(trained(WithHead).state_dict())
    del state["head.bias"]
    with pytest.raises(ArchitectureError, match=r"nearest by the file's own names: missing: head.bias \(2,\)\. "):
        load(WithHead, state)
    whole = under("model.", dict(trained(lambda: Backbone(head=True)).state_dict()))
    del whole["model.fc.bias"]
    with pytest.raises(ArchitectureError, match=r"nearest by names without wrappers' prefixes: missing: fc.bias \(2,"):
        load(lambda: Backbone(head=True), whole)


@pytest.mark.parametrize("wrapper", [torch.compile, nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net))])
def test_what_runs_a_module_without_computing_of_its_own_is_taken_off(load, wrapper):
    module = trained(Backbone)
    network = load(lambda: wrapper(Backbone()), module.state_dict())
    assert isinstance(network.module, Backbone)
    assert_same_logits(network, module)


def test_a_torchscript_module_is_refused_with_the_cure(load):
    module = trained(Backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Backbone().eval(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match=r"TorchScript module.*return the torch\.nn\.Module that it was"):
        load(lambda: traced, module.state_dict())


def test_several_outputs_are_refused_with_the_cure(load):
    class Two(Backbone):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(ArchitectureError, match=r"returned a tuple .*such as `return outputs\[0\]`"):
        load(Two, trained(Two).state_dict())
