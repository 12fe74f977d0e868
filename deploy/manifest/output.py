"""Where what is written goes: it appears whole or not at all, and only what was written before is ever replaced."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import is_there

MARK = "# Written by `fuseline manifest"
"""What the first line of each file that is written begins with."""
_MOST_BYTES = 2**20


def check_output(out: Path | None, *, folder: bool, force: bool, flag: str = "--out") -> None:
    """Raise `InputError` if `write_text` or `write_chart` would refuse `out`, so that it is known before long work.

    `flag` is what `out` was given by.
    """
    if out is None:
        return
    try:
        if not out.parent.is_dir():
            raise InputError(f"there is no folder {out.parent} to write {out.name} in; make it, or give another {flag}")
        if not is_there(out) and not out.is_symlink():
            return
        ours = not out.is_symlink() and (_is_our_chart(out) if folder else _is_our_file(out))
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror}") from error
    if not force:
        raise InputError(f"{out} exists and is kept; --force replaces it, --out writes elsewhere")
    if not ours:
        what = "chart" if folder else "file"
        raise InputError(
            f"{out} exists and is no {what} of `fuseline manifest`, so --force won't replace it; use --out"
        )


def write_text(text: str, out: Path | None, *, force: bool) -> None:
    """Write `text` to the file `out`, or to stdout. Raises `InputError` where that can't be."""
    if out is None:
        sys.stdout.write(text)
        return
    check_output(out, folder=False, force=force)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name[:100]}.", suffix=".partial", dir=out.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).rename(out)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror}") from error


def write_chart(chart: Path, files: Mapping[str, str], out: Path, *, force: bool) -> None:
    """Copy the folder `chart` to `out`, with `files` in place of its own. Raises `InputError` where that can't be."""
    check_output(out, folder=True, force=force)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", suffix=".partial", dir=out.parent))
        try:
            # Links lead out of the chart; in the copy each is what it leads to.
            shutil.copytree(chart, staging, dirs_exist_ok=True)
            for name, text in files.items():
                (staging / name).write_text(text, encoding="utf-8")
            staging.chmod(0o755)
            if out.exists():
                shutil.rmtree(out)
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror}") from error


def _is_our_file(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _is_our_chart(path: Path) -> bool:
    """Return whether `path` is a chart whose values were written by this."""
    if not path.is_dir() or not (path / "Chart.yaml").is_file() or not (path / "values.yaml").is_file():
        return False
    with (path / "Chart.yaml").open("rb") as file:
        try:
            chart = yaml.safe_load(file.read(_MOST_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError):
            return False
    return isinstance(chart, dict) and chart.get("name") == "fuseline" and _is_our_file(path / "values.yaml")
