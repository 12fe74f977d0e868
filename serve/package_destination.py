"""Where a new package goes: it appears whole or not at all, and only a package is ever replaced."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import MANIFEST_NAME, is_there


@contextmanager
def new_package_folder(destination: Path, *, replace: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` if the block ends without an error, else disappears.

    The folder lies beside `destination`, so becoming it is a rename: a full disk, a crash or Ctrl-C never leaves half a
    package there, nor takes away the old one.

    Raises:
        PackageError: `destination` exists and `replace` is false, or it exists and is no model package (anything else
            is never deleted), or the folder can't be made.
    """
    check_destination(destination, replace=replace)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent))
    except OSError as error:
        raise PackageError(f"can't write in {destination.parent}: {error.strerror}") from error
    try:
        staging.chmod(0o755)
        yield staging
        check_destination(destination, replace=replace)
        if destination.exists():
            _replace(destination, staging)
        else:
            staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(destination: Path, *, replace: bool) -> None:
    """Raise `PackageError` if `new_package_folder` would refuse `destination`, so that it is known before long work."""
    try:
        if not is_there(destination) and not destination.is_symlink():
            return
        ours = not destination.is_symlink() and _looks_like_a_package(destination)
    except OSError as error:
        raise PackageError(f"can't write {destination}: {error.strerror}") from error
    if not replace:
        raise PackageError(f"{destination} exists and is kept; --force replaces it, --out writes elsewhere")
    if not ours:
        raise PackageError(f"{destination} exists and is no model package, so --force won't delete it; use --out")


def _replace(destination: Path, staging: Path) -> None:
    """Make `staging` become `destination`; then delete the old one, which is put back if that fails."""
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".old", dir=destination.parent))
    try:
        destination.rename(old / destination.name)
        staging.rename(destination)
    # A Ctrl-C too may come between the two renames.
    except BaseException:
        if (old / destination.name).exists():
            (old / destination.name).rename(destination)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _looks_like_a_package(folder: Path) -> bool:
    """Return whether `folder`'s manifest is one of ours, be it outdated or broken; others use the file's name too."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format_version", "artifacts"} <= manifest.keys()
