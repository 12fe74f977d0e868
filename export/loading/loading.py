"""The trained network that the flags of any command point at: recognised, or built by a factory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuseline.export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from fuseline.export.facts.input_size import input_size_from_text
from fuseline.export.loading.factory import network_from_factory
from fuseline.export.loading.head import head_from
from fuseline.export.loading.rename import read_renames, renamed_checkpoint, template_of
from fuseline.export.network import TrainedNetwork
from fuseline.export.recognition.architectures import recognise
from fuseline.export.recognition.recognised import Recognised
from fuseline.serve.errors import ArchitectureError, InputError


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """Where a network comes from, as the user's flags say."""

    checkpoint: Path
    ema: bool = False
    """Whether averaged weights are taken."""
    naming: str | None = None
    """Name of the tensors' naming scheme; None: it is told from them."""
    head_from: Path | None = None
    """A second checkpoint that has the classifier."""
    head: str | None = None
    """Name of the classifier, in `head_from` where that is given, else in `checkpoint`."""
    take: str | None = None
    """The key, or the prefix of names, where the weights are in `checkpoint`."""
    factory: str | None = None
    """`package.module:function` that builds the network; None: it is recognised."""
    factory_arguments: Mapping[str, Any] = field(default_factory=dict)
    rename: Path | None = None
    """A file that gives tensors other names before the network is recognised; see `fuseline.export.loading.rename`."""
    assumed: Mapping[str, str] = field(default_factory=dict)
    """What `--assume` says, by key; see `fuseline.export.recognition.choices`."""


def read_source(source: NetworkSource) -> Checkpoint:
    """Return the checkpoint, its tensors renamed as `source` says. Raise `CheckpointError` or `InputError`."""
    renames = None if source.rename is None else read_renames(source.rename)
    checkpoint = read_checkpoint(source.checkpoint, prefer_ema=source.ema, take=source.take)
    return checkpoint if renames is None else renamed_checkpoint(checkpoint, renames)


def network_of(
    checkpoint: Checkpoint,
    source: NetworkSource,
    input_size: tuple[int, int] | None = None,
    shared_size: tuple[int, int] | None = None,
) -> TrainedNetwork:
    """Return the network of `checkpoint`, recognised or built by the factory.

    Args:
        checkpoint: what `read_source` returned.
        source: where the network comes from.
        input_size: (height, width) in pixels on which a factory's network is tried.
        shared_size: (height, width) in pixels of all the user's images, if they have one size.

    Raises:
        InputError: flags exclude each other, the factory fails, or the tensors aren't those of a known network.
    """
    if source.factory is None:
        if source.factory_arguments:
            raise InputError("--factory-arg came without --factory package.module:function")
        head = None if source.head_from is None else head_from(read_checkpoint(source.head_from), source.head)
        return recognise(
            checkpoint.tensors,
            naming=source.naming,
            config=checkpoint.config,
            layer_settings=checkpoint.layer_settings,
            program=checkpoint.program,
            head=head,
            assumed=source.assumed,
            head_name=source.head if source.head_from is None else None,
        )
    for flag, value in (("--naming", source.naming), ("--head-from", source.head_from), ("--head", source.head)):
        if value is not None:
            raise InputError(
                f"{flag} is for networks that are recognised; with --factory the function builds all of it"
            )
    if input_size is None and (assumed := source.assumed.get("size")) is not None:
        input_size = input_size_from_text(assumed)
    return network_from_factory(source.factory, source.factory_arguments, checkpoint, input_size, shared_size)


def rename_template_of(source: NetworkSource) -> dict[str, str]:
    """Return a template for `--rename`: each tensor of `source` to the name that it needs, "" where none can be told.

    Raises:
        InputError: `source` is no checkpoint, or its flags are wrong.
    """
    checkpoint = read_source(source)
    try:
        network = network_of(checkpoint, source)
    except ArchitectureError:
        return template_of(checkpoint, None)
    return template_of(checkpoint, network if isinstance(network, Recognised) else None)


def factory_arguments_from_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` texts as keyword arguments; a value that is JSON (`10`, `true`, `[1,2]`) is decoded.

    Raises:
        InputError: a text has no name or no `=`, or a name comes twice.
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
