"""What a trace may look like, and how each other is refused."""

from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.plan.trace import read_trace
from fuseline.serve.errors import InputError

SOUND = {
    "plain": "0.5\n0.513 4\n0.521\n",
    "with blank lines and remarks": "# a day\n\n0.5\n\n0.513 4\n# more\n0.521\n",
    "plain with commas": "0.5\n0.513,4\n0.521\n",
    "epoch": "1764281464.5\n1764281464.513\t4\n1764281464.521\n",
    "CSV": "seconds,pictures\n0.5,1\n0.513,4\n0.521,1\n",
    "CSV of a spreadsheet": '\ufeff"Timestamp_ms";"Path";"Images"\n500;"/a;b";1\n513;"/";4\n521;"/";1\n',
    "CSV with other columns": "status,time,latency\n200,0.5,9\n200,0.513,9\n503,0.521,9\n",
    "CSV with counters": "n,batch,time,latency\n1,1,0.5,9\n2,1,0.513,9\n3,2,0.521,9\n",
    "JSON lines": '{"t": 0.5}\n{"t": 0.513, "rows": 4, "path": {"a": [1]}}\n{"t": 0.521}\n',
    "JSON lines in ns": '{"ts_ns": 500000000}\n{"ts_ns": 513000000, "rows": 4}\n{"ts_ns": 521000000}\n',
    "ISO 8601": "2026-11-27T22:11:04.500Z\n2026-11-27T22:11:04.513Z 4\n2026-11-27T22:11:04.521Z\n",
    "ISO 8601 with a blank": "2026-11-27 22:11:04.500\n2026-11-27 22:11:04.513 4\n2026-11-27 22:11:04.521\n",
    "Windows": "0.5\r\n0.513 4\r\n0.521\r\n",
    "at once": "0.5\n0.5\n0.521\n",
}


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
def test_times_begin_at_0_and_a_request_has_its_own_number_of_pictures_or_the_usual_one(
    tmp_path: Path, text: str
) -> None:
    recorded = read_trace(written(tmp_path, text), rows=1)
    middle = 0.0 if text == SOUND["at once"] else 0.013
    np.testing.assert_allclose(recorded.seconds, [0, middle, 0.021], atol=1e-6)
    assert recorded.rows.tolist() == [1, 4 if "4" in text and "latency" not in text else 1, 1]
    assert recorded.seconds.dtype == np.float64
    assert recorded.rows.dtype == np.int32


BROKEN = {
    "out of order": ("0.1\n0.3\n0.2\n", "line 3: 0.2 s comes after 0.3 s; expected ascending times"),
    "out of order in CSV": ("time\n0.3\n0.2\n", "line 3: 0.2 s comes after 0.3 s"),
    "negative": ("-1\n2\n", "line 1: '-1' is negative; expected seconds from 0 on"),
    "NaN": ("0\nnan\n", "line 2: 'nan' is no time"),
    "infinite": ("0\ninf\n", "line 2: 'inf' is no time"),
    "too large": ("0\n1e999\n", "line 2: '1e999' would be inf s"),
    "a clock's milliseconds": ("1764281464125\n1764281464170\n", "line 1: '1764281464125' would be 1.764e+12 s"),
    "microseconds for milliseconds": ("t_ms\n1764281464125000\n", "name the column or key such as time_ms"),
    "no number": ("0\n0.1\nsoon\n", "line 3: 'soon' is no time; expected a number of seconds or ISO 8601"),
    "digits of another script": ("0\n١\n", "line 2: '١' is no time"),
    "underscores": ("0\n1_0\n", "line 2: '1_0' is no time"),
    "hexadecimal": ("0\n0x1\n", "line 2: '0x1' is no time"),
    "no pictures": ("0\n0.1 0\n", "line 2: '0' is no number of pictures; expected a whole one from 1 to 4096"),
    "half a picture": ("0\n0.1 1.5\n", "line 2: '1.5' is no number of pictures"),
    "too many pictures": ("0\n0.1 5000\n", "line 2: '5000' is no number of pictures"),
    "too many fields": ("0\n0.1 1 2\n", "line 2: 3 fields; expected a time in seconds"),
    "a header without times": ("path,status\n/,200\n", "line 1: 'path' is no time, and as a header it names no column"),
    "fewer fields than the header": ("time,rows\n0,1\n1\n", "line 3: 1 fields, where the header names 2"),
    "an unclosed quote": ('time,rows\n0,1\n"1,1\n', "line 3: "),
    "JSON that breaks off": ('{"t": 0}\n{"t": \n', "line 2: "),
    "JSON and then none": ('{"t": 0}\n0.1\n', "line 2: '0.1' is no JSON object, as the first line is"),
    "JSON without a time": ('{"t": 0}\n{"u": 1}\n', "line 2: the object has no key seconds, time"),
    "JSON NaN": ('{"t": 0}\n{"t": NaN}\n', "line 2: 'NaN' is no time"),
    "JSON truth": ('{"t": 0}\n{"t": true}\n', "line 2: t is True; expected a number"),
    "JSON pictures that are a list": (
        '{"t": 0}\n{"t": 1, "rows": [1]}\n',
        "line 2: rows is ['1']; expected a whole number",
    ),
    "deep JSON": ('{"t": 0}\n' + '{"t":' * 9000 + "\n", "line 2: "),
    "not a date": ("2026-11-27\n2026-13-27\n", "line 2: '2026-13-27' is no time"),
    "empty": ("", "has 0 arrivals; expected at least 2"),
    "a header alone": ("time\n", "has 0 arrivals; expected at least 2"),
    "one": ("0.1\n", "has 1 arrivals; expected at least 2"),
    "all at once": ("3\n3\n", "has 2 arrivals, all at one time; expected at least 2"),
    "no text": (b"0\n\xff\xfe\n", "line 2: the line is no UTF-8 text"),
    "zeros": (b"0\n\0\0\n", "line 2: "),
    "a long line": (b"0\n" + b"1" * 100_000, "line 2: the line is longer than 65536 bytes"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_anything_else_is_one_line_that_names_the_line(tmp_path: Path, data: str | bytes, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"--trace {path}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_a_trace_that_is_not_there_or_is_a_folder_is_told(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=told):
            read_trace(path)


def written(folder: Path, data: str | bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path
