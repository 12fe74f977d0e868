"""Reading of a file of `torch.save` or TorchScript as values, tensors and inert objects; none of its code is run.

The tensors lie in the memory that the file was read into. The formats are the zip archives that PyTorch has written
since 1.6, the plain pickles before them (torch/serialization.py: `_save`, `_legacy_save`), and TorchScript archives,
whose attributes are in a pickle of the same kind (torch/csrc/jit/serialization/pickler.cpp).
"""

import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import IO, Any, cast

from fuseline.export.checkpoint.foreign_files import foreign_archive
from fuseline.export.checkpoint.inert_objects import Inert
from fuseline.export.checkpoint.inert_pickle import Pickle, read_pickle
from fuseline.export.checkpoint.pickled_tensors import Storage, construct_tensor, storage_dtype, tensor_over
from fuseline.export.checkpoint.script_code import ScriptCode, UnreadableError
from fuseline.export.checkpoint.script_program import read_program
from fuseline.export.program import Program
from fuseline.serve.errors import CheckpointError

EXPECTED = (
    "expected a checkpoint saved by torch.save (.pt, .pth, .th, .ckpt), a .safetensors file, or a folder or index of "
    "them"
)
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number with which torch.save began before PyTorch 1.6
_LOCAL_HEADER_BYTES = 30
_UNTOLD = "its program, which would tell strides, pools and activations, couldn't be read to its end"
_MAX_ELEMENT_BYTES = 16


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a file holds."""

    root: Any
    """The object that was saved."""
    inert: tuple[str, ...]
    """Names of the classes and functions whose objects were left inert."""
    program: Program | None = None
    """The program of a TorchScript file, if it could be read to its end."""
    notes: tuple[str, ...] = ()
    """Sentences: what couldn't be read."""


def is_torch_file(data: mmap) -> bool:
    """Return whether `data` begins as a file of torch.save does."""
    return data[:2] == b"PK" or (data[:1] == b"\x80" and _TORCH_MAGIC in data[:32])


def read_torch_file(data: mmap, path: Path) -> TorchFile:
    """Read `data`, the bytes of `path`.

    Raises:
        CheckpointError: the file is no checkpoint, a program of torch.export, compressed or damaged; the message says
            which.
    """
    try:
        return _from_archive(data, path) if data[:2] == b"PK" else _from_plain_pickles(data)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes raise whatever the parser trips over
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} is damaged or cut short at {len(data)} bytes ({type(error).__name__}"
            f"{': ' + reason[0] if reason else ''}); copy or download it again"
        ) from error


class _Archive:
    """The parts of a zip archive, by name, read in place."""

    def __init__(self, data: mmap, path: Path) -> None:
        self._data = data
        self._path = path
        try:
            with zipfile.ZipFile(_as_file(data)) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise CheckpointError(
                f"{path} is cut short or damaged: it begins as a checkpoint's archive, but the end that lists its "
                f"parts is not there after {len(data)} bytes; copy or download it again"
            ) from error

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def size(self, name: str) -> int:
        """Return the unpacked size in bytes of the part called `name`, as the archive lists it."""
        return self._entries[name].file_size

    def text(self, name: str) -> bytes:
        """Return the part called `name`, which may be compressed, unpacked to no more bytes than the archive lists.

        Raises:
            ValueError: the part isn't there, is packed in an unknown way, or has another size.
        """
        entry = self._entries[name]
        start = self._start(name)
        packed = self._data[start : start + entry.compress_size]
        if entry.compress_type == zipfile.ZIP_STORED:
            return packed
        if entry.compress_type != zipfile.ZIP_DEFLATED:
            raise ValueError(f"{name} is packed in an unknown way")
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            text = unpacker.decompress(packed, entry.file_size + 1)
        except zlib.error as error:
            raise ValueError(f"{name} can't be unpacked: {error}") from error
        if len(text) != entry.file_size:
            raise ValueError(f"{name} should have {entry.file_size} bytes")
        return text

    def span(self, name: str) -> tuple[int, int]:
        """Return where the part called `name` begins in the file, and its size in bytes."""
        start = self._start(name)
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{self._path} is a compressed archive; torch.save never compresses, unpack and save it again"
            )
        return start, entry.file_size

    def _start(self, name: str) -> int:
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"the archive lacks its part {name}")
        header = self._data[entry.header_offset : entry.header_offset + _LOCAL_HEADER_BYTES]
        signature, name_bytes, extra_bytes = struct.unpack("<4s22x2H", header)
        if signature != b"PK\x03\x04" or entry.flag_bits & 1:
            raise ValueError(f"the archive's part {name} is not where its list says, or encrypted")
        return int(entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes)


def _from_archive(data: mmap, path: Path) -> TorchFile:
    archive = _Archive(data, path)
    names = archive.names
    is_program = any(name.endswith("/archive_format") for name in names)
    root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
    is_compiled = any("/aotinductor/" in name for name in names)
    if is_program and not is_compiled:
        target = path.with_name(f"{path.stem}.state_dict.pt")
        raise CheckpointError(
            f"{path} is a program saved by torch.export; the weights alone are needed. Where you trust it, run\n"
            f"    import torch\n    program = torch.export.load({str(path)!r})\n"
            f"    torch.save(program.state_dict, {str(target)!r})"
        )
    if root is None or is_compiled:
        if foreign := foreign_archive(names, path):
            raise CheckpointError(foreign)
        shown = ", ".join(names[:5]) or "nothing"
        raise CheckpointError(f"{path} is a zip archive but no checkpoint: it holds {shown}; {EXPECTED}")
    swap = f"{root}byteorder" in names and _part(data, archive, f"{root}byteorder") != sys.byteorder.encode()
    is_script = f"{root}constants.pkl" in names

    def pickled(part: str, folder: str) -> Pickle:
        storages: dict[str, Storage] = {}

        def persistent(key: Any) -> Storage:
            _, kind, name, location, *_ = key
            if name not in storages:
                memory = None if location == "meta" else tensor_over(data, *archive.span(f"{root}{folder}/{name}"))
                storages[name] = _storage(memory, kind, swap=swap)
            return storages[name]

        data.seek(archive.span(f"{root}{part}")[0])
        return read_pickle(_as_file(data), _construct_in_script if is_script else construct_tensor, persistent)

    found = pickled("data.pkl", "data")
    if not (is_script and isinstance(found.root, Inert)):
        return TorchFile(found.root, found.inert)
    sizes = {name.removeprefix(root): archive.size(name) for name in names if name.startswith(f"{root}code/")}
    code = ScriptCode(sizes, lambda name: archive.text(f"{root}{name}"))
    try:
        program = read_program(found.root, code, lambda: pickled("constants.pkl", "constants").root)
    except UnreadableError as error:
        return TorchFile(found.root, found.inert, None, (f"{_UNTOLD}: {error}",))
    return TorchFile(found.root, found.inert, program)


def _as_file(data: mmap) -> IO[bytes]:
    """Return `data` as a file, whose methods to read, seek and tell an mmap has."""
    return cast("IO[bytes]", data)


def _part(data: mmap, archive: _Archive, name: str) -> bytes:
    start, size = archive.span(name)
    return data[start : start + size].strip()


def _storage(memory: Any, kind: Any, *, swap: bool) -> Storage:
    """Return the storage over `memory`, copied if its address isn't a multiple of an element's size."""
    dtype = storage_dtype(kind)
    if memory is not None and memory.data_ptr() % (dtype.itemsize if dtype else _MAX_ELEMENT_BYTES):
        memory = memory.clone()
    if swap and memory is not None and dtype is not None and memory.numel():
        memory.untyped_storage().byteswap(dtype)
    return Storage(memory, dtype)


def _construct_in_script(name: str, arguments: tuple[Any, ...]) -> Any:
    if name.startswith("torch.jit._pickle.build_") or name == "torch.jit._pickle.restore_type_tag":
        return arguments[0]
    return construct_tensor(name, arguments)


def _from_plain_pickles(data: mmap) -> TorchFile:
    """Read three small pickles, the root's, one that lists the storages, and the storages themselves.

    The root is read twice, as its tensors need the storages, whose types only the root tells.
    """
    data.seek(0)
    _, _, system = (read_pickle(_as_file(data)).root for _ in range(3))
    swap = system["little_endian"] != (sys.byteorder == "little")
    start, kinds = data.tell(), {}

    def note_kind(key: Any) -> Any:
        if key[0] == "storage":
            kinds[key[2]] = key[1]
        return key[1]

    read_pickle(_as_file(data), lambda name, _: None if name.startswith("torch._") else NotImplemented, note_kind)
    storages: dict[str, Storage] = {}
    names = read_pickle(_as_file(data)).root
    position = data.tell()
    for name in names:
        (count,) = struct.unpack("<q", data[position : position + 8])
        dtype = storage_dtype(kinds[name])
        size = count * (dtype.itemsize if dtype else 1)
        storages[name] = _storage(tensor_over(data, position + 8, size), kinds[name], swap=swap)
        position += 8 + size

    def persistent(key: Any) -> Any:
        if key[0] == "module":  # before 1.6 the source of a module's class was saved with it
            return key[1]
        _, kind, name, location, _, view = key
        if location == "meta":
            return Storage(None, storage_dtype(kind))
        if view is None:
            return storages[name]
        _, offset, count = view
        whole = storages[name]
        if whole.bytes_ is None or whole.dtype is None:
            raise ValueError("a view of a storage without a type")
        size = whole.dtype.itemsize
        return Storage(whole.bytes_[offset * size : (offset + count) * size], whole.dtype)

    data.seek(start)
    found = read_pickle(_as_file(data), construct_tensor, persistent)
    return TorchFile(found.root, found.inert)
