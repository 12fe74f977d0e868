"""Conversion of a checkpoint to another naming scheme's names, proven by running both."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fuseline.export.assumptions.assumptions import check_assumed
from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.loading.loading import NetworkSource, network_of, read_source
from fuseline.export.recognition.architectures import names_in, recognise, tensors_in
from fuseline.export.recognition.naming.naming_schemes import NamingScheme, scheme_named
from fuseline.export.recognition.recognised import Recognised
from fuseline.serve.errors import InputError, VerificationError

SUFFIXES = (".safetensors", ".pt", ".pth")
_PROBE_ROWS = 2
# Another implementation of the same network may sum in another order.
_LOGITS_TOLERANCE = 1e-4
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion made."""

    out: Path
    architecture: str
    from_naming: str
    to_naming: str
    renamed: int
    """Number of tensors whose name changed."""
    tensors: int
    """Number of all tensors."""
    verified_against: tuple[str, ...]
    """Sentences: what ran the written file and gave the logits of the original."""
    left_out: tuple[str, ...]
    """Sentences: what the written file's format can't hold."""


def convert_checkpoint(source: NetworkSource, *, to: str, out: Path, force: bool = False) -> Conversion:
    """Write the checkpoint of `source` to `out` under the names of the scheme called `to`.

    The file is read back and run before it gets its name, so that no file with other logits is left behind.

    Raises:
        InputError: `out` exists, or has no known suffix.
        ArchitectureError: the network isn't recognised, there is no such scheme, or it has no names for the network.
        VerificationError: the written file doesn't give the original's logits.
    """
    scheme = scheme_named(to)
    _check_destination(source, out, force=force)
    checkpoint = read_source(source)
    original = network_of(checkpoint, source)
    if not isinstance(original, Recognised):
        raise InputError("--factory builds networks that have no naming scheme; convert renames recognised ones")
    check_assumed(source.assumed, original.assumptions)
    names = names_in(scheme, original)
    tensors = {name: tensor.contiguous() for name, tensor in tensors_in(scheme, original).items()}
    counters = {
        f"{new.removesuffix('.running_mean')}.{_COUNTER}": checkpoint.counters[counter]
        for name, new in names.items()
        if name.endswith(".running_mean") and (counter := _stored(name, original, _COUNTER)) in checkpoint.counters
    }
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, tensors | counters, checkpoint.metadata)
        verified = _verified(partial, scheme, original, checkpoint.config, source.assumed)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out} could not be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may not exist
            partial.unlink(missing_ok=True)
    left_out = tuple(checkpoint.metadata) if out.suffix != ".safetensors" else ()
    return Conversion(
        out=out,
        architecture=original.architecture,
        from_naming=original.naming,
        to_naming=scheme.name,
        renamed=sum(new != _stored(name, original) for name, new in names.items()),
        tensors=len(tensors),
        verified_against=verified,
        left_out=(f"{', '.join(left_out)}: a bare state dict has no place for them, .safetensors has",)
        if left_out
        else (),
    )


def _check_destination(source: NetworkSource, out: Path, *, force: bool) -> None:
    if out.suffix not in SUFFIXES:
        raise InputError(f"-o {out}: the suffix says the format, one of {', '.join(SUFFIXES)}")
    if out.exists() and out.samefile(source.checkpoint):
        raise InputError(f"-o {out} is the checkpoint itself; write elsewhere")
    if out.exists() and not force:
        raise InputError(f"-o {out} exists; --force replaces it")


def _stored(name: str, recognised: Recognised, leaf: str | None = None) -> str:
    """Return the checkpoint's name of the module's tensor `name`, or of another `leaf` of the same layer."""
    module, _, own_leaf = name.rpartition(".")
    return f"{recognised.layer_names[module]}.{leaf or own_leaf}"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    if path.suffix == ".safetensors":
        # The format's metadata are strings; `read_checkpoint` decodes the JSON in them.
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"} | texts)
    else:
        torch.save(dict(tensors), path)


def _verified(
    path: Path, scheme: NamingScheme, original: Recognised, config: Mapping[str, Any], assumed: Mapping[str, str]
) -> tuple[str, ...]:
    written = read_checkpoint(path)
    again = recognise(written.tensors, naming=scheme.name, config=config, assumed=assumed)
    shape = (_PROBE_ROWS, original.in_channels, *original.usual_input_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.module(images)
        if not torch.equal(again.module(images), expected):
            raise VerificationError(f"the tensors under {scheme.name}'s names give other logits; nothing is written")
        verified = [f"read back as {again.naming}: the same logits, bit for bit"]
        library = _torchvision_module(scheme, original)
        if library is not None:
            library.load_state_dict({**written.tensors, **written.counters})
            difference = float((library.eval()(images) - expected).abs().max())
            spread = float(expected.max() - expected.min())
            if difference > _LOGITS_TOLERANCE * spread:
                raise VerificationError(
                    f"{original.architecture} itself gives logits that differ by {difference:.3g} in a range of "
                    f"{spread:.3g}; nothing is written"
                )
            verified.append(f"loaded strictly into {original.architecture} itself: logits differ by {difference:.2g}")
    return tuple(verified)


def _torchvision_module(scheme: NamingScheme, original: Recognised) -> nn.Module | None:
    """Return the network as torchvision builds it, where `scheme` is torchvision's and it has the network."""
    family, _, name = original.architecture.partition(" ")
    if scheme.name != "torchvision" or family != "torchvision":
        return None
    import torchvision

    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=original.classes)
    return module
