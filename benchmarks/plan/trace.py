"""A trace of arrivals: text lines, CSV with a header, or JSON lines, each with a time and perhaps a number of pictures.

    0.000          seconds,pictures        {"time": "2026-11-27T22:11:04.125Z"}
    0.013 4        0.000,1                 {"time": "2026-11-27T22:11:04.170Z", "pictures": 4}
    0.021          0.013,4                 …

Times are seconds, of any beginning, or ISO 8601; a column or key that ends in `_ms`, `_us` or `_ns` has that unit.
"""

import csv
import json
import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.errors import InputError

MOST_ROWS = 4096
"""Largest number of pictures of one request, as of a batch."""
MOST_LINES = 20_000_000
_YEAR_S = 31_557_600
_MOST_SECONDS = 1e11
"""The clocks of computers count from 1970, in milliseconds some of them: taken for seconds, that is far beyond this."""
_MOST_BYTES = 65_536
"""Bytes of the longest line: what tools write beside a time is far shorter."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)
_SEPARATORS = (",", ";", "\t")
"""Those of CSV; a line without one is split at blanks."""
_UNIT = re.compile(r"_(s|ms|us|ns)\Z")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_TIMES = ("seconds", "time", "timestamp", "arrival", "arrival_time", "arrived", "start", "start_time", "ts", "t")
_ROWS = ("pictures", "images", "rows", "batch_size")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a trace holds."""

    seconds: NDArray[np.float64]
    """(n,): when each request came, ascending, the first at 0."""
    rows: NDArray[np.int32]
    """(n,): its number of pictures."""


def read_trace(path: Path, rows: int = 1) -> Recorded:
    """Read the trace `path`; a request whose line has no number of pictures has `rows`.

    Blank lines, and those that begin with `#`, count as lines and are else passed over.

    Raises:
        InputError: the file can't be read, or a line is no time or a number of pictures, or comes before the line above
            it; the message names the line.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, rows)
    except OSError as error:
        raise InputError(f"--trace {path} can't be read: {error.strerror or error}") from error


def _read(path: Path, file: BinaryIO, rows: int) -> Recorded:
    seconds: list[float] = []
    counts: list[int] = []
    entry: Callable[[str], tuple[float, int | None]] | None = None
    for number, line in _lines(path, file):
        try:
            if entry is None:
                entry = _reader_from(line)
                if entry is not _plain and not line.startswith("{"):
                    continue
            second, count = entry(line)
        except ValueError as error:
            _refuse(path, number, str(error))
        if seconds and second < seconds[-1]:
            _refuse(path, number, f"{second:.15g} s comes after {seconds[-1]:.15g} s; expected ascending times")
        seconds.append(second)
        counts.append(rows if count is None else count)
    if len(seconds) < 2 or seconds[-1] == seconds[0]:
        at_once = f"{len(seconds)} arrivals, all at one time" if len(seconds) > 1 else f"{len(seconds)} arrivals"
        raise InputError(f"--trace {path} has {at_once}; expected at least 2, one a line, at different times")
    times = np.array(seconds, np.float64)
    return Recorded(times - times[0], np.array(counts, np.int32))


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of each line that holds something."""
    for number in range(1, MOST_LINES + 1):
        data = file.readline(_MOST_BYTES)
        if not data:
            return
        if len(data) == _MOST_BYTES:
            _refuse(path, number, f"the line is longer than {_MOST_BYTES} bytes")
        try:
            text = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            _refuse(path, number, "the line is no UTF-8 text")
        if text and not text.startswith("#"):
            yield number, text
    raise InputError(f"--trace {path} has more than {MOST_LINES:,} lines; plan by a part of it")


def _refuse(path: Path, line: int, what: str) -> NoReturn:
    raise InputError(f"--trace {path}, line {line}: {what}")


def _reader_from(first: str) -> Callable[[str], tuple[float, int | None]]:
    """What reads each line of a file whose first one is `first`: that of JSON, of a header's columns, or plain."""
    if first.startswith("{"):
        return _json
    fields = _fields(first)
    if _NUMBER.fullmatch(fields[0]) or _iso(fields[0]) is not None or not fields[0][:1].isalpha():
        return _plain
    return _columns(fields)


def _columns(header: list[str]) -> Callable[[str], tuple[float, int | None]]:
    names = [name.lower() for name in header]
    named = _named(names)
    if named is None:
        raise ValueError(f"{reprlib.repr(header[0])} is no time, and as a header it names no column {_any(_TIMES)}")
    time, unit, rows = named

    def read(line: str) -> tuple[float, int | None]:
        fields = _fields(line)
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields, where the header names {len(names)}")
        count = None if rows is None else _count(fields[names.index(rows)])
        return _time(fields[names.index(time)], unit), count

    return read


def _plain(line: str) -> tuple[float, int | None]:
    fields = _fields(line)
    if len(fields) > 2:
        raise ValueError(f"{len(fields)} fields; expected a time in seconds, and perhaps a number of pictures")
    return _time(fields[0], 1.0), _count(fields[1]) if len(fields) == 2 else None


def _json(line: str) -> tuple[float, int | None]:
    try:
        record = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{reprlib.repr(line)} is no JSON object, as the first line is") from error
    if not isinstance(record, dict):
        raise ValueError(f"{reprlib.repr(line)} is no JSON object, as the first line is")
    by_name: dict[str, Any] = {key.lower(): value for key, value in record.items()}
    named = _named(list(by_name))
    if named is None:
        raise ValueError(f"the object has no key {_any(_TIMES)}")
    time, unit, rows = named
    if not isinstance(by_name[time], str):
        raise ValueError(f"{time} is {reprlib.repr(by_name[time])}; expected a number of seconds or ISO 8601")
    if rows is None:
        return _time(by_name[time], unit), None
    if not isinstance(by_name[rows], str):
        raise ValueError(f"{rows} is {reprlib.repr(by_name[rows])}; expected a whole number of pictures")
    return _time(by_name[time], unit), _count(by_name[rows])


def _named(names: list[str]) -> tuple[str, float, str | None] | None:
    """Of a header or an object: the name that has the time, the seconds of its unit, the name that has the pictures."""
    plain = {_UNIT.sub("", name): name for name in reversed(names)} | {name: name for name in names}
    time = next((plain[name] for name in _TIMES if name in plain), None)
    if time is None:
        return None
    unit = None if time in _TIMES else _UNIT.search(time)
    return time, _UNITS[unit[1]] if unit else 1.0, next((name for name in _ROWS if name in names), None)


def _fields(line: str) -> list[str]:
    separator = next((each for each in _SEPARATORS if each in line), None)
    if separator is not None:
        try:
            return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True))]
        except csv.Error as error:
            raise ValueError(f"{reprlib.repr(line)} is no line of CSV: {error}") from error
    fields = line.split()
    if len(fields) > 1 and ":" in fields[1] and _iso(fields[0]) is not None:
        return [" ".join(fields[:2]), *fields[2:]]
    return fields


def _time(text: str, unit: float) -> float:
    if _NUMBER.fullmatch(text) is None:
        if (moment := _iso(text)) is None:
            raise ValueError(f"{reprlib.repr(text)} is no time; expected a number of seconds or ISO 8601")
        return moment
    seconds = float(text) * unit
    if seconds < 0:
        raise ValueError(f"{reprlib.repr(text)} is negative; expected seconds from 0 on")
    if seconds > _MOST_SECONDS:
        raise ValueError(
            f"{reprlib.repr(text)} would be {seconds:.4g} s, over {_MOST_SECONDS / _YEAR_S:,.0f} years; for another "
            "unit name the column or key such as time_ms"
        )
    return seconds


def _iso(text: str) -> float | None:
    if not text[:4].isdigit() or "-" not in text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _count(text: str) -> int:
    if _WHOLE.fullmatch(text) is None or not 1 <= int(text) <= MOST_ROWS:
        raise ValueError(f"{reprlib.repr(text)} is no number of pictures; expected a whole one from 1 to {MOST_ROWS}")
    return int(text)


def _any(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
