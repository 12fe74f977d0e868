"""Reading of a checkpoint file's bytes as plain Python values and tensors; no code in the file is ever run.

The content, not the suffix, decides how a file is read: an archive or pickle of `torch.save`, an archive of
TorchScript, or safetensors.
"""

import hashlib
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

from fuseline.export.checkpoint.foreign_files import foreign_format
from fuseline.export.checkpoint.safetensors_file import is_safetensors, read_safetensors
from fuseline.export.checkpoint.torch_file import EXPECTED, is_torch_file, read_torch_file
from fuseline.export.program import Program
from fuseline.serve.errors import CheckpointError

MAX_CHECKPOINT_BYTES = 4 * 2**30
"""Largest size of a file that is read; a ResNet-152 with its optimiser's state takes under 1 GiB."""


@dataclass(frozen=True, slots=True)
class FileContents:
    """What a file holds. The tensors lie in the memory that the file was read into, and keep it alive."""

    root: Any
    """The object that was saved; for safetensors, a dict of the tensors and the decoded `__metadata__`."""
    sha256: str
    """Digest of the very bytes that the tensors lie in."""
    inert: tuple[str, ...] = ()
    """Names of the classes and functions whose objects were left inert."""
    program: Program | None = None
    """The program of a TorchScript file, if it could be read to its end."""
    notes: tuple[str, ...] = ()
    """Sentences: what couldn't be read."""


def read_file(path: Path) -> FileContents:
    """Return what the file at `path` holds.

    Raises:
        CheckpointError: the file doesn't exist, is empty, above `MAX_CHECKPOINT_BYTES`, unreadable, no checkpoint or
            damaged. The message says which, and the cure.
    """
    data = _bytes_in_memory(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if is_safetensors(data):
        tensors, metadata = read_safetensors(data, path)
        return FileContents(metadata | tensors, sha256)
    if is_torch_file(data):
        found = read_torch_file(data, path)
        return FileContents(found.root, sha256, found.inert, found.program, found.notes)
    if foreign := foreign_format(data, path):
        raise CheckpointError(foreign)
    raise CheckpointError(f"{path} is no checkpoint: it is {_kind(data)}; {EXPECTED}")


def _bytes_in_memory(path: Path) -> mmap:
    """Return all bytes of the file in memory of this process, as the file may change afterwards."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; {EXPECTED}")
    try:
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            if not size:
                raise CheckpointError(f"{path} is empty; copy or download it again")
            if size > MAX_CHECKPOINT_BYTES:
                raise CheckpointError(
                    f"{path} has more than {MAX_CHECKPOINT_BYTES} bytes, the most that is read; save the state dict "
                    "alone"
                )
            file.seek(0)
            memory = mmap(-1, size)
            with memoryview(memory) as view:
                filled = 0
                while filled < size and (count := file.readinto(view[filled:])):
                    filled += count
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}; {EXPECTED}") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if filled < size:
        raise CheckpointError(f"{path} became shorter while it was read; copy or download it again")
    return memory


def _kind(data: mmap) -> str:
    """Return what `data` looks like, for people."""
    begin = data[:60]
    start = begin.decode("utf-8", errors="ignore")
    if len(start) > len(begin) // 2 and all(char.isprintable() or char.isspace() for char in start):
        return f"text that begins with {start.strip()[:40]!r}"
    return f"{len(data)} bytes that begin with {data[:8].hex(' ')}"
