"""The user's own network: built by their function, loaded strictly from the checkpoint, and tried before it is trusted.

It is the way for everything that can't be told from tensors. The function is named by the user, so its code is run;
code that lies in a checkpoint never is.
"""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from export.checkpoint import Checkpoint
from export.network import TrainedNetwork
from serve.errors import ArchitectureError, InputError

DEFAULT_INPUT_SIDE = 224
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAMES_SHOWN = 6
_COUNTER = "num_batches_tracked"
# Two rows and one row may take other kernels; a network that mixes rows is off by far more.
_ROW_TOLERANCE = 1e-3


def network_from_factory(
    reference: str, arguments: Mapping[str, Any], checkpoint: Checkpoint, input_size: tuple[int, int] | None = None
) -> TrainedNetwork:
    """The network that `reference` (`package.module:function`) builds, with the weights of `checkpoint`.

    The module takes normalised float32 NCHW images and returns logits (rows, classes), or an object or mapping with
    `logits`. Modules beside the current folder are found.

    Args:
        reference: the function or class; called with `arguments` by keyword.
        arguments: plain values.
        checkpoint: its tensors must be the module's, by name and shape, all of them.
        input_size: (height, width) in pixels on which the module is tried; default: the checkpoint's, else 224.

    Raises:
        InputError: `reference` names nothing that can be called, its code raises, or it gives no `nn.Module`.
        ArchitectureError: the tensors don't fit, or what the module returns are no logits of one row each.
    """
    module = _built(reference, arguments)
    loaded, prefix = _load_strictly(module, checkpoint, reference)
    module = module.float().eval().requires_grad_(False)
    stored = checkpoint.metadata.get("input_size")
    side = stored if isinstance(stored, int) else DEFAULT_INPUT_SIDE
    channels = _in_channels(module)
    tried, classes, opened = _tried(module, channels, input_size or (side, side), reference)
    names = {f"{opened}{layer}": layer.removeprefix(prefix) for layer in _layers(module)}
    return TrainedNetwork(
        module=tried,
        architecture=f"{type(module).__name__} of {reference}",
        evidence=(f"built by {reference}", f"all {loaded} tensors of the checkpoint loaded strictly"),
        layer_names=names,
        classes=classes,
        in_channels=channels,
        default_input_size=side,
    )


class LogitsOf(nn.Module):
    """Opens what a network wraps its logits in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (rows, classes), float32, of normalised NCHW `images`."""
        logits = _logits(self.network(images))
        assert logits is not None
        return logits


def _built(reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    if not _REFERENCE.fullmatch(reference):
        raise InputError(
            f"--factory {reference!r}: expected package.module:function, such as torchvision.models:resnet18"
        )
    module_name, _, path = reference.partition(":")
    with _current_folder_importable(), _own_errors(reference):
        target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            named = getattr(target, "__name__", module_name)
            raise InputError(
                f"--factory {reference}: {named} has no {part!r}; expected a function that returns a module"
            )
        target = getattr(target, part)
    if not callable(target):
        raise InputError(
            f"--factory {reference} is a {type(target).__name__}; expected a function that returns a torch.nn.Module"
        )
    build: Callable[..., object] = target
    with _current_folder_importable(), _own_errors(reference):
        module = build(**arguments)
    if not isinstance(module, nn.Module):
        raise InputError(f"--factory {reference} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """The `fuseline` command lies elsewhere, so Python doesn't look where the user stands."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _own_errors(reference: str) -> Iterator[None]:
    """Errors of the user's code become ours, with the place where they were raised."""
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"--factory {reference} raised {type(error).__name__}: {error} ({Path(last.filename).name}, line "
            f"{last.lineno}); arguments are given by --factory-arg NAME=VALUE"
        ) from error


def _load_strictly(module: nn.Module, checkpoint: Checkpoint, reference: str) -> tuple[int, str]:
    """Load all tensors; their number, and the prefix that the module's names have before the checkpoint's."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    if lazy := [name for name, value in state.items() if is_lazy(value)]:
        raise ArchitectureError(
            f"{lazy[0]} of --factory {reference} has no shape yet (a lazy module); call the network once on an image "
            "before it is returned"
        )
    places = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    prefix = _prefix(set(places), set(checkpoint.tensors))
    tensors = {f"{prefix}{name}": tensor for name, tensor in checkpoint.tensors.items()}
    kinds = {
        "missing": [f"{name} {tuple(place.shape)}" for name, place in places.items() if name not in tensors],
        "left over": [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in places],
        "misshapen": [
            f"{name} is {tuple(tensors[name].shape)}, expected {tuple(place.shape)}"
            for name, place in places.items()
            if name in tensors and tensors[name].shape != place.shape
        ],
    }
    if deviations := [f"{kind}: {_some(items)}" for kind, items in kinds.items() if items]:
        raise ArchitectureError(
            f"the checkpoint's tensors are not those of {type(module).__name__}, which --factory {reference} built; "
            f"{'; '.join(deviations)}. Nothing is filled in or left out: build the network that was trained"
        )
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(_COUNTER)}
    with _own_errors(reference):
        # Over its own state, which also has what is no tensor, and the versions that some modules ask for.
        own = module.state_dict()
        own.update(counters | tensors)
        module.load_state_dict(own)
    return len(tensors), prefix


def _prefix(places: set[str], names: set[str]) -> str:
    """What the module's names have before those of the checkpoint, whose reader takes wrappers' prefixes away."""
    prefix = ""
    while places and places != names:
        heads = {name.partition(".")[0] for name in places}
        if len(heads) != 1 or any("." not in name for name in places):
            return ""
        prefix += f"{heads.pop()}."
        places = {name.partition(".")[2] for name in places}
    return prefix


def _tried(module: nn.Module, channels: int, size: tuple[int, int], reference: str) -> tuple[nn.Module, int, str]:
    """The module that returns bare logits, their number, and what its layers' names now begin with."""
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    shape = f"{channels} x {size[0]} x {size[1]}"
    with torch.inference_mode():
        try:
            # Copies, as a network may work in place on what it is given.
            returned = module(images.clone())
            alone = module(images[:1].clone())
        except Exception as error:
            raise InputError(
                f"the network of --factory {reference} raised {type(error).__name__}: {error}, on images of {shape}; "
                "it must take normalised float32 images (rows, channels, height, width); --input-size names other "
                "sizes"
            ) from error
    logits, logits_alone = _logits(returned), _logits(alone)
    if logits is None or logits_alone is None or logits.dim() != 2 or len(logits) != 2:
        came = f"a tensor {tuple(logits.shape)}" if logits is not None else f"a {type(returned).__name__}"
        raise ArchitectureError(
            f"the network of --factory {reference} returned {came} for 2 images of {shape}; expected logits "
            "(2, classes)"
        )
    if bool((logits >= 0).all()) and bool((logits.sum(1) - 1).abs().max() < 1e-4):
        raise ArchitectureError(
            f"the network of --factory {reference} returns probabilities (they are positive and their sum is 1); "
            "expected logits, leave its softmax out: the server applies it"
        )
    spread = float(logits.max() - logits.min())
    if float((logits[:1] - logits_alone).abs().max()) > _ROW_TOLERANCE * spread:
        raise ArchitectureError(
            f"the logits of an image depend on its neighbours in the batch in the network of --factory {reference}; "
            "batching would change answers"
        )
    if isinstance(returned, Tensor):
        return module, logits.shape[1], ""
    return LogitsOf(module).eval(), logits.shape[1], "network."


def _logits(returned: object) -> Tensor | None:
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    return logits if isinstance(logits, Tensor) and logits.is_floating_point() else None


def _in_channels(module: nn.Module) -> int:
    """Of the first convolution that the module lists; 3 where it lists none."""
    return next((child.in_channels for child in module.modules() if isinstance(child, nn.Conv2d)), 3)


def _layers(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_modules():
        if next(child.parameters(recurse=False), None) is not None:
            yield name


def _some(items: list[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
