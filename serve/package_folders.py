"""Finds the model packages that `fuseline serve` is to serve: packages, or folders of packages."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import MANIFEST_NAME, is_there, why_unreadable

_log = logging.getLogger(__name__)


def package_folders(paths: Iterable[Path]) -> list[Path]:
    """Return `paths` with each folder that is no package itself replaced by the packages directly in it, by name.

    A path that is no folder is passed on for `load_package` to refuse. Hidden folders are skipped, as `export` works in
    such ones; other folders without a manifest are named in the log.

    Raises:
        PackageError: a folder is no package and holds none, or can't be looked into.
    """
    found: list[Path] = []
    for path in paths:
        try:
            if not path.is_dir() or is_there(path / MANIFEST_NAME):
                found.append(path)
                continue
            packages = list(_packages_in(path))
        except OSError as error:
            raise PackageError(f"{error.filename} can't be read: {why_unreadable(error)}") from error
        if not packages:
            raise PackageError(
                f"{path} is no model package and holds none; put one there (in a container: -v "
                f"$PWD/resnet18:{path}/resnet18); `fuseline export CHECKPOINT` makes one"
            )
        found += packages
    return found


def _packages_in(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if is_there(path / MANIFEST_NAME):
            yield path
        else:
            _log.warning("%s has no %s and is passed over", path, MANIFEST_NAME)
