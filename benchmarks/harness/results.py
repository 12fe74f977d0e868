"""A run's result as a JSON file: the figures with the machine, the versions and the command that repeats it."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fuseline.benchmarks.harness.machine import machine_facts
from fuseline.serve.errors import InputError

RESULTS = Path("benchmarks") / "results"
"""Folder of the results that are kept, from the checkout's."""

_MAX_REASON_CHARACTERS = 500
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/'\",;:]+/)+")


@dataclass(frozen=True, slots=True)
class Conditions:
    """When, on what and how a run was made; taken before it, so that the load is not the run's own."""

    facts: dict[str, Any]


def conditions(command: str) -> Conditions:
    """The machine as it is now, before anything is measured. `command` repeats the run and names no folder."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Conditions(
        {
            "command": command,
            "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_average_before": load,
            "machine": machine_facts(),
        }
    )


def command_line(command: str, *arguments: str, **options: Any) -> str:
    """`fuseline bench COMMAND ARGUMENT --option value`; of paths only the last part, options that are None left out."""
    words = ["fuseline", "bench", command, *(Path(argument).name for argument in arguments)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", Path(value).name if isinstance(value, Path) else f"{value}"]
    return " ".join(words)


def without_folders(words: str) -> str:
    """`words` on one line, not too long, of paths only the last part: result files name no folder of the machine."""
    return only_last_parts(" ".join(words.split()))[:_MAX_REASON_CHARACTERS]


def only_last_parts(text: str) -> str:
    """`text` with every absolute path cut to its last part."""
    return _FOLDERS.sub("", text)


def check_writable(path: Path, flag: str = "--json") -> None:
    """Raise `InputError` if the file of `flag` couldn't be written to `path`; lets a caller know before measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise InputError(f"{flag} {path} can't be written: {error.strerror}") from error


def write_result(path: Path, benchmark: str, taken: Conditions, figures: Mapping[str, Any]) -> None:
    """Write one JSON object; an older file is replaced whole."""
    write_json(path, {"benchmark": benchmark, **taken.facts, **figures})


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` so that at any time the file has its old content, or all of the new.

    Raises:
        ValueError: it holds a NaN or an infinity, which JSON has not.
        OSError: it can't be written.
    """
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    staging.replace(path)
