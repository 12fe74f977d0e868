"""The code of a revision, in a folder of its own, and what a process needs to run that code and no other."""

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from fuseline.serve.errors import InputError


@dataclass(frozen=True, slots=True)
class Tree:
    """A revision's files."""

    name: str
    """Name for people: what was asked for and the commit."""
    folder: Path

    def environment(self) -> dict[str, str]:
        """Environment in which this interpreter imports `serve` and `protos` from `folder`.

        PYTHONSAFEPATH keeps the current folder and the script's out of the way (Python's `-P`).
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith("FUSELINE_")}
        return own | {"PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def write_tree(wanted: str, repository: Path, folder: Path) -> Tree:
    """Write the files of `wanted` to `folder`: a revision of the git repository `repository`, or a folder.

    A folder begins with `.` or `/` and is a checkout: its files as they are now are copied, tracked ones and new ones
    that git doesn't ignore, so that nobody's editing changes them meanwhile. Nothing is written to the repository: a
    revision is unpacked from `git archive`, where a worktree would have to be pruned if this were killed.

    Raises:
        InputError: there is no such revision or checkout, or it has no `serve` to measure.
    """
    folder.mkdir(parents=True)
    if _is_folder(wanted):
        name = _copy_checkout(repository / wanted, wanted, folder)
    else:
        commit = _git(repository, wanted, "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}").strip()
        archive = _git(repository, wanted, "archive", "--format=tar", commit.decode())
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        name = f"{wanted} ({commit.decode()[:12]})"
    if not (folder / "serve" / "__init__.py").is_file():
        raise InputError(f"{wanted} has no serve/ to measure; name a revision of Fuseline")
    return Tree(name, folder)


def shown(wanted: str) -> str:
    """`wanted` without the folders above a folder, which name a machine's owner more often than a reader's interest."""
    return Path(wanted).name or "." if _is_folder(wanted) else wanted


def _is_folder(wanted: str) -> bool:
    return wanted.startswith((".", "/"))


def _copy_checkout(checkout: Path, wanted: str, folder: Path) -> str:
    root = Path(_git(checkout, wanted, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    listed = _git(root, wanted, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    for relative in filter(None, listed.decode().split("\0")):
        source = root / relative
        # A tracked file that was deleted is listed too.
        if source.is_file() or source.is_symlink():
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    commit = _git(root, wanted, "rev-parse", "--short=12", "HEAD").decode().strip()
    changed = _git(root, wanted, "status", "--porcelain").strip()
    return f"{shown(wanted)} ({commit}{' and changes' if changed else ''})"


def _git(repository: Path, wanted: str, *arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None:
        raise InputError("git is not installed; the comparison takes its revisions from it")
    if not repository.is_dir():
        raise InputError(f"{wanted}: there is no folder {repository}; name a revision or a checkout")
    done = subprocess.run([git, "-C", str(repository), *arguments], capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise InputError(f"{wanted}: git knows no such revision or checkout ({said}); name a branch, a commit or `.`")
    return done.stdout
