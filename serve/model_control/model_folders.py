"""Reads a model repository on disk: which models it has, in which versions.

    models/
      resnet18/           a package: its version is the manifest's
        manifest.json …
      resnet50/           versions: a folder's number is the version
        1/manifest.json …
        2/manifest.json …

The folder's name is the model's, whatever its manifests say, as in Triton's repositories. Files and hidden folders are
passed over, and so are folders whose name is no version, such as `02` or `old`; the log says so of those with packages.
"""

import errno
import logging
import re
import reprlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from fuseline.serve.errors import PackageError, UnknownModelError
from fuseline.serve.model_package import MANIFEST_NAME, NAME_PATTERN, Manifest, is_there, load_package, why_unreadable

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

_log = logging.getLogger(__name__)

FileFacts = tuple[tuple[str, int, int, int], ...]
"""Path, size, time of the last change and inode of each file of a package."""


@dataclass(frozen=True, slots=True)
class PackageOnDisk:
    """A package as it was when it was read."""

    name: str
    """Name under which requests find the model."""
    version: str
    """Version under which requests find it; empty: a manifest that can't be read doesn't tell it."""
    folder: Path
    """Folder of the package, without links in its path: what a link leads to later is another package."""
    manifest: Manifest | None
    """Manifest under the name and version of requests; it tells what every file holds. None: it can't be read."""
    problem: str
    """Reason why the manifest can't be read; empty: it can."""
    files: FileFacts
    """What tells whether anything has changed, also where the manifest stays."""


@dataclass(frozen=True, slots=True)
class ModelOnDisk:
    """A model of a repository as it was when it was read."""

    name: str
    packages: tuple[PackageOnDisk, ...] = ()
    problem: str = ""
    """Reason why there are no packages; empty where there are."""
    has_versions: bool = False
    """Whether the model's folder has a folder for each version; else it is a package itself."""


class ModelFolders:
    """The models of several repositories. It touches the disk, so it is called in threads."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._lock = Lock()
        self._read: dict[Path, PackageOnDisk] = {}
        # Packages that are passed over, which the log has said already.
        self._passed_over: set[Path] = set()
        # Devices of the repositories' file systems when each had models.
        self._devices: dict[Path, int] = {}

    def read_all(self) -> dict[str, ModelOnDisk]:
        """Return every model by name. Packages none of whose files has changed are not read again.

        Raises:
            PackageError: a repository can't be read, or its file system is there no more.
        """
        places: dict[str, list[Path]] = {}
        for root in self._roots:
            folders = _folders_in(root)
            self._check_is_mounted(root, folders)
            for folder in folders:
                if re.fullmatch(NAME_PATTERN, folder.name):
                    places.setdefault(folder.name, []).append(folder)
                else:
                    self._pass_over(folder, f"{folder.name!r} can be no model's name")
        with self._lock:
            models = {name: self._model(name, folders) for name, folders in sorted(places.items())}
            present = {package.folder for model in models.values() for package in model.packages}
            self._read = {folder: package for folder, package in self._read.items() if folder in present}
            return models

    def read(self, name: str) -> ModelOnDisk:
        """Read the model called `name` anew.

        Raises:
            UnknownModelError: no repository has a folder of that name.
            PackageError: a repository can't be read.
        """
        folders = []
        if re.fullmatch(NAME_PATTERN, name):
            folders = [root / name for root in self._roots if _may_be_folder(root / name)]
        if not folders:
            roots = ", ".join(map(str, self._roots)) or "there is none"
            raise UnknownModelError(f"the model repository has no model {reprlib.repr(name)}; looked in {roots}")
        with self._lock:
            for folder in [each for each in self._read if self._read[each].name == name]:
                del self._read[folder]
            return self._model(name, folders)

    def _check_is_mounted(self, root: Path, folders: Sequence[Path]) -> None:
        """Raise `PackageError` if `root` is the empty folder on which the file system of its models was mounted."""
        try:
            device = root.stat().st_dev
        except OSError as error:
            raise PackageError(f"{root} can't be read: {why_unreadable(error)}") from error
        if folders:
            self._devices[root] = device
        elif self._devices.get(root, device) != device:
            raise PackageError(f"{root} is empty, and on another file system than its models were; mount that again")

    def _model(self, name: str, folders: Sequence[Path]) -> ModelOnDisk:
        if len(folders) > 1:
            where = " and ".join(str(folder.parent) for folder in folders)
            return ModelOnDisk(name, problem=f"{where} both have a model of this name; rename one")
        folder = folders[0]
        try:
            if is_there(folder / MANIFEST_NAME):
                return ModelOnDisk(name, (self._package(name, "", folder),))
            versions = []
            for each in _folders_in(folder):
                if _VERSION.fullmatch(each.name):
                    versions.append(each)
                else:
                    self._pass_over(each, f"{each.name!r} is no version, such as 1 or 2")
        except PackageError as error:
            return ModelOnDisk(name, problem=str(error))
        except OSError as error:
            return ModelOnDisk(name, problem=f"{folder} can't be read: {why_unreadable(error)}")
        if not versions:
            return ModelOnDisk(
                name, problem=f"{folder} has neither a {MANIFEST_NAME} nor a folder whose name is a version, such as 1"
            )
        packages = tuple(self._package(name, each.name, each) for each in versions)
        return ModelOnDisk(name, packages, has_versions=True)

    def _pass_over(self, folder: Path, reason: str) -> None:
        """Say once of a folder that is not served, for that reason, whether it has packages."""
        if folder in self._passed_over:
            return
        try:
            has_packages = any(is_there(each / MANIFEST_NAME) for each in (folder, *_folders_in(folder)))
        except (PackageError, OSError):
            has_packages = False
        if has_packages:
            self._passed_over.add(folder)
            _log.warning("%s has a package that is not served, as %s; rename the folder", folder, reason)

    def _package(self, name: str, version: str, folder: Path) -> PackageOnDisk:
        """Read the package in `folder`, whose version is the manifest's if `version` is empty."""
        try:
            folder = folder.resolve()
            facts = _facts(folder)
        except OSError as error:
            return PackageOnDisk(name, version, folder, None, f"{folder} can't be read: {error.strerror}", ())
        known = self._read.get(folder)
        if known is not None and known.files == facts and known.name == name:
            return known
        manifest, problem = None, ""
        try:
            told = load_package(folder).manifest
            version = version or told.version
            manifest = told.model_copy(update={"name": name, "version": version})
        except PackageError as error:
            problem = str(error)
        read = PackageOnDisk(name, version, folder, manifest, problem, facts)
        if manifest is not None:
            # What can't be read now may be readable later though no file has changed.
            self._read[folder] = read
        return read


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in `folder` that are not hidden, and links to nothing, which may have been folders."""
    try:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _may_be_folder(path)]
    except OSError as error:
        raise PackageError(f"{folder} can't be read: {why_unreadable(error)}") from error


def _may_be_folder(path: Path) -> bool:
    """Return whether `path` is a folder, a link to nothing, or where that can't be told: reading it then says why."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) or path.is_symlink()


def _facts(folder: Path) -> FileFacts:
    facts = []
    for path in sorted(folder.rglob("*")):
        status = path.stat() if path.exists() else path.lstat()
        facts.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(facts)
