"""From what the user points at to a trained network, by whichever way its flags say: one way for every command."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.architectures import recognise
from export.checkpoint import Checkpoint, read_checkpoint
from export.factory import network_from_factory
from export.head import head_from
from export.network import TrainedNetwork
from serve.errors import InputError


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """Where a network comes from, as the user says it."""

    checkpoint: Path
    ema: bool = False
    """Take averaged weights."""
    naming: str | None = None
    """Which naming scheme the tensors are in; None: tell it from them."""
    head_from: Path | None = None
    """A second checkpoint that has the classifier."""
    factory: str | None = None
    """`package.module:function` that builds the network; None: recognise it."""
    factory_arguments: Mapping[str, Any] = field(default_factory=dict)


def read_source(source: NetworkSource) -> Checkpoint:
    """The checkpoint's tensors. Raises `CheckpointError`."""
    return read_checkpoint(source.checkpoint, prefer_ema=source.ema)


def network_of(
    checkpoint: Checkpoint, source: NetworkSource, input_size: tuple[int, int] | None = None
) -> TrainedNetwork:
    """The network of `checkpoint`, recognised or built by the factory.

    Args:
        checkpoint: what `read_source` gave.
        source: how the network is come by.
        input_size: (height, width) in pixels on which a factory's network is tried.

    Raises:
        InputError: flags that exclude each other, a factory that fails, tensors that are no network that is known.
    """
    if source.factory is None:
        if source.factory_arguments:
            raise InputError("--factory-arg came without --factory package.module:function")
        head = None if source.head_from is None else head_from(read_checkpoint(source.head_from))
        return recognise(
            checkpoint.tensors,
            naming=source.naming,
            config=checkpoint.config,
            layer_settings=checkpoint.layer_settings,
            program=checkpoint.program,
            head=head,
        )
    for flag, value in (("--naming", source.naming), ("--head-from", source.head_from)):
        if value is not None:
            raise InputError(
                f"{flag} is for networks that are recognised; with --factory the function builds all of it"
            )
    return network_from_factory(source.factory, source.factory_arguments, checkpoint, input_size)


def factory_arguments_from_texts(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as keyword arguments: a value that is JSON (`10`, `true`, `[1,2]`) is decoded, else text.

    Raises:
        InputError: a text without a name or `=`, or a name that came twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--factory-arg {text!r}: NAME=VALUE was expected, such as num_classes=10")
        if name in arguments:
            raise InputError(f"--factory-arg {name} came twice")
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments
