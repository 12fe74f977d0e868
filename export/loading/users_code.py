"""The one place that runs the user's own code: the function that --factory names. Code in a checkpoint never runs."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fuseline.serve.errors import InputError

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def built_module(reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the module that the function `reference` (`package.module:function`) builds from keyword `arguments`.

    Raises:
        InputError: `reference` names nothing that can be called, its code raises, or it returns no `nn.Module`.
    """
    if not _REFERENCE.fullmatch(reference):
        raise InputError(
            f"--factory {reference!r}: expected package.module:function, such as torchvision.models:resnet18"
        )
    module_name, _, path = reference.partition(":")
    with _current_folder_importable(), users_errors(reference):
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
    with _current_folder_importable(), users_errors(reference):
        module = build(**arguments)
    if not isinstance(module, nn.Module):
        raise InputError(f"--factory {reference} returned a {type(module).__name__}; expected a torch.nn.Module")
    module = _without_wrappers(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"--factory {reference} returned a TorchScript module, whose program torch.export can't trace; return the "
            "torch.nn.Module that it was scripted or traced from: its weights are taken from the TorchScript file"
        )
    return module


def _without_wrappers(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DataParallel and DistributedDataParallel, which only call it."""
    while True:
        if type(module).__name__ == "OptimizedModule" and isinstance(module._modules.get("_orig_mod"), nn.Module):
            module = cast("nn.Module", module._modules["_orig_mod"])
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = cast("nn.Module", module.module)
        else:
            return module


@contextmanager
def users_errors(reference: str) -> Iterator[None]:
    """Turn errors of the user's code into `InputError`, with the place where they were raised."""
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"--factory {reference} raised {type(error).__name__}: {error} ({Path(last.filename).name}, line "
            f"{last.lineno}); arguments are given by --factory-arg NAME=VALUE"
        ) from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let Python import from the current folder, where the installed `fuseline` command doesn't look by itself."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
