"""The bytes of a checkpoint file become plain Python values and tensors, and no code in the file is ever run.

The content decides how it is read, not the suffix: a zip archive or pickle of `torch.save`, or safetensors.
"""

import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch

from serve.errors import CheckpointError

MAX_CHECKPOINT_BYTES = 4 * 2**30
"""A ResNet-152 with its optimiser's state takes under 1 GiB."""

_EXPECTED = "expected a state dict saved by torch.save (.pt, .pth, .th, .ckpt) or a .safetensors file"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch.save wrote first before PyTorch 1.6
_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000  # the format's own limit


def bytes_of_checkpoint(path: Path) -> bytes:
    """All bytes of the file at `path`.

    Raises:
        CheckpointError: there is no such file, or it is empty, above `MAX_CHECKPOINT_BYTES` or can't be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; {_EXPECTED}")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; {_EXPECTED}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHECKPOINT_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}; {_EXPECTED}") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path} has more than {MAX_CHECKPOINT_BYTES} bytes, the most that is read; save the state dict alone"
        )
    return data


def contents_of_checkpoint(data: bytes, path: Path) -> Any:
    """What `data`, the bytes of `path`, holds; of safetensors the tensors and, beside them, the decoded `__metadata__`.

    Raises:
        CheckpointError: it is no checkpoint, is damaged, or needs code to be run. The message says which and the cure.
    """
    if data.startswith(_LFS_POINTER):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` to fetch it")
    if _is_safetensors(data):
        return _from_safetensors(data, path)
    if data.startswith(b"PK"):
        _check_archive(data, path)
    elif not (data.startswith(b"\x80") and _TORCH_MAGIC in data[:32]):
        raise CheckpointError(f"{path} is no checkpoint: it is {_kind(data)}; {_EXPECTED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _needs_code(error, data, path) from error
    except Exception as error:  # damaged bytes raise whatever the parser trips over
        reason = str(error).partition(". ")[0].strip().splitlines()
        raise CheckpointError(
            f"{path} is damaged or cut short at {len(data)} bytes ({type(error).__name__}"
            f"{': ' + reason[0] if reason else ''}); copy or download it again"
        ) from error


def _is_safetensors(data: bytes) -> bool:
    """The format: the header's length as little-endian u64, then the header, a JSON object."""
    if len(data) < 9 or data[8:9] != b"{":
        return False
    return bool(struct.unpack("<Q", data[:8])[0] <= _MAX_SAFETENSORS_HEADER_BYTES)


def _from_safetensors(data: bytes, path: Path) -> dict[str, Any]:
    try:
        tensors: dict[str, Any] = safetensors.torch.load(data)
    except Exception as error:  # SafetensorError, but also KeyError for a dtype that this torch lacks
        raise CheckpointError(
            f"{path} is a damaged safetensors file of {len(data)} bytes ({error}); copy or download it again"
        ) from error
    header_bytes = struct.unpack("<Q", data[:8])[0]
    for key, text in json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {}).items():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        tensors.setdefault(key, value)
    return tensors


def _check_archive(data: bytes, path: Path) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged: it begins as a checkpoint's archive, but the end that lists its parts is "
            f"not there after {len(data)} bytes; copy or download it again"
        ) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program; the weights alone are needed. Where you trust it, run\n"
            + _cure("model = torch.jit.load({source}, map_location='cpu')", "model.state_dict()", path)
        )
    if any(name.endswith("/archive_format") for name in names):
        raise CheckpointError(
            f"{path} is a program saved by torch.export; the weights alone are needed. Where you trust it, run\n"
            + _cure("program = torch.export.load({source})", "program.state_dict", path)
        )
    if not any(name.endswith("/data.pkl") for name in names):
        shown = ", ".join(names[:5]) or "nothing"
        raise CheckpointError(f"{path} is a zip archive but no checkpoint: it holds {shown}; {_EXPECTED}")
    if sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError(f"{path} is a compressed archive; torch.save never compresses, unpack and save it again")


def _needs_code(error: UnpicklingError, data: bytes, path: Path) -> CheckpointError:
    """Why torch's restricted unpickler refused, and the lines that turn the file into a state dict."""
    refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if not refused:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        return CheckpointError(
            f"{path} can't be read without running code, or is damaged ({reason[0] if reason else 'no reason given'}); "
            "copy or download it again, or save model.state_dict() with torch.save's default pickle protocol"
        )
    opcodes = list(_opcodes(data))
    root_is_dict = next((name for name, _ in opcodes if name not in ("PROTO", "FRAME")), "") == "EMPTY_DICT"
    classes = [argument for name, argument in opcodes if name == "GLOBAL"]
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in classes):
        what, weights = "a pickled module", 'checkpoint["model"].state_dict()' if root_is_dict else "model.state_dict()"
    else:
        what, weights = "a pickled object beside the weights", 'checkpoint["state_dict"]'
    variable = weights.partition("[")[0].partition(".")[0]
    hint = "" if variable == "model" else "\n(with the key that holds the weights in your file)"
    return CheckpointError(
        f"{path} holds {what}, {refused[1]}: reading it would run code from the file, which Fuseline never does; a "
        "state dict was expected. Where you trust the file and have the code that it needs, run\n"
        + _cure(f"{variable} = torch.load({{source}}, weights_only=False, map_location='cpu')", weights, path)
        + hint
    )


def _cure(load: str, weights: str, path: Path) -> str:
    target = path.with_name(f"{path.stem}.state_dict.pt")
    return f"    {load.format(source=repr(str(path)))}\n    torch.save({weights}, {str(target)!r})"


def _opcodes(data: bytes) -> Iterator[tuple[str, str]]:
    """Opcodes and arguments of the pickle that holds the checkpoint's root; names of classes as `module.name`.

    It only chooses the words of a refusal, so it ends quietly where the pickle is damaged.
    """
    try:
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                stream = io.BytesIO(archive.read(name))
        else:
            stream = io.BytesIO(data)
            for _ in range(3):  # magic number, protocol version, system information
                for _ in pickletools.genops(stream):
                    pass
        for opcode, argument, _ in pickletools.genops(stream):
            yield opcode.name, str(argument).replace(" ", ".")
    except (ValueError, RuntimeError, zipfile.BadZipFile):
        return


def _kind(data: bytes) -> str:
    """What `data` looks like, for people."""
    start = data[:60].decode("utf-8", errors="ignore")
    if len(start) > len(data[:60]) // 2 and all(char.isprintable() or char.isspace() for char in start):
        return f"text that begins with {start.strip()[:40]!r}"
    if data.startswith(b"\x80"):
        return "a pickle that torch.save did not write"
    return f"{len(data)} bytes that begin with {data[:8].hex(' ')}"
