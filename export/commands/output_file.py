"""Files that a command writes: checked before long work, and written whole or not at all."""

import os
import tempfile
from pathlib import Path

from fuseline.serve.errors import InputError


def check_output_file(flag: str, path: Path, suffix: str | None = None) -> None:
    """Raise `InputError` if it can be told beforehand that `path`, given with `flag`, can't be written."""
    if suffix is not None and path.suffix.lower() != suffix:
        raise InputError(f"{flag} {path}: a name that ends in {suffix} was expected")
    if path.is_dir():
        raise InputError(f"{flag} {path}: this is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: no right to write in {path.parent}")


def write_output_file(flag: str, path: Path, data: bytes) -> None:
    """Write `data` to `path`, given with `flag`. A file that was there is replaced, and stays if this fails.

    Raises:
        InputError: `path` can't be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            # mkstemp makes files that only their owner may read; these get the usual rights.
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} can't be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
