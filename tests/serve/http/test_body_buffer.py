"""A body is collected in memory that grows with what has come."""

import pytest

from fuseline.serve.http.body_buffer import BodyBuffer
from fuseline.serve.http.refusal import Refusal


@pytest.mark.parametrize("part", [1, 4097, 100_000, 600_000, 3_000_000])
@pytest.mark.parametrize("says_length", [False, True])
def test_what_comes_in_parts_is_what_is_taken(part: int, says_length: bool) -> None:
    body = bytes(range(251)) * (12 if part == 1 else 12_000)
    buffer = BodyBuffer(len(body))
    for start in range(0, len(body), part):
        buffer.append(body[start : start + part], max(0, len(body) - start - part) if says_length else 0)
    content = buffer.content()
    assert bytes(content) == body
    assert (len(content), content.find(b"\x00", 1), content[3:5]) == (len(body), 251, b"\x03\x04")


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_part_too_many_is_refused_and_nothing_of_it_kept(size: int) -> None:
    buffer = BodyBuffer(size)
    buffer.append(bytes(size))
    with pytest.raises(Refusal, match=f"more than {size} bytes"):
        buffer.append(b"x")
    assert bytes(buffer.content()) == bytes(size)
